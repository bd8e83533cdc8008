//! `bench`: prompts and generation in tokens/s.

use std::time::Instant;

use serde::Serialize;

use super::{OpenProgram, print_json, start_session};
use crate::Program;
use crate::allocation::allocations;
use crate::arguments::Arguments;
use crate::console::{Console, Failure, OrUsage};
use crate::cuda::DeviceExecutor;
use crate::generate::not_numbers;
use crate::session::Session;
use crate::speech;
use crate::text::Sampler;

/// What is printed.
#[derive(Debug, Serialize)]
struct Report<'a> {
    model: &'a str,
    target: &'a str,
    quant: &'a str,
    threads: usize,
    /// The GPU and the code it was given, where it is one that computes.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    /// None where nothing was generated.
    allocations_per_token: Option<f64>,
    results: Vec<TestResult>,
}

/// Repetitions of one test.
#[derive(Debug, Serialize)]
struct TestResult {
    test: String,
    tokens_per_s: f64,
    stddev: f64,
    runs: Vec<f64>,
}

impl TestResult {
    fn new(test: String, runs: Vec<f64>) -> Self {
        let mean = runs.iter().sum::<f64>() / runs.len() as f64;
        let squares: f64 = runs.iter().map(|run| (run - mean).powi(2)).sum();
        let stddev = if runs.len() < 2 { 0.0 } else { (squares / (runs.len() - 1) as f64).sqrt() };
        Self { test, tokens_per_s: mean, stddev, runs }
    }
}

/// Sizes of the tests.
#[derive(Debug, Serialize)]
pub(super) struct Workload {
    pub(super) prompt: usize,
    pub(super) generate: usize,
    pub(super) depth: usize,
}

impl Workload {
    /// Sizes from the arguments. Defaults shrink to the program's context; what was asked for does not.
    pub(super) fn new(
        arguments: &Arguments,
        context: usize,
        default_prompt: usize,
        default_generate: usize,
    ) -> Result<Self, Failure> {
        let depth = arguments.number("-d", 0, usize::MAX / 2).or_usage()?.unwrap_or(0);
        let room = context.saturating_sub(depth);
        let size = |name: &str, default: usize| -> Result<usize, Failure> {
            Ok(arguments.number(name, 0, usize::MAX / 2).or_usage()?.unwrap_or(default.min(room)))
        };
        let workload =
            Self { prompt: size("-p", default_prompt)?, generate: size("-n", default_generate)?, depth };
        let needed = depth + workload.prompt.max(workload.generate);
        if needed > context {
            return Err(
                crate::SessionError::ContextFull { needed: needed as u64, context: context as u64 }.into()
            );
        }
        Ok(workload)
    }
}

/// Ids that look like text to a model with so many of them: spread, and always the same.
pub(super) fn sample_ids(count: usize, allowed: usize) -> Vec<u32> {
    (0..count).map(|index| (index.wrapping_mul(7919) % allowed.max(1)) as u32).collect()
}

/// Measures and prints.
pub(super) fn bench(
    arguments: &Arguments,
    open: OpenProgram<'_>,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let repetitions = arguments.number("-r", 1, 10_000).or_usage()?.unwrap_or(5);
    let program = open()?;
    let workload = Workload::new(arguments, program.manifest().context as usize, 512, 128)?;
    let mut session = start_session(&program, arguments, console)?;
    let mut bench = Bench {
        ids: sample_ids(workload.depth + workload.prompt.max(1), speech::allowed_ids(&program)?),
        sampler: speech::sampler(&program, &Arguments::default(), 0)?,
        session: &mut session,
        workload,
    };
    let (results, allocations_per_token) = bench.measure(repetitions)?;
    let report = Report {
        model: &program.manifest().model.name,
        target: &program.manifest().target,
        quant: &program.manifest().quant,
        threads: bench.session.threads(),
        device: bench.session.device().map(DeviceExecutor::description),
        allocations_per_token,
        results,
    };
    if arguments.has("--json") {
        return print_json(&report, console);
    }
    let hardware = bench.session.hardware_text();
    console.print(&table(&program, &report, &hardware))
}

struct Bench<'a> {
    session: &'a mut Session,
    sampler: Sampler,
    ids: Vec<u32>,
    workload: Workload,
}

impl Bench<'_> {
    fn measure(&mut self, repetitions: usize) -> Result<(Vec<TestResult>, Option<f64>), Failure> {
        let mut results = Vec::new();
        let depth = match self.workload.depth {
            0 => String::new(),
            depth => format!("@d{depth}"),
        };
        let (prompt, generate) = (self.workload.prompt, self.workload.generate);
        if prompt > 0 {
            // The first run reads the weights from the disk, and is not counted.
            self.time_prompt()?;
            let runs = (0..repetitions).map(|_| self.time_prompt()).collect::<Result<_, _>>()?;
            results.push(TestResult::new(format!("pp{prompt}{depth}"), runs));
        }
        let mut allocations_per_token = None;
        if generate > 0 {
            self.time_generation(generate.min(4))?;
            let runs = (0..repetitions).map(|_| self.time_generation(generate));
            let runs = runs.collect::<Result<Vec<_>, _>>()?;
            let allocated: u64 = runs.iter().map(|run| run.allocations).sum();
            allocations_per_token = Some(allocated as f64 / (repetitions * generate) as f64);
            let runs = runs.into_iter().map(|run| run.tokens_per_s).collect();
            results.push(TestResult::new(format!("tg{generate}{depth}"), runs));
        }
        Ok((results, allocations_per_token))
    }

    /// Tokens/s of a prompt, without tokenizing and sampling.
    fn time_prompt(&mut self) -> Result<f64, Failure> {
        self.fill_context()?;
        let depth = self.workload.depth;
        let start = Instant::now();
        self.session.prefill(&self.ids[depth..depth + self.workload.prompt])?;
        Ok(self.workload.prompt as f64 / start.elapsed().as_secs_f64())
    }

    /// Tokens/s of generation, with sampling.
    fn time_generation(&mut self, tokens: usize) -> Result<GenerationRun, Failure> {
        self.fill_context()?;
        let mut token = self.ids[self.workload.depth];
        let allocated = allocations();
        let start = Instant::now();
        for _ in 0..tokens {
            self.session.decode(token)?;
            token = self.session.sample(&mut self.sampler)?.ok_or_else(not_numbers)?;
        }
        let seconds = start.elapsed().as_secs_f64();
        Ok(GenerationRun { tokens_per_s: tokens as f64 / seconds, allocations: allocations() - allocated })
    }

    fn fill_context(&mut self) -> Result<(), Failure> {
        self.session.rewind(0);
        match self.workload.depth {
            0 => Ok(()),
            depth => Ok(self.session.prefill(&self.ids[..depth])?),
        }
    }
}

struct GenerationRun {
    tokens_per_s: f64,
    allocations: u64,
}

fn table(program: &Program, report: &Report<'_>, hardware: &str) -> String {
    let manifest = program.manifest();
    let mut text =
        format!("{} {} {} on {}, {hardware}\n", report.model, manifest.dtype, report.quant, report.target);
    for result in &report.results {
        let TestResult { test, tokens_per_s, stddev, .. } = result;
        text.push_str(&format!("  {test:<16} {tokens_per_s:>10.2} ± {stddev:.2} tokens/s\n"));
    }
    if let Some(allocations) = report.allocations_per_token {
        text.push_str(&format!("  {allocations} allocations per token\n"));
    }
    text
}

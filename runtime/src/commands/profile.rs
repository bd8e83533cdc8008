//! `profile`: where the time goes, kernel by kernel.

use std::fmt::Write as _;
use std::time::Instant;

use qwen2c_format::StepLists;
use serde::Serialize;

use super::bench::{Workload, sample_ids};
use super::{OpenProgram, hardware, print_json, startup};
use crate::arguments::Arguments;
use crate::console::{Console, Failure};
use crate::cuda;
use crate::execute::Observer;
use crate::peak::{self, Peak};
use crate::session::Session;
use crate::speech;
use crate::{Hardware, Program};

/// Enough for every kernel to be called often, short enough for a large model.
const DEFAULT_PROMPT: usize = 128;
const DEFAULT_GENERATE: usize = 32;

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    workload: Workload,
    /// What computes: threads, or a device and the code it was given.
    hardware: String,
    /// The better of the samples before and after the work, limit by limit.
    peak: Peak,
    /// The samples: one before the work, and with `--peak` one after it.
    peak_samples: Vec<Peak>,
    /// Passes through the model: chunks of the prompt, and tokens generated.
    steps: u64,
    /// Mean duration of such a step.
    step_us: f64,
    kernels: Vec<KernelTime>,
}

/// All calls of one kernel.
#[derive(Debug, Serialize)]
struct KernelTime {
    name: String,
    calls: u64,
    us: f64,
    bytes: u64,
    operations: u64,
    /// The time that the peak would have taken over the time it took.
    share_of_peak: f64,
}

/// Runs a prompt and a generation, each once before it is measured, and prints what each kernel took.
pub(super) fn profile(
    arguments: &Arguments,
    open: OpenProgram<'_>,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    if arguments.has("--startup") {
        return startup::startup(arguments, open, console);
    }
    let program = open()?;
    let context = program.manifest().context as usize;
    let workload = Workload::new(arguments, context, DEFAULT_PROMPT, DEFAULT_GENERATE)?;
    let ids =
        sample_ids(workload.depth + workload.prompt.max(workload.generate), speech::allowed_ids(&program)?);
    let is_thorough = arguments.has("--peak");
    let hardware = hardware(&program, arguments, console)?;
    // A device's peak is known once it is open; a processor's is measured while nothing else runs.
    let measure = |hardware: &Hardware| match hardware {
        Hardware::Processor(placement) => peak::measure(placement, is_thorough).map(Some),
        Hardware::Device(_) => Ok(None),
    };
    let mut peak_samples: Vec<Peak> = measure(&hardware)?.into_iter().collect();
    let mut session = program.start(&hardware)?;
    peak_samples.extend(session.device().map(|device| cuda::peak(device.facts())));
    walk(&mut session, &workload, &ids, &mut Stopwatch::new(program.lists()))?;
    let mut stopwatch = Stopwatch::new(program.lists());
    walk(&mut session, &workload, &ids, &mut stopwatch)?;
    if is_thorough {
        // A machine's peak drifts: the work stands between two samples of it.
        peak_samples.extend(measure(&hardware)?);
    }
    let best = peak_samples.iter().cloned().reduce(Peak::best);
    let peak = best.expect("the peak was taken before the work");
    let kernels = stopwatch.kernels(&peak);
    let us: f64 = kernels.iter().map(|kernel| kernel.us).sum();
    let steps = stopwatch.steps;
    let step_us = us / steps.max(1) as f64;
    let hardware = session.hardware_text();
    let report = Report { workload, hardware, peak, peak_samples, steps, step_us, kernels };
    if arguments.has("--json") {
        return print_json(&report, console);
    }
    console.print(&table(&program, &report, is_thorough))
}

fn walk(
    session: &mut Session,
    workload: &Workload,
    ids: &[u32],
    stopwatch: &mut Stopwatch<'_>,
) -> Result<(), Failure> {
    let (before, after) = ids.split_at(workload.depth);
    session.rewind(0);
    if !before.is_empty() {
        session.prefill(before)?;
    }
    for chunk in after[..workload.prompt].chunks(session.prompt_rows()) {
        stopwatch.start(session.position(), chunk.len());
        session.prefill_observed(chunk, stopwatch)?;
    }
    session.rewind(workload.depth);
    for &token in &after[..workload.generate] {
        stopwatch.start(session.position(), 1);
        session.prefill_observed(&[token], stopwatch)?;
    }
    Ok(())
}

/// Sums time, bytes and operations of every kernel.
struct Stopwatch<'a> {
    lists: &'a StepLists,
    /// Calls, seconds, bytes, operations; as many as there are kernels.
    totals: Vec<Total>,
    last: Instant,
    steps: u64,
    rows: u64,
    /// `Σ (position + 1)` over the rows.
    positions: u64,
}

#[derive(Clone, Copy, Default)]
struct Total {
    calls: u64,
    seconds: f64,
    bytes: u64,
    operations: u64,
}

impl<'a> Stopwatch<'a> {
    fn new(lists: &'a StepLists) -> Self {
        let totals = vec![Total::default(); lists.kernels.len()];
        Self { lists, totals, last: Instant::now(), steps: 0, rows: 0, positions: 0 }
    }

    /// Before the steps of `rows` rows that begin at `position`.
    fn start(&mut self, position: usize, rows: usize) {
        let (position, rows) = (position as u64, rows as u64);
        self.steps += 1;
        self.rows = rows;
        self.positions = rows * (position + 1) + rows * rows.saturating_sub(1) / 2;
        self.last = Instant::now();
    }

    fn kernels(&self, peak: &Peak) -> Vec<KernelTime> {
        let named = self.lists.kernels.iter().zip(&self.totals).filter(|(_, total)| total.calls > 0);
        let mut kernels: Vec<KernelTime> = named
            .map(|(kernel, total)| {
                let read_seconds = total.bytes as f64 / peak.read_bytes_per_s;
                let compute_seconds = total.operations as f64 / peak.matrix_operations_per_s();
                KernelTime {
                    name: kernel.name.clone(),
                    calls: total.calls,
                    us: total.seconds * 1e6,
                    bytes: total.bytes,
                    operations: total.operations,
                    share_of_peak: read_seconds.max(compute_seconds) / total.seconds.max(1e-9),
                }
            })
            .collect();
        kernels.sort_by(|one, other| other.us.total_cmp(&one.us));
        kernels
    }
}

impl Observer for Stopwatch<'_> {
    fn after_step(&mut self, list: usize, step: usize, seconds: Option<f64>) {
        let seconds = seconds.unwrap_or_else(|| self.last.elapsed().as_secs_f64());
        let list = &self.lists.lists[list];
        let is_head = step >= list.body.len();
        let step = if is_head { &list.head[step - list.body.len()] } else { &list.body[step] };
        // The head sees one row.
        let (rows, positions) = if is_head { (1, 0) } else { (self.rows, self.positions) };
        let cost = &step.cost;
        let total = &mut self.totals[step.kernel as usize];
        total.calls += 1;
        total.seconds += seconds;
        total.bytes +=
            cost.fixed_bytes + cost.bytes_per_row * rows + cost.bytes_per_row_and_position * positions;
        total.operations += cost.operations_per_row * rows + cost.operations_per_row_and_position * positions;
        self.last = Instant::now();
    }
}

fn table(program: &Program, report: &Report, with_peak: bool) -> String {
    let Report { workload, peak, .. } = report;
    let mut text = format!(
        "{}: a prompt of {} tokens and {} generated, at {} tokens of context, {}\n",
        program.manifest().model.name,
        workload.prompt,
        workload.generate,
        workload.depth,
        report.hardware
    );
    if with_peak {
        let gigabytes = peak.read_bytes_per_s / 1e9;
        let _ = write!(text, "peak: {gigabytes:.1} GB/s read ({})", peak.best_read);
        let rates = [
            ("f32", Some(peak.operations_per_s)),
            ("bf16", peak.bf16_operations_per_s),
            ("int8", peak.int8_operations_per_s),
        ];
        for (element, rate) in rates {
            if let Some(rate) = rate {
                let _ = write!(text, ", {:.1} GFLOP/s in {element}", rate / 1e9);
            }
        }
        text.push('\n');
    }
    let width = report.kernels.iter().map(|kernel| kernel.name.len()).max().unwrap_or(0).max(6);
    let _ = writeln!(
        text,
        "{:<width$} {:>7} {:>11} {:>6} {:>8} {:>9} {:>8}",
        "kernel", "calls", "µs", "time", "GB/s", "GFLOP/s", "of peak"
    );
    let all_us: f64 = report.kernels.iter().map(|kernel| kernel.us).sum();
    for kernel in &report.kernels {
        let nanoseconds = (kernel.us * 1e3).max(1.0);
        let _ = writeln!(
            text,
            "{:<width$} {:>7} {:>11.1} {:>5.1}% {:>8.2} {:>9.2} {:>7.1}%",
            kernel.name,
            kernel.calls,
            kernel.us,
            100.0 * kernel.us / all_us.max(1e-9),
            kernel.bytes as f64 / nanoseconds,
            kernel.operations as f64 / nanoseconds,
            100.0 * kernel.share_of_peak
        );
    }
    text
}

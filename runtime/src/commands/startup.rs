//! `profile --startup`: where the time from exec to the first token goes.
//!
//! Weights are pages of the program's own file that are mapped and not read, so the first prompt pays for
//! every page that it touches first. The same prompt again pays for none: the difference is what the
//! page faults cost.

use std::fmt::Write as _;
use std::time::Instant;

use serde::Serialize;

use super::bench::sample_ids;
use super::{OpenProgram, print_json, start_session};
use crate::arguments::Arguments;
use crate::console::{Console, Failure, OrUsage};
use crate::generate::not_numbers;
use crate::{machine, processor, program, speech};

/// A short question.
const DEFAULT_PROMPT: usize = 16;

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    prompt: usize,
    threads: usize,
    /// What computes: threads, or a device and the code it was given.
    hardware: String,
    startup: Vec<Phase>,
    /// All phases together.
    first_token_us: f64,
    /// The same prompt and token once more, with every page mapped.
    again_us: f64,
    resident_bytes: u64,
}

/// A part of the start.
#[derive(Debug, Serialize)]
struct Phase {
    name: String,
    us: f64,
    /// Pages that the system mapped meanwhile.
    page_faults: u64,
    /// Those of them that it had to read from the disk.
    disk_faults: u64,
}

/// Cuts the time since exec into phases.
struct Clock {
    phases: Vec<Phase>,
    last: Instant,
    last_faults: machine::PageFaults,
}

impl Clock {
    /// Everything before this call is a phase of its own. Until here there is one thread, which hardly
    /// waits for anything: the processor's time is the time.
    fn start() -> Self {
        let faults = machine::page_faults();
        let before = Phase {
            name: "exec and linking".to_owned(),
            us: processor::consumed_us(),
            page_faults: faults.all,
            disk_faults: faults.from_disk,
        };
        Self { phases: vec![before], last: Instant::now(), last_faults: faults }
    }

    /// Ends a phase; reading the counts of faults belongs to none.
    fn end(&mut self, name: impl Into<String>) {
        let us = self.last.elapsed().as_secs_f64() * 1e6;
        let faults = machine::page_faults();
        self.phases.push(Phase {
            name: name.into(),
            us,
            page_faults: faults.all - self.last_faults.all,
            disk_faults: faults.from_disk - self.last_faults.from_disk,
        });
        self.last_faults = faults;
        self.last = Instant::now();
    }
}

/// Starts as `run` does, takes a prompt and a token, and prints what each part took.
pub(super) fn startup(
    arguments: &Arguments,
    open: OpenProgram<'_>,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let mut clock = Clock::start();
    let program = open()?;
    clock.end("header, manifest, tables");
    let mut sampler = speech::sampler(&program, arguments, 0)?;
    clock.end("sampler");
    let mut session = start_session(&program, arguments, console)?;
    clock.end(if program.is_for_device() { "device, code and weights" } else { "memory and threads" });
    let asked = arguments.number("-p", 1, session.context()).or_usage()?;
    let prompt = asked.unwrap_or(DEFAULT_PROMPT.min(session.context()));
    let ids = sample_ids(prompt, speech::allowed_ids(&program)?);
    session.prefill(&ids)?;
    clock.end(format!("prompt of {prompt} tokens"));
    session.sample(&mut sampler)?.ok_or_else(not_numbers)?;
    clock.end("choice of the token");
    let resident_bytes = machine::resident_bytes();
    session.rewind(0);
    let start = Instant::now();
    session.prefill(&ids)?;
    session.sample(&mut sampler)?.ok_or_else(not_numbers)?;
    let report = Report {
        prompt,
        threads: session.threads(),
        hardware: session.hardware_text(),
        first_token_us: clock.phases.iter().map(|phase| phase.us).sum(),
        startup: clock.phases,
        again_us: start.elapsed().as_secs_f64() * 1e6,
        resident_bytes,
    };
    if arguments.has("--json") {
        return print_json(&report, console);
    }
    let weights = program.manifest().weight_bytes;
    console.print(&table(&program.manifest().model.name, weights, &report))
}

fn table(model: &str, weight_bytes: u64, report: &Report) -> String {
    let mut text = format!("{model}: from exec to the first token, {}\n", report.hardware);
    let width = report.startup.iter().map(|phase| phase.name.len()).max().unwrap_or(0).max(24);
    let _ = writeln!(text, "{:<width$} {:>9} {:>12} {:>10}", "phase", "ms", "page faults", "from disk");
    for phase in &report.startup {
        let Phase { name, us, page_faults, disk_faults } = phase;
        let _ = writeln!(text, "{name:<width$} {:>9.2} {page_faults:>12} {disk_faults:>10}", us / 1e3);
    }
    let _ = writeln!(text, "{:<width$} {:>9.2}", "first token", report.first_token_us / 1e3);
    let _ = writeln!(text, "{:<width$} {:>9.2}", "prompt and token again", report.again_us / 1e3);
    let resident = program::bytes_text(report.resident_bytes);
    let _ = writeln!(text, "resident: {resident}; weights: {}", program::bytes_text(weight_bytes));
    text
}

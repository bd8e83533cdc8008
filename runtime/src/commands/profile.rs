//! `profile`: where the time goes, kernel by kernel.

use std::fmt::Write as _;
use std::time::Instant;

use serde::Serialize;

use super::bench::{Workload, sample_ids};
use super::stopwatch::{Stopwatch, TokenBesideReads, median};
use super::{OpenProgram, hardware, print_json, startup};
use crate::arguments::Arguments;
use crate::console::{Console, Failure};
use crate::cuda;
use crate::peak::{self, Peak, Reading};
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
    /// With `--peak` on a processor: the tokens generated, each between two readings of weights.
    generation: Option<Generation>,
    kernels: Vec<KernelTime>,
}

/// Medians over the tokens generated.
#[derive(Debug, Serialize)]
struct Generation {
    /// What the machine read per second around a token.
    read_bytes_per_s: f64,
    /// Time of a token's steps.
    token_us: f64,
    /// The time in which a token's bytes could have been read over the time of its steps.
    share_of_read: f64,
}

impl Generation {
    fn of(tokens: &[TokenBesideReads]) -> Option<Self> {
        let median_of = |value: fn(&TokenBesideReads) -> f64| {
            (!tokens.is_empty()).then(|| median(&mut tokens.iter().map(value).collect::<Vec<f64>>()))
        };
        Some(Self {
            read_bytes_per_s: median_of(|token| token.read_bytes_per_s)?,
            token_us: median_of(|token| token.us)?,
            share_of_read: median_of(|token| token.share_of_read)?,
        })
    }
}

/// All calls of one kernel.
#[derive(Debug, Serialize)]
struct KernelTime {
    name: String,
    calls: u64,
    us: f64,
    bytes: u64,
    operations: u64,
    /// The time that the peak would have taken over the time it took; with `--peak`, for kernels of the tokens
    /// generated, the median of the times that readings around a token would have taken.
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
    program.check_processor()?;
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
    let (mut session, reading) = match (&hardware, peak_samples.first()) {
        (Hardware::Processor(_), Some(peak)) if is_thorough && workload.generate > 0 => {
            program.start_beside_reads(&hardware, peak)?
        }
        _ => (program.start(&hardware)?, None),
    };
    peak_samples.extend(session.device().map(|device| cuda::peak(device.facts())));
    if let Some(reading) = &reading {
        // The first reading may bring weights from the disk.
        session.read_beside(reading)?;
    }
    let new_stopwatch = || Stopwatch::new(program.lists(), Instant::now());
    walk(&mut session, &workload, &ids, &mut new_stopwatch(), None)?;
    let mut stopwatch = new_stopwatch();
    walk(&mut session, &workload, &ids, &mut stopwatch, reading.as_ref())?;
    if is_thorough {
        // A machine's peak drifts: the work stands between two samples of it.
        peak_samples.extend(measure(&hardware)?);
    }
    let best = peak_samples.iter().cloned().reduce(Peak::best);
    let peak = best.expect("the peak was taken before the work");
    let mut kernels: Vec<KernelTime> = stopwatch
        .kernels(&peak)
        .map(|(name, total, share_of_peak)| KernelTime {
            name: name.to_owned(),
            calls: total.calls,
            us: total.seconds * 1e6,
            bytes: total.bytes,
            operations: total.operations,
            share_of_peak,
        })
        .collect();
    kernels.sort_by(|one, other| other.us.total_cmp(&one.us));
    let generation = Generation::of(&stopwatch.tokens_beside_reads().collect::<Vec<_>>());
    let us: f64 = kernels.iter().map(|kernel| kernel.us).sum();
    let steps = stopwatch.passes() as u64;
    let step_us = us / steps.max(1) as f64;
    let hardware = session.hardware_text();
    let report = Report { workload, hardware, peak, peak_samples, steps, step_us, generation, kernels };
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
    reading: Option<&Reading>,
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
    let read = |session: &mut Session| reading.map(|reading| session.read_beside(reading)).transpose();
    let mut before = read(session)?;
    for &token in &after[..workload.generate] {
        stopwatch.start(session.position(), 1);
        session.prefill_observed(&[token], stopwatch)?;
        let behind = read(session)?;
        if let (Some(before), Some(behind)) = (before, behind) {
            stopwatch.stand_beside(f64::midpoint(before, behind));
        }
        before = behind;
    }
    Ok(())
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
    if let Some(generation) = &report.generation {
        let _ = writeln!(
            text,
            "a token (median): {:.0} µs, {:.1} % of the {:.1} GB/s that were read before and behind it",
            generation.token_us,
            100.0 * generation.share_of_read,
            generation.read_bytes_per_s / 1e9
        );
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

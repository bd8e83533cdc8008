//! `qwen2c build`: the pipeline, then the report.

use std::io::Write;

use qwen2c_request::Target;

use crate::arguments::BuildArguments;
use crate::failure::Failure;
use crate::machine;
use crate::output::remove_on_interrupt;
use crate::pipeline::{BuildOutcome, build};
use crate::prediction::{DecodePrediction, MemoryTable};
use crate::quant::Quant;
use crate::report::{Report, notes};
use crate::request::BuildRequest;
use crate::units;

/// Builds a program and reports on it.
///
/// # Errors
///
/// When the arguments are wrong or the build fails.
pub(crate) fn run(arguments: &BuildArguments, out: &mut dyn Write) -> Result<(), Failure> {
    let request = BuildRequest::resolve(arguments)?;
    // Without a handler an interrupted build leaves its unfinished file; the build itself is as good.
    let _ = remove_on_interrupt();
    let outcome = build(&request)?;
    if !request.quiet {
        report(&request, &outcome, out)?;
    }
    if request.time_passes {
        writeln!(out, "{}", outcome.timings)?;
    }
    Ok(())
}

fn report(request: &BuildRequest, outcome: &BuildOutcome, out: &mut dyn Write) -> Result<(), Failure> {
    let plan = &outcome.planned.plan;
    let bandwidth_bytes_per_s = machine::read_bandwidth_bytes_per_s();
    let mut notes = notes(&outcome.description, outcome.has_tokenizer);
    notes.extend(on_quantization(request, outcome));
    let memory = MemoryTable::new(plan);
    notes.extend(too_large_for_this_machine(&memory, machine::memory_bytes()));
    if !request.emit.is_empty() {
        let folder = request.emit_path(&outcome.output);
        let stages = units::count(request.emit.len() as u64, "stage");
        notes.push(format!("the text of {stages} lies in `{}`", folder.display()));
    }
    let report = Report {
        manifest: &outcome.manifest,
        vector_lanes: request.target.description().vector_lanes,
        kernels: outcome.planned.schedule.kernels.len(),
        decode_steps: plan.lists.first().map_or(0, |list| list.body.len() + list.head.len()),
        passes: &outcome.planned.passes,
        losses: &outcome.losses,
        memory,
        prediction: DecodePrediction::new(plan, outcome.planned.context, bandwidth_bytes_per_s),
        output: &outcome.output,
        locator: outcome.locator,
        duration_us: outcome.duration_us,
        notes: &notes,
    };
    for line in report.lines() {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// A remark where the quantization is not what the user named, or makes the program larger than the
/// checkpoint.
fn on_quantization(request: &BuildRequest, outcome: &BuildOutcome) -> Option<String> {
    let is_quantized = !outcome.description.quantized_tensors.is_empty();
    match outcome.quant {
        Quant::None if is_quantized => Some(
            "the checkpoint's quantized weights were widened: `--quant keep` makes the program smaller and faster"
                .to_owned(),
        ),
        Quant::Made(_) if request.quant_is_default => Some(format!(
            "weights are quantized to {}, the default for this size: `--quant none` keeps their values",
            outcome.quant
        )),
        _ => None,
    }
}

/// A remark where the program could not run here; it may be meant for another machine.
fn too_large_for_this_machine(memory: &MemoryTable, machine_bytes: u64) -> Option<String> {
    (memory.total_bytes() > machine_bytes).then(|| {
        let (needed, found) = (units::bytes(memory.total_bytes()), units::bytes(machine_bytes));
        format!("the program needs {needed} of memory, this machine has {found}: see `qwen2c plan` for a context that fits")
    })
}

//! `qwen2c build`: the pipeline, then the report.

use std::io::Write;

use qwen2c_format::{DeviceImage, ImageKind};
use qwen2c_request::Target;
use qwen2c_targets::AnyTarget;

use crate::arguments::BuildArguments;
use crate::device::AssumedMachine;
use crate::failure::Failure;
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
    let assumed = AssumedMachine::choose(&request.target, None)?;
    let mut notes = notes(&outcome.description, outcome.has_tokenizer);
    notes.extend(on_quantization(request, outcome));
    let memory = MemoryTable::new(plan);
    notes.extend(too_large_for(&memory, &assumed));
    if !request.emit.is_empty() {
        let folder = request.emit_path(&outcome.output);
        let stages = units::count(request.emit.len() as u64, "stage");
        notes.push(format!("the text of {stages} lies in `{}`", folder.display()));
    }
    let report = Report {
        manifest: &outcome.manifest,
        code: describe_code(request, outcome),
        kernels: outcome.planned.schedule.kernels.len(),
        decode_steps: plan.lists.first().map_or(0, |list| list.body.len() + list.head.len()),
        passes: &outcome.planned.passes,
        losses: &outcome.losses,
        memory,
        prediction: DecodePrediction::new(&outcome.planned.schedule, plan, outcome.planned.context, assumed),
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

/// What the program's code is: vector width of a processor, images for devices.
fn describe_code(request: &BuildRequest, outcome: &BuildOutcome) -> String {
    if let AnyTarget::Cpu(_) = request.target {
        return format!("{} lanes of f32", request.target.description().vector_lanes);
    }
    let name = |image: &DeviceImage| match image.kind {
        ImageKind::Ptx => format!("PTX for sm_{}", image.architecture),
        ImageKind::Cubin => format!("a cubin for sm_{}", image.architecture),
    };
    outcome.images.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// A remark where the program could not run here; it may be meant for another machine.
fn too_large_for(memory: &MemoryTable, machine: &AssumedMachine) -> Option<String> {
    (memory.total_bytes() > machine.memory_bytes).then(|| {
        let (needed, found) = (units::bytes(memory.total_bytes()), units::bytes(machine.memory_bytes));
        let name = &machine.name;
        format!(
            "the program needs {needed} of memory, {name} has {found}: see `qwen2c plan` for a context that fits"
        )
    })
}

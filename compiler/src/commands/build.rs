//! `qwen2c build`: the pipeline, then the report.

use std::io::Write;

use qwen2c_request::Target;

use crate::arguments::BuildArguments;
use crate::failure::Failure;
use crate::machine;
use crate::output::remove_on_interrupt;
use crate::pipeline::{BuildOutcome, build};
use crate::prediction::{DecodePrediction, MemoryTable};
use crate::report::{Report, notes};
use crate::request::BuildRequest;

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
    let notes = notes(&outcome.description, outcome.has_tokenizer, request.quant_is_default);
    let report = Report {
        manifest: &outcome.manifest,
        vector_lanes: request.target.description().vector_lanes,
        kernels: outcome.planned.schedule.kernels.len(),
        decode_steps: plan.lists.first().map_or(0, |list| list.body.len() + list.head.len()),
        passes: &outcome.planned.passes,
        memory: MemoryTable::new(plan),
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

//! `qwen2c plan`: what a build would need and reach, without building.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;

use console::style;
use qwen2c_checkpoint::{ModelDescription, describe_model, open_model_at_hand, parameter_count};
use qwen2c_format::Diagnostic;
use qwen2c_graph::{WeightStorage, settle_minima};
use qwen2c_request::{Quantization, Target};
use serde::Serialize;

use crate::arguments::PlanArguments;
use crate::device::AssumedMachine;
use crate::emit::EmittedText;
use crate::failure::Failure;
use crate::pipeline::plan_model;
use crate::prediction::{DecodePrediction, MemoryTable};
use crate::program::BUILD;
use crate::prompt_prediction::{PromptPrediction, prompt_predictions};
use crate::report::{key, memory_table, prediction_lines, prompt_lines, section};
use crate::request::BuildRequest;
use crate::table::{Side, Table};
use crate::timing::Timings;
use crate::units;

/// What `plan` prints, and with `--json` in this form.
#[derive(Debug, Serialize)]
struct PlanReport {
    model: String,
    parameters: u64,
    target: String,
    quant: String,
    dtype: &'static str,
    context: u64,
    model_maximum_context: u64,
    memory: MemoryTable,
    /// Bytes of weights if every group that may get a minimum wanted one; absent where a build would write
    /// `memory.weight_bytes` for certain.
    #[serde(skip_serializing_if = "Option::is_none")]
    most_weight_bytes: Option<u64>,
    total_bytes: u64,
    machine_memory_bytes: u64,
    largest_context: u64,
    prediction: DecodePrediction,
    prompts: Vec<PromptPrediction>,
}

/// Prints the plan of a build.
///
/// # Errors
///
/// When the arguments are wrong or the model cannot be served.
pub(crate) fn run(arguments: &PlanArguments, out: &mut dyn Write) -> Result<(), Failure> {
    let request = BuildRequest::resolve(&arguments.build)?;
    let mut machine = AssumedMachine::choose(&request.target, arguments.device.as_deref())?;
    match arguments.bandwidth {
        Some(rate) if rate.is_finite() && rate > 0.0 => machine.bandwidth_bytes_per_s = rate * 1e9,
        Some(rate) => {
            return Err(Failure::Usage(
                Diagnostic::new("the bandwidth is not a positive number")
                    .at("`--bandwidth`")
                    .found(rate.to_string()),
            ));
        }
        None => {}
    }
    let mut timings = Timings::default();
    let report = report(&request, machine, &mut timings)?;
    if arguments.json {
        let text = serde_json::to_string_pretty(&report).expect("a plan's report has no maps with odd keys");
        writeln!(out, "{text}")?;
    } else {
        for line in lines(&report) {
            writeln!(out, "{line}")?;
        }
        if request.time_passes {
            writeln!(out, "{timings}")?;
        }
    }
    Ok(())
}

fn report(
    request: &BuildRequest,
    machine: AssumedMachine,
    timings: &mut Timings,
) -> Result<PlanReport, Failure> {
    let description = describe_model(&request.model_request())?;
    let request = &request.for_model(&description)?;
    let config = &description.config;
    let output = request.output_path(&config.name);
    let emitted = EmittedText::new(request.emit_path(&output), request.emit.clone());
    let storage = request.quant.storage(&description);
    let settled = timings.measure("sample", || settled_storage(request, &description, &storage));
    let most_weight_bytes = match (&settled, &storage) {
        (None, WeightStorage::Quantized(quantization)) => {
            let with_minima = WeightStorage::Quantized(Quantization { has_minimum: true, ..*quantization });
            let unemitted = EmittedText::new(PathBuf::new(), BTreeSet::new());
            let most = plan_model(request, &description, &with_minima, &unemitted, &mut Timings::default())?;
            Some(most.plan.weight_bytes)
        }
        _ => None,
    };
    let planned = plan_model(request, &description, &settled.unwrap_or(storage), &emitted, timings)?;
    let memory = MemoryTable::new(&planned.plan);
    let machine_memory_bytes = machine.memory_bytes;
    let prompts = prompt_predictions(&planned.schedule, &planned.plan, planned.context, &machine);
    Ok(PlanReport {
        model: config.name.clone(),
        parameters: parameter_count(config),
        target: request.target.description().name.clone(),
        quant: request.quant.to_string(),
        dtype: request.dtype.name(),
        context: planned.context,
        model_maximum_context: config.max_context,
        memory,
        most_weight_bytes,
        total_bytes: memory.total_bytes(),
        machine_memory_bytes,
        largest_context: memory.largest_context(planned.context, config.max_context, machine_memory_bytes),
        prediction: DecodePrediction::new(&planned.schedule, &planned.plan, planned.context, machine),
        prompts,
    })
}

/// The storage that a build would settle on, from the tensors it would read; none where they are not at hand:
/// nothing is fetched for a plan, and a directory may hold a configuration alone.
fn settled_storage(
    request: &BuildRequest,
    description: &ModelDescription,
    storage: &WeightStorage,
) -> Option<WeightStorage> {
    if !matches!(storage, WeightStorage::Quantized(_)) {
        return Some(storage.clone());
    }
    // What is wrong with the tensors a build will say.
    let tensors = open_model_at_hand(&request.model_request()).ok()??.tensors;
    settle_minima(&description.config, storage.clone(), tensors.as_ref()).ok()
}

fn lines(report: &PlanReport) -> Vec<String> {
    let mut table = Table::new(&[Side::Left, Side::Left]);
    let model =
        format!("{}, {} parameters", style(&report.model).bold(), units::parameters(report.parameters));
    table.row([key("model"), model]);
    table.row([key("target"), format!("{}, quantization {}, {}", report.target, report.quant, report.dtype)]);
    let maximum = units::grouped(report.model_maximum_context);
    table.row([key("context"), format!("{} of {maximum} positions", units::grouped(report.context))]);
    let mut lines = vec![String::new(), format!("  {}", style(BUILD).bold()), String::new()];
    lines.extend(table.lines(2));
    let mut memory = memory_table(&report.memory, report.context);
    memory.row([
        style("in all").bold().to_string(),
        style(units::bytes(report.total_bytes)).bold().to_string(),
    ]);
    section(&mut lines, "memory", memory.lines(4));
    if let Some(most) = report.most_weight_bytes {
        lines.push(format!("    the weights are up to {} if their groups want minima", units::bytes(most)));
    }
    let machine = units::bytes(report.machine_memory_bytes);
    let name = &report.prediction.machine.name;
    lines.push(match report.largest_context {
        0 => format!("    the weights do not fit the {machine} of {name}"),
        context => format!("    {} positions fit the {machine} of {name}", units::grouped(context)),
    });
    section(&mut lines, "generation", prediction_lines(&report.prediction, report.context));
    if !report.prompts.is_empty() {
        section(&mut lines, "prompts", prompt_lines(&report.prompts));
    }
    lines.push(String::new());
    lines
}

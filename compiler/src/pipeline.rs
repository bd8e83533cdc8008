//! The build, from top to bottom: checkpoint → graph → kernels → program.
//!
//! [`plan_model`] is the half that `qwen2c plan` shares: it knows every shape, kernel and byte, and
//! reads no tensor. [`build`] goes on to machine code and weights.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Instant;

use qwen2c_checkpoint::tokenizer::compile_tokenizer;
use qwen2c_checkpoint::{ModelDescription, OpenedModel, open_model, print_config_table};
use qwen2c_format::{
    DeviceCode, DeviceImage, Diagnostic, Locator, Manifest, WeightTable, encode_program_head, patch_locator,
};
use qwen2c_graph::passes::{PassContext, PassReport, run_passes};
use qwen2c_graph::plan::{Plan, plan, print_plan, verify_plan};
use qwen2c_graph::schedule::{ListSpec, Schedule, print_schedule, schedule};
use qwen2c_graph::{Graph, GraphOptions, WeightStorage, build_graph, print_graph, settle_minima};
use qwen2c_request::{Target, TargetDescription};
use qwen2c_targets::{AnyTarget, CompiledKernels, KeepText, KernelSource, compile_kernels};

use crate::checked_source::CheckedSource;
use crate::emit::EmittedText;
use crate::failure::Failure;
use crate::link::link;
use crate::output::Output;
use crate::program::{ManifestParts, SLOTS, device_code, manifest, manifest_text, step_lists, weight_entry};
use crate::progress::{Download, Progress};
use crate::ptxas;
use crate::quant::Quant;
use crate::quantization_loss::{ClassLoss, losses};
use crate::request::BuildRequest;
use crate::self_test;
use crate::stage::Stage;
use crate::timing::Timings;
use crate::weights::{unreadable, write_weights};

/// Rows that go through the head together: 512 rows of logits would be hundreds of megabytes.
const LOGIT_ROWS: u64 = 8;

/// A model whose every kernel and byte is known.
pub(crate) struct PlannedModel {
    /// Positions served.
    pub(crate) context: u64,
    /// What the passes did to the list that serves one row.
    pub(crate) passes: Vec<PassReport>,
    /// Kernels.
    pub(crate) schedule: Schedule,
    /// Addresses.
    pub(crate) plan: Plan,
}

/// What a finished build can tell.
pub(crate) struct BuildOutcome {
    /// The program's facts.
    pub(crate) manifest: Manifest,
    /// The description it was made from.
    pub(crate) description: ModelDescription,
    /// Kernels and plan.
    pub(crate) planned: PlannedModel,
    /// Where the program lies.
    pub(crate) output: PathBuf,
    /// Where its parts lie.
    pub(crate) locator: Locator,
    /// How the weights are stored.
    pub(crate) quant: Quant,
    /// What that lost.
    pub(crate) losses: Vec<ClassLoss>,
    /// What devices run.
    pub(crate) images: Vec<DeviceImage>,
    /// Whether a tokenizer is in it.
    pub(crate) has_tokenizer: bool,
    /// Where the time went.
    pub(crate) timings: Timings,
    /// All of the time.
    pub(crate) duration_us: u64,
}

/// Builds a program.
///
/// # Errors
///
/// When the model cannot be read or served, or the program not be written; nothing is left then.
pub(crate) fn build(request: &BuildRequest) -> Result<BuildOutcome, Failure> {
    let start = Instant::now();
    let mut timings = Timings::default();

    // Checkpoint: configuration, tokenizer, and a source of tensors that yields finite numbers.
    let mut download = Download::new(request.quiet);
    let OpenedModel { mut description, tensors } = timings
        .measure("checkpoint", || open_model(&request.model_request(), &mut |event| download.show(event)))?;
    let request = &request.for_model(&description)?;
    let source = CheckedSource::new(tensors.as_ref(), request.dtype);
    let output = request.output_path(&description.config.name);
    let emitted = EmittedText::new(request.emit_path(&output), request.emit.clone());
    let tokenizer = timings.measure("tokenizer", || compile_tokenizer(&description.tokenizer))?;
    if let Some(tokenizer) = &tokenizer {
        description.generation.bos_id = description.generation.bos_id.or(tokenizer.bos_id);
    }

    // Graph, passes, schedule, plan.
    let storage = timings.measure("sample", || {
        settle_minima(&description.config, request.quant.storage(&description), &source)
            .map_err(|error| unreadable(&error.weight, error.cause))
    })?;
    let planned = plan_model(request, &description, &storage, &emitted, &mut timings)?;

    // The file that will be written, so that a full disk is found out before the work.
    let unfinished = Output::create(&output)?;
    unfinished.require_space(planned.plan.weight_bytes)?;

    // Machine code.
    let kernels = compile(request, &planned.schedule, &emitted, &mut timings)?;
    let elf = timings.measure("link", || link(&kernels.object))?;
    let device_code = timings.measure("assemble", || with_cubins(request, device_code(&kernels)))?;

    // What the program can check itself by.
    let progress = Progress::spinner("computing the self-test's reference", request.quiet);
    let self_test = timings.measure("self_test", || {
        self_test::record(&description.config, request.rounding(storage), planned.context, &source)
    })?;
    drop(progress);

    // The file.
    let parts = ManifestParts {
        description: &description,
        target: request.target.description(),
        dtype: request.dtype,
        quant: request.quant,
        context: planned.context,
        passes: &planned.passes,
        plan: &planned.plan,
    };
    let manifest = manifest(&parts, Some(self_test));
    emitted.stage(Stage::Manifest, "json", || manifest_text(&manifest))?;
    let program = ProgramParts {
        elf,
        manifest: &manifest,
        planned: &planned,
        tokenizer: tokenizer.as_ref().map(|tokenizer| tokenizer.table_bytes.as_slice()),
        kernels: &kernels,
        device_code: &device_code,
    };
    let (locator, losses) =
        timings.measure("weights", || write_program(program, &source, unfinished, request.quiet))?;

    let duration_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    let has_tokenizer = tokenizer.is_some();
    Ok(BuildOutcome {
        manifest,
        description,
        planned,
        output,
        locator,
        quant: request.quant,
        losses,
        images: device_code.images,
        has_tokenizer,
        timings,
        duration_us,
    })
}

/// Goes from the configuration to the plan.
///
/// # Errors
///
/// When the context or the target does not suit the model.
pub(crate) fn plan_model(
    request: &BuildRequest,
    description: &ModelDescription,
    storage: &WeightStorage,
    emitted: &EmittedText,
    timings: &mut Timings,
) -> Result<PlannedModel, Failure> {
    let config = &description.config;
    let context = request.settle_context(config.max_context)?;
    emitted.stage(Stage::Config, "txt", || print_config_table(&description.fields))?;

    // One graph serves decoding and prompts; the self-test has a short one.
    let options = |layers| GraphOptions {
        dtype: request.dtype,
        storage: storage.clone(),
        context,
        slots: SLOTS,
        layers,
    };
    let (model, short) = timings.measure("graph", || {
        (build_graph(config, &options(None)), build_graph(config, &options(Some(self_test::layers(config)))))
    });
    emitted.stage(Stage::Graph, "txt", || print_graph(&model))?;

    let mut lists = lists(request.target.description(), (model, short), context);
    let passes = fuse(request, description, &mut lists, timings)?;
    for list in &lists {
        let name = if list.name == "decode" { "txt".to_owned() } else { format!("{}.txt", list.name) };
        emitted.stage(Stage::Fused, &name, || print_graph(&list.graph))?;
    }

    let target: &dyn Target = &request.target;
    let schedule = timings
        .measure("scheduled", || schedule(lists, target))
        .map_err(|error| Diagnostic::new(error.to_string()))?;
    emitted.stage(Stage::Scheduled, "txt", || print_schedule(&schedule))?;

    let plan = timings
        .measure("plan", || plan(&schedule, target))
        .map_err(|error| Diagnostic::new(error.to_string()))?;
    emitted.stage(Stage::Plan, "txt", || print_plan(&plan))?;
    timings
        .measure("verify_plan", || verify_plan(&plan))
        .map_err(|violation| Failure::Bug(Diagnostic::new(format!("the plan is wrong: {violation}"))))?;
    Ok(PlannedModel { context, passes, schedule, plan })
}

/// A list for one row, those for prompts, and the self-test's with the sizes, and so the kernels, of the first
/// of these.
fn lists(target: &TargetDescription, (model, short): (Graph, Graph), context: u64) -> Vec<ListSpec> {
    let logit_rows = LOGIT_ROWS.min(context);
    let prompt_rows = prompt_rows(target, context);
    let mut lists = vec![list("decode", model.clone(), 1, 1)];
    for (index, &rows) in prompt_rows.iter().enumerate() {
        let name = if index == 0 { "prefill".to_owned() } else { format!("prefill_{rows}") };
        lists.push(list(&name, model.clone(), rows, logit_rows));
    }
    lists.push(list("self_test", short, prompt_rows[0], logit_rows));
    lists
}

/// Most rows of the lists for prompts, ascending: no prompt is longer than the context.
fn prompt_rows(target: &TargetDescription, context: u64) -> Vec<u64> {
    let mut rows: Vec<u64> = target.prompt_rows.iter().map(|rows| context.min(*rows)).collect();
    rows.dedup();
    rows
}

fn list(name: &str, mut graph: Graph, max_rows: u64, max_logit_rows: u64) -> ListSpec {
    name.clone_into(&mut graph.name);
    ListSpec { name: name.to_owned(), graph, max_rows, max_logit_rows }
}

/// Runs the passes over every list; returns what they did to the first, which serves one row.
fn fuse(
    request: &BuildRequest,
    description: &ModelDescription,
    lists: &mut [ListSpec],
    timings: &mut Timings,
) -> Result<Vec<PassReport>, Failure> {
    let disabled: BTreeSet<&str> = request.disabled_passes.iter().copied().collect();
    let start = Instant::now();
    let mut reports = Vec::new();
    for list in lists {
        let context = PassContext {
            config: &description.config,
            target: request.target.description(),
            max_rows: list.max_rows,
        };
        let of_list = run_passes(&mut list.graph, &context, &disabled, &mut |_, _, _| {})
            .map_err(|error| Failure::Bug(refused_by_verifier(&error)))?;
        reports.push(of_list);
    }
    timings.enter("fused", start.elapsed());
    for index in 0..reports[0].len() {
        let duration_us = reports.iter().map(|of_list| of_list[index].duration_us).sum();
        timings.enter_part(reports[0][index].name, duration_us);
    }
    Ok(reports.swap_remove(0))
}

fn refused_by_verifier(error: &dyn std::error::Error) -> Diagnostic {
    let diagnostic = Diagnostic::new(error.to_string());
    match error.source() {
        Some(cause) => diagnostic.cause(cause.to_string()),
        None => diagnostic,
    }
}

/// Compiles the kernels to one object.
fn compile(
    request: &BuildRequest,
    schedule: &Schedule,
    emitted: &EmittedText,
    timings: &mut Timings,
) -> Result<CompiledKernels, Failure> {
    let persistent = schedule.lists.iter().filter(|list| list.graph.is_persistent);
    let persistent: BTreeSet<usize> = persistent.flat_map(|list| list.kernel_of.iter().copied()).collect();
    let sources: Vec<KernelSource<'_>> = schedule
        .kernels
        .iter()
        .enumerate()
        .map(|(index, kernel)| KernelSource {
            name: &kernel.name,
            request: &kernel.request,
            layouts: &kernel.layouts,
            is_persistent: persistent.contains(&index),
        })
        .collect();
    let keep = KeepText {
        mlir: emitted.wants(Stage::Mlir),
        llvm: emitted.wants(Stage::Llvm),
        asm: emitted.wants(Stage::Asm) || emitted.wants(Stage::Ptx),
    };
    let progress = Progress::spinner(&format!("compiling {} kernels", sources.len()), request.quiet);
    let compiled = timings
        .measure("kernels", || compile_kernels(&request.target, &sources, keep))
        .map_err(|error| Failure::Bug(Diagnostic::new(error.to_string())))?;
    drop(progress);
    timings.enter_part("mlir", compiled.mlir_us);
    timings.enter_part("llvm", compiled.llvm_us);
    for text in &compiled.texts {
        emitted.kernel(Stage::Mlir, &text.name, "mlir", text.mlir.as_deref())?;
        emitted.kernel(Stage::Llvm, &text.name, "ll", text.llvm.as_deref())?;
        match request.target {
            AnyTarget::Cpu(_) => emitted.kernel(Stage::Asm, &text.name, "s", text.asm.as_deref())?,
            AnyTarget::Cuda(_) => emitted.kernel(Stage::Ptx, &text.name, "ptx", text.asm.as_deref())?,
        }
    }
    Ok(compiled)
}

/// The device code with a cubin behind each PTX image, where there is an assembler.
fn with_cubins(request: &BuildRequest, mut code: DeviceCode) -> Result<DeviceCode, Failure> {
    if code.images.is_empty() {
        return Ok(code);
    }
    if let Some(assembler) = request.assembler() {
        let cubins: Vec<DeviceImage> =
            code.images.iter().map(|image| ptxas::assemble(&assembler, image)).collect::<Result<_, _>>()?;
        code.images.extend(cubins);
    }
    Ok(code)
}

/// What a program's file is made of, besides the weights.
struct ProgramParts<'a> {
    elf: Vec<u8>,
    manifest: &'a Manifest,
    planned: &'a PlannedModel,
    tokenizer: Option<&'a [u8]>,
    kernels: &'a CompiledKernels,
    device_code: &'a DeviceCode,
}

/// Writes image, weights and head, and gives the file its name. Tells where things lie and what
/// quantization lost.
fn write_program(
    mut program: ProgramParts<'_>,
    source: &CheckedSource<'_>,
    output: Output,
    quiet: bool,
) -> Result<(Locator, Vec<ClassLoss>), Failure> {
    let PlannedModel { schedule, plan, .. } = program.planned;
    let lists = step_lists(schedule, plan, program.kernels);
    let head = |table: &WeightTable| {
        encode_program_head(program.manifest, &lists, table, program.tokenizer, program.device_code)
    };

    // The hashes of the weights are known last, but their table's length is known first.
    let unhashed =
        WeightTable { entries: plan.weights.iter().map(|weight| weight_entry(weight, [0; 32])).collect() };
    let head_bytes = head(&unhashed).len() as u64;
    let locator = Locator::place(program.elf.len() as u64, head_bytes, plan.weight_bytes);
    patch_locator(&mut program.elf, &locator).map_err(Failure::Bug)?;

    output.require_space(locator.file_bytes)?;
    let file = output.file();
    let progress = Progress::bytes("writing weights", plan.weight_bytes, quiet);
    let written = write_weights(&plan.weights, source, file, locator.weights_offset, &progress)?;
    drop(progress);
    let losses =
        losses(plan.weights.iter().map(|placed| &placed.weight).zip(written.iter().map(|(_, e)| *e)));
    let entries = written.into_iter().map(|(entry, _)| entry).collect();
    file.set_len(locator.file_bytes)
        .and_then(|()| file.write_all_at(&program.elf, 0))
        .and_then(|()| file.write_all_at(&head(&WeightTable { entries }), locator.header_offset))
        .map_err(|error| output.failure(&error))?;
    output.complete()?;
    Ok((locator, losses))
}

#[cfg(test)]
mod tests {
    use qwen2c_request::Target;
    use qwen2c_targets::resolve_target;

    use super::prompt_rows;

    #[test]
    fn lists_for_prompts_end_with_the_context() {
        let rows = |target: &str, context| {
            prompt_rows(resolve_target(&[target]).expect("a target").description(), context)
        };
        assert_eq!(rows("x86-64-v3", 8192), [256]);
        assert_eq!(rows("sm_80", 8192), [256, 1024, 2048]);
        assert_eq!(rows("sm_80", 1024), [256, 1024]);
        assert_eq!(rows("sm_80", 300), [256, 300]);
        assert_eq!(rows("sm_80", 100), [100]);
    }
}

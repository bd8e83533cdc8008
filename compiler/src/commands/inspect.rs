//! `qwen2c inspect`: what a file holds, an emitted program or a checkpoint.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use qwen2c_checkpoint::{Checkpoint, TokenizerSource, parameter_count, print_config_table};
use qwen2c_format::{GenerationDefaults, KernelInfo, PersistentKernel, ProgramFile};
use serde::Serialize;

use crate::arguments::InspectArguments;
use crate::failure::Failure;
use crate::program::manifest_text;
use crate::report::{describe_model, key, section};
use crate::table::{Side, Table};
use crate::units;

/// First bytes of an executable.
const ELF_MAGIC: [u8; 4] = *b"\x7fELF";

/// Prints what the file holds.
///
/// # Errors
///
/// When it is neither an emitted program nor a checkpoint, or is damaged.
pub(crate) fn run(arguments: &InspectArguments, out: &mut dyn Write) -> Result<(), Failure> {
    let path = &arguments.file;
    if path.is_file() && starts_with_elf(path)? {
        let file = File::open(path).map_err(|error| Failure::file("open the program", path, &error))?;
        let program =
            ProgramFile::read(&file).map_err(|error| error.diagnostic().at(path.display().to_string()))?;
        if arguments.json {
            write!(out, "{}", manifest_text(&program.manifest))?;
            return Ok(());
        }
        return print(out, &program_lines(&program));
    }
    let checkpoint = Checkpoint::open(path)?;
    if arguments.json {
        write!(out, "{}", checkpoint_json(&checkpoint))?;
        return Ok(());
    }
    print(out, &checkpoint_lines(&checkpoint))
}

fn starts_with_elf(path: &Path) -> Result<bool, Failure> {
    let mut start = [0; 4];
    let mut file = File::open(path).map_err(|error| Failure::file("open the file", path, &error))?;
    Ok(file.read_exact(&mut start).is_ok() && start == ELF_MAGIC)
}

fn print(out: &mut dyn Write, lines: &[String]) -> Result<(), Failure> {
    for line in lines {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

fn program_lines(program: &ProgramFile) -> Vec<String> {
    let manifest = &program.manifest;
    let mut facts = Table::new(&[Side::Left, Side::Left]);
    facts.row([key("build"), manifest.build.clone()]);
    facts.row([key("model"), describe_model(&manifest.model)]);
    let features = match manifest.required_features.join(" ") {
        none if none.is_empty() => none,
        features => format!(" ({features})"),
    };
    facts.row([key("target"), format!("{}{features}", manifest.target)]);
    facts.row([key("types"), format!("{}, quantization {}", manifest.dtype, manifest.quant)]);
    facts.row([key("context"), format!("{} positions", units::grouped(manifest.context))]);
    facts.row([key("weights"), units::exact_bytes(manifest.weight_bytes)]);
    facts.row([key("kv cache"), units::exact_bytes(manifest.kv_cache_bytes)]);
    facts.row([key("arena"), units::exact_bytes(manifest.arena_bytes)]);
    facts.row([
        key("tokenizer"),
        program
            .tokenizer
            .as_ref()
            .map_or_else(|| "none".to_owned(), |tables| units::exact_bytes(tables.len() as u64)),
    ]);
    for image in &program.device_code.images {
        let bytes = units::exact_bytes(image.bytes.len() as u64);
        facts.row([
            key("device code"),
            format!("{} for sm_{}, {bytes}", image.kind.name(), image.architecture),
        ]);
    }
    let mut lines = facts.lines(0);

    let mut lists = Table::new(&[Side::Left, Side::Right, Side::Right, Side::Right]);
    lists.row(["list", "rows", "steps of the body", "of the head"]);
    for list in &program.lists.lists {
        lists.row([
            list.name.clone(),
            list.max_rows.to_string(),
            list.body.len().to_string(),
            list.head.len().to_string(),
        ]);
    }
    section(&mut lines, "step lists", lists.lines(4));
    let persistent = program.lists.persistent.iter().map(|kernel| {
        let PersistentKernel { symbol, threads, shared_bytes, .. } = kernel;
        format!(
            "    {symbol}: a token in one launch, {threads} threads, {shared_bytes} bytes of shared memory"
        )
    });
    let kernels = program.lists.kernels.iter().flat_map(kernel_lines).chain(persistent).collect();
    section(&mut lines, "kernels", kernels);

    let mut weights = Table::new(&[Side::Left, Side::Left, Side::Left, Side::Right, Side::Right]);
    weights.row(["weight", "type", "layout", "offset", "bytes"]);
    for weight in &program.weights.entries {
        weights.row([
            weight.name.clone(),
            weight.ty.clone(),
            weight.layout.clone(),
            weight.offset.to_string(),
            weight.bytes.to_string(),
        ]);
    }
    section(&mut lines, "weights", weights.lines(4));
    lines
}

/// A kernel's name and what a device launches for it.
fn kernel_lines(kernel: &KernelInfo) -> Vec<String> {
    let launches = kernel.launches.iter().map(|launch| {
        format!(
            "        {}: {} blocks for {} rows, {} threads, {} bytes of shared memory",
            launch.symbol, launch.blocks, launch.rows_per_block, launch.threads, launch.shared_bytes
        )
    });
    std::iter::once(format!("    {}", kernel.name)).chain(launches).collect()
}

/// A checkpoint as `inspect --json` shows it.
#[derive(Debug, Serialize)]
struct CheckpointFacts<'a> {
    config: BTreeMap<&'a str, &'a str>,
    parameters: u64,
    stored_bytes: u64,
    generation: &'a GenerationDefaults,
    has_tokenizer: bool,
    chat_template: Option<&'a str>,
}

impl<'a> CheckpointFacts<'a> {
    fn new(checkpoint: &'a Checkpoint) -> Self {
        let description = &checkpoint.description;
        let config =
            description.fields.iter().map(|field| (field.name.as_str(), field.value.as_str())).collect();
        Self {
            config,
            parameters: parameter_count(&description.config),
            stored_bytes: checkpoint.stored_bytes(),
            generation: &description.generation,
            has_tokenizer: !matches!(description.tokenizer, TokenizerSource::Absent),
            chat_template: description.chat_template.as_deref(),
        }
    }
}

fn checkpoint_json(checkpoint: &Checkpoint) -> String {
    let facts = CheckpointFacts::new(checkpoint);
    serde_json::to_string_pretty(&facts).expect("a checkpoint's facts have text for keys") + "\n"
}

fn checkpoint_lines(checkpoint: &Checkpoint) -> Vec<String> {
    let facts = CheckpointFacts::new(checkpoint);
    let mut table = Table::new(&[Side::Left, Side::Left]);
    let has = |present| if present { "yes" } else { "no" }.to_owned();
    table.row([key("parameters"), units::grouped(facts.parameters)]);
    table.row([key("tensors"), units::exact_bytes(facts.stored_bytes)]);
    table.row([key("tokenizer"), has(facts.has_tokenizer)]);
    table.row([key("chat template"), has(facts.chat_template.is_some())]);
    let mut lines = table.lines(0);
    let config = print_config_table(&checkpoint.description.fields);
    section(&mut lines, "config", config.lines().map(|line| format!("    {line}")).collect());
    lines
}

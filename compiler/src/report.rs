//! The report at the end of a build: the face of the project.

use std::path::Path;

use console::style;
use qwen2c_checkpoint::ModelDescription;
use qwen2c_format::{Locator, Manifest, ModelSummary};
use qwen2c_graph::passes::PassReport;

use crate::prediction::{DecodePrediction, MemoryTable};
use crate::program::BUILD;
use crate::table::{Side, Table};
use crate::units;

/// What the report tells. All of it is known before the first line is written, so that tests can print
/// a report without a build.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report<'a> {
    /// The program's facts.
    pub(crate) manifest: &'a Manifest,
    /// `f32` lanes of the target's vector registers.
    pub(crate) vector_lanes: u32,
    /// Number of distinct kernels.
    pub(crate) kernels: usize,
    /// Steps of one generated token.
    pub(crate) decode_steps: usize,
    /// What the passes did.
    pub(crate) passes: &'a [PassReport],
    /// Bytes in memory.
    pub(crate) memory: MemoryTable,
    /// Generation.
    pub(crate) prediction: DecodePrediction,
    /// The program's file.
    pub(crate) output: &'a Path,
    /// Where its parts lie.
    pub(crate) locator: Locator,
    /// Time of the build.
    pub(crate) duration_us: u64,
    /// What the user should know.
    pub(crate) notes: &'a [String],
}

impl Report<'_> {
    /// The report's lines. Colours are added only where the terminal wants them.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = vec![String::new(), format!("  {}", style(BUILD).bold()), String::new()];
        lines.extend(self.model().lines(2));
        section(&mut lines, "passes", self.pass_table().lines(4));
        section(&mut lines, "memory", memory_table(&self.memory, self.manifest.context).lines(4));
        section(&mut lines, "generation", prediction_lines(&self.prediction, self.manifest.context));
        if !self.notes.is_empty() {
            section(&mut lines, "noticed", self.notes.iter().map(|note| format!("    {note}")).collect());
        }
        lines.push(String::new());
        lines.push(format!(
            "  {} {}  {} {}",
            style("wrote").green().bold(),
            style(self.output.display()).bold(),
            units::bytes(self.locator.file_bytes),
            style(format!("in {}", units::duration(self.duration_us))).dim(),
        ));
        lines.push(String::new());
        lines
    }

    fn model(&self) -> Table {
        let manifest = self.manifest;
        let mut table = Table::new(&[Side::Left, Side::Left]);
        table.row([key("model"), describe_model(&manifest.model)]);
        table.row([key("target"), format!("{}, {} lanes of f32", manifest.target, self.vector_lanes)]);
        table.row([key("types"), format!("{} weights and activations, f32 residual stream", manifest.dtype)]);
        table.row([key("context"), format!("{} positions", units::grouped(manifest.context))]);
        table.row([key("kernels"), format!("{} for {} steps a token", self.kernels, self.decode_steps)]);
        table
    }

    fn pass_table(&self) -> Table {
        pass_table(self.passes)
    }
}

/// The passes with what they did; those that found nothing to do are left out.
fn pass_table(passes: &[PassReport]) -> Table {
    let mut table = Table::new(&[Side::Left, Side::Right, Side::Right]);
    for pass in passes.iter().filter(|pass| pass.enabled && pass.rewrites > 0) {
        let saved = match pass.bytes_saved {
            0 => String::new(),
            bytes => format!("{} a token less to move", units::bytes(bytes)),
        };
        table.row([pass.name.to_owned(), format!("{} places", pass.rewrites), saved]);
    }
    for pass in passes.iter().filter(|pass| !pass.enabled) {
        table.row([
            style(pass.name).dim().to_string(),
            style("switched off").dim().to_string(),
            String::new(),
        ]);
    }
    table
}

/// `qwen2-0.5b: qwen2, 24 layers of 896, 14 heads over 2, 494 M parameters`.
pub(crate) fn describe_model(model: &ModelSummary) -> String {
    let experts = match model.experts {
        0 => String::new(),
        experts => format!(", {experts} experts of which {} serve a token", model.experts_per_token),
    };
    format!(
        "{}: {}, {} layers of {}, {} heads over {}{experts}, {} parameters",
        style(&model.name).bold(),
        model.architecture,
        model.layers,
        model.hidden,
        model.heads,
        model.kv_heads,
        units::parameters(model.parameters),
    )
}

/// Bytes by what they are for.
pub(crate) fn memory_table(memory: &MemoryTable, context: u64) -> Table {
    let mut table = Table::new(&[Side::Left, Side::Right, Side::Left]);
    table.row(["weights".to_owned(), units::bytes(memory.weight_bytes), "mapped from the file".to_owned()]);
    table.row([
        "kv cache".to_owned(),
        units::bytes(memory.kv_cache_bytes),
        format!("{} a position", units::bytes(memory.kv_cache_bytes / context.max(1))),
    ]);
    table.row(["activations".to_owned(), units::bytes(memory.activation_bytes), String::new()]);
    table.row([
        style("in all").bold().to_string(),
        style(units::bytes(memory.total_bytes())).bold().to_string(),
    ]);
    table
}

/// What generation can reach.
pub(crate) fn prediction_lines(prediction: &DecodePrediction, context: u64) -> Vec<String> {
    let mut table = Table::new(&[Side::Left, Side::Right, Side::Left, Side::Left]);
    let rows = [
        ("empty context".to_owned(), prediction.tokens_per_s, prediction.bytes_per_token),
        (
            format!("at {} positions", units::grouped(context)),
            prediction.tokens_per_s_at_full_context,
            prediction.bytes_per_token_at_full_context,
        ),
    ];
    for (when, rate, bytes) in rows {
        let rate = style(units::tokens_per_s(rate)).bold().to_string();
        table.row([
            when,
            format!("≤ {rate}"),
            "tokens/s".to_owned(),
            format!("{} each", units::bytes(bytes)),
        ]);
    }
    let mut lines = table.lines(4);
    let bandwidth = format!("    at {:.1} GB/s of memory", prediction.bandwidth_bytes_per_s / 1e9);
    lines.push(style(bandwidth).dim().to_string());
    lines
}

/// What the user should know about a model that was read without an error.
pub(crate) fn notes(
    description: &ModelDescription,
    has_tokenizer: bool,
    quant_is_default: bool,
) -> Vec<String> {
    let mut notes = Vec::new();
    if !has_tokenizer {
        notes.push(
            "the checkpoint has no tokenizer: the program speaks token ids only (`--tokens`)".to_owned(),
        );
    } else if description.chat_template.is_none() {
        notes.push("the checkpoint has no chat template: prompts are completed as they are".to_owned());
    }
    if quant_is_default {
        notes.push("weights are not quantized: `--quant none` is all this version has".to_owned());
    }
    notes
}

/// A heading and lines below it, set off by an empty line.
pub(crate) fn section(lines: &mut Vec<String>, heading: &str, body: Vec<String>) {
    lines.push(String::new());
    lines.push(format!("  {}", key(heading)));
    lines.extend(body);
}

/// The name of a line or section.
pub(crate) fn key(text: &str) -> String {
    style(text).cyan().to_string()
}

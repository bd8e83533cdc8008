//! The report at the end of a build: the face of the project.

use std::path::Path;

use console::style;
use qwen2c_checkpoint::ModelDescription;
use qwen2c_format::{Locator, Manifest, ModelSummary};
use qwen2c_graph::passes::PassReport;

use crate::device::AssumedMachine;
use crate::prediction::{DecodePrediction, MemoryTable};
use crate::program::BUILD;
use crate::prompt_prediction::PromptPrediction;
use crate::quantization_loss::ClassLoss;
use crate::table::{Side, Table};
use crate::units;

/// What the report tells. All of it is known before the first line is written, so that tests can print
/// a report without a build.
#[derive(Clone, Debug)]
pub(crate) struct Report<'a> {
    /// The program's facts.
    pub(crate) manifest: &'a Manifest,
    /// What the code is: `16 lanes of f32`, `PTX for sm_80`.
    pub(crate) code: String,
    /// Number of distinct kernels.
    pub(crate) kernels: usize,
    /// Steps of one generated token.
    pub(crate) decode_steps: usize,
    /// What the passes did.
    pub(crate) passes: &'a [PassReport],
    /// What quantization lost.
    pub(crate) losses: &'a [ClassLoss],
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
        section(&mut lines, "passes", pass_table(self.passes).lines(4));
        if !self.losses.is_empty() {
            section(&mut lines, "quantization", loss_table(self.losses).lines(4));
        }
        section(&mut lines, "memory", self.memory().lines(4));
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
        table.row([key("target"), format!("{}, {}", manifest.target, self.code)]);
        table.row([key("types"), format!("{} weights and activations, f32 residual stream", manifest.dtype)]);
        table.row([key("context"), format!("{} positions", units::grouped(manifest.context))]);
        let steps = units::count(self.decode_steps as u64, "step");
        table.row([key("kernels"), format!("{} in all, {steps} a token", self.kernels)]);
        table
    }

    fn memory(&self) -> Table {
        let mut table = memory_table(&self.memory, self.manifest.context);
        let program_bytes = self.locator.weights_offset;
        table.row(["program".to_owned(), units::bytes(program_bytes), "code, plan and tokenizer".to_owned()]);
        table
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
        table.row([pass.name.to_owned(), units::count(pass.rewrites, "place"), saved]);
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

/// The relative error of each class of weights.
fn loss_table(losses: &[ClassLoss]) -> Table {
    let mut table = Table::new(&[Side::Left, Side::Left, Side::Right]);
    for loss in losses {
        let lost = match loss.relative_error {
            0.0 => "as in the checkpoint".to_owned(),
            error => format!("{:.2} % relative error", 100.0 * error),
        };
        table.row([loss.class.to_owned(), loss.quantization.to_string(), lost]);
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
    table
}

/// What generation can reach.
pub(crate) fn prediction_lines(prediction: &DecodePrediction, context: u64) -> Vec<String> {
    let mut table = Table::new(&[Side::Left, Side::Right, Side::Left, Side::Left]);
    let machine = &prediction.machine;
    // A device's figures have their losses in them; this machine's rate is a bound.
    let relation = if prediction.launches_per_token > 0 { "≈" } else { "≤" };
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
            format!("{relation} {rate}"),
            "tokens/s".to_owned(),
            format!("{} each", units::bytes(bytes)),
        ]);
    }
    let mut lines = table.lines(4);
    lines.push(style(format!("    {}", rates(machine))).dim().to_string());
    lines.push(style(format!("    {}", limit_text(prediction, context))).dim().to_string());
    if prediction.launches_per_token > 0 {
        let share = 100.0 * prediction.share_of_launches;
        let (name, launch_us) = (&machine.name, machine.launch_us);
        let in_a_row = prediction.launches_in_a_row;
        let launches = match (prediction.launches_per_token, prediction.barriers_per_token) {
            (count, 0) if count == in_a_row => format!(
                "    on {name}, with {count} launches a token of {launch_us} µs, {share:.0} % of its time"
            ),
            (count, 0) => format!(
                "    on {name}, with {count} launches a token, {in_a_row} one after the other, of {launch_us} µs, {share:.0} % of its time"
            ),
            (_, count) => format!(
                "    on {name}, with one launch a token of {launch_us} µs and {count} barriers of {} µs, {share:.0} % of its time",
                machine.barrier_us
            ),
        };
        lines.push(style(launches).dim().to_string());
    }
    lines
}

/// `at 1733.2 GB/s of memory and 9.8 TFLOP/s in f32`, the second where it is known.
fn rates(machine: &AssumedMachine) -> String {
    let bandwidth = format!("at {:.1} GB/s of memory", machine.bandwidth_bytes_per_s / 1e9);
    match machine.operations_per_s {
        Some(rate) => format!("{bandwidth} and {:.1} TFLOP/s in f32", rate / 1e12),
        None => bandwidth,
    }
}

/// `limited by memory bandwidth`, and by what at a full context where that is something else.
fn limit_text(prediction: &DecodePrediction, context: u64) -> String {
    let (empty, full) = (prediction.limit, prediction.limit_at_full_context);
    let limited = format!("limited by {}", empty.text());
    if empty == full {
        return limited;
    }
    format!("{limited}, at {} positions by {}", units::grouped(context), full.text())
}

/// What prompts can reach.
pub(crate) fn prompt_lines(prompts: &[PromptPrediction]) -> Vec<String> {
    let mut table = Table::new(&[Side::Left, Side::Right, Side::Left, Side::Left]);
    for prompt in prompts {
        table.row([
            units::count(prompt.tokens, "token"),
            format!("≈ {}", style(units::tokens_per_s(prompt.tokens_per_s)).bold()),
            "tokens/s".to_owned(),
            format!(
                "{} at a time, blocks fill {:.0} % of their turns",
                units::grouped(prompt.chunk_tokens),
                100.0 * prompt.wave_fill
            ),
        ]);
    }
    table.lines(4)
}

/// What the user should know about a model that was read without an error.
pub(crate) fn notes(description: &ModelDescription, has_tokenizer: bool) -> Vec<String> {
    let mut notes = Vec::new();
    if !has_tokenizer {
        notes.push(
            "the checkpoint has no tokenizer: the program speaks token ids only (`--tokens`)".to_owned(),
        );
    } else if description.chat_template.is_none() {
        notes.push("the checkpoint has no chat template: prompts are completed as they are".to_owned());
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use qwen2c_format::{GenerationDefaults, InputOffsets, Locator, Manifest, ModelSummary};
    use qwen2c_graph::passes::PassReport;
    use qwen2c_request::Quantization;

    use super::Report;
    use crate::device::AssumedMachine;
    use crate::prediction::{DecodePrediction, Limit, MemoryTable};
    use crate::quantization_loss::ClassLoss;

    fn manifest() -> Manifest {
        Manifest {
            build: "qwen2c 0.1.0".to_owned(),
            model: ModelSummary {
                name: "qwen1.5-moe-a2.7b".to_owned(),
                architecture: "qwen2_moe".to_owned(),
                parameters: 14_315_784_192,
                hidden: 2048,
                layers: 24,
                heads: 16,
                kv_heads: 16,
                head_dim: 128,
                vocabulary: 151_936,
                experts: 60,
                experts_per_token: 4,
            },
            target: "x86-64-v4".to_owned(),
            family: "cpu".to_owned(),
            required_features: Vec::new(),
            quant: "none".to_owned(),
            dtype: "bf16".to_owned(),
            context: 8192,
            slots: 1,
            weight_bytes: 28_633_661_440,
            kv_cache_bytes: 1_610_612_736,
            arena_bytes: 1_623_195_648,
            inputs: InputOffsets::default(),
            generation: GenerationDefaults {
                stop_ids: Vec::new(),
                bos_id: None,
                temperature: 0.0,
                top_k: 0,
                top_p: 1.0,
                repetition_penalty: 1.0,
            },
            chat_template: None,
            template_tokens: Vec::new(),
            passes: Vec::new(),
            self_test: None,
        }
    }

    fn pass(name: &'static str, enabled: bool, rewrites: u64, bytes_saved: u64) -> PassReport {
        PassReport { name, enabled, rewrites, bytes_saved, duration_us: 0 }
    }

    fn loss(class: &'static str, bits: u32, relative_error: f64) -> ClassLoss {
        ClassLoss { class, quantization: Quantization::signed(bits, 64), relative_error }
    }

    #[test]
    fn a_report_says_what_was_built_what_it_needs_and_where_it_lies() {
        console::set_colors_enabled(false);
        let passes = [
            pass("resolve_rope", true, 1, 0),
            pass("fold_constants", true, 0, 0),
            pass("merge_gate_and_up", false, 0, 0),
            pass("fuse_attention", true, 24, 50_331_648),
        ];
        let report = Report {
            manifest: &manifest(),
            code: "16 lanes of f32".to_owned(),
            kernels: 41,
            decode_steps: 387,
            passes: &passes,
            losses: &[
                loss("attention qkv", 4, 0.073_4),
                loss("embedding", 8, 0.004_56),
                loss("head", 8, 0.0),
            ],
            memory: MemoryTable {
                weight_bytes: 28_633_661_440,
                kv_cache_bytes: 1_610_612_736,
                activation_bytes: 12_582_912,
            },
            prediction: DecodePrediction {
                machine: AssumedMachine {
                    name: "this machine".to_owned(),
                    memory_bytes: 1 << 36,
                    bandwidth_bytes_per_s: 28.1e9,
                    launch_us: 0.0,
                    barrier_us: 0.0,
                    operations_per_s: None,
                    matrix_unit: None,
                },
                launches_per_token: 0,
                launches_in_a_row: 0,
                barriers_per_token: 0,
                share_of_launches: 0.0,
                bytes_per_token: 5_300_000_000,
                bytes_per_token_at_full_context: 6_910_612_736,
                operations_per_token: 5_000_000_000,
                limit: Limit::MemoryBandwidth,
                limit_at_full_context: Limit::MemoryBandwidth,
                tokens_per_s: 5.302,
                tokens_per_s_at_full_context: 4.066,
            },
            output: Path::new("qwen1.5-moe-a2.7b-none-x86-64-v4"),
            locator: Locator { weights_offset: 6_291_456, file_bytes: 28_639_952_896, ..Locator::UNPATCHED },
            duration_us: 91_200_000,
            notes: &["the checkpoint has no tokenizer".to_owned()],
        };
        insta::assert_snapshot!(report.lines().join("\n"), @r"

          qwen2c 0.1.0

          model    qwen1.5-moe-a2.7b: qwen2_moe, 24 layers of 2048, 16 heads over 16, 60 experts of which 4 serve a token, 14.32 B parameters
          target   x86-64-v4, 16 lanes of f32
          types    bf16 weights and activations, f32 residual stream
          context  8 192 positions
          kernels  41 in all, 387 steps a token

          passes
            resolve_rope            1 place
            fuse_attention        24 places  48.0 MiB a token less to move
            merge_gate_and_up  switched off

          quantization
            attention qkv  int4:64  7.34 % relative error
            embedding      int8:64  0.46 % relative error
            head           int8:64   as in the checkpoint

          memory
            weights      26.7 GiB  mapped from the file
            kv cache      1.5 GiB  192.0 KiB a position
            activations  12.0 MiB
            program       6.0 MiB  code, plan and tokenizer

          generation
            empty context       ≤ 5.30  tokens/s  4.9 GiB each
            at 8 192 positions  ≤ 4.07  tokens/s  6.4 GiB each
            at 28.1 GB/s of memory
            limited by memory bandwidth

          noticed
            the checkpoint has no tokenizer

          wrote qwen1.5-moe-a2.7b-none-x86-64-v4  26.7 GiB in 91.20 s
        ");
    }
}

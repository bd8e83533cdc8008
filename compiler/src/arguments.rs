//! What the user typed. `request.rs` turns it into what the program will do.

use std::fmt::Write;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::stage::Stage;

/// Compiles models of the Qwen2 family into one executable.
#[derive(Debug, Parser)]
#[command(
    name = "qwen2c",
    version,
    about = "Compiles a model of the Qwen2 family into one executable",
    after_help = "Start with: qwen2c build --model MODEL.gguf --target native\n\
                  Exit codes: 0 done, 1 the input cannot be served, 2 usage, 3 a bug of ours."
)]
pub(crate) struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Compile a model into one executable
    Build(BuildArguments),
    /// Predict bytes, the largest context that fits, and tokens/s; build nothing
    Plan(PlanArguments),
    /// List the models that can be named
    Models,
    /// List the targets that can be named
    Targets,
    /// List the passes, and which of them are optional
    Passes,
    /// Show what an emitted program or a checkpoint holds
    Inspect(InspectArguments),
    /// Measure several programs and peers side by side
    Compare(CompareArguments),
}

/// Arguments of `build`.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct BuildArguments {
    /// Model: a name (`0.5B`, `qwen2.5-7b`), a checkpoint's directory, or a GGUF file
    #[arg(long, value_name = "NAME|DIR|FILE.gguf")]
    pub(crate) model: String,
    /// Target with its features, such as `native`, `x86-64-v3`, `x86-64-v4+avx512vnni`
    #[arg(long, value_name = "TARGET[+FEATURE…]", value_delimiter = ',', default_value = "native")]
    pub(crate) target: Vec<String>,
    /// Output file [default: <model>-<quant>-<target>]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Weights from elsewhere than the model: a directory, a file, or random numbers
    #[arg(long, value_name = "DIR|FILE|random[:SEED]")]
    pub(crate) weights: Option<String>,
    /// Revision of the checkpoint on the hub
    #[arg(long, value_name = "R")]
    pub(crate) revision: Option<String>,
    /// Quantization of the weights [default: keep for a quantized checkpoint, else by size]
    #[arg(long, value_name = "none|int8[:GROUP]|int4[:GROUP]|keep")]
    pub(crate) quant: Option<String>,
    /// Type of activations and of weights that are not quantized: f32, bf16 or f16
    #[arg(long, value_name = "TYPE", default_value = "bf16")]
    pub(crate) dtype: String,
    /// Positions the program serves [default: min(the model's maximum, 8192)]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) context: Option<u64>,
    /// Switch an optional pass off (see `qwen2c passes`)
    #[arg(long, value_name = "NAME")]
    pub(crate) no_pass: Vec<String>,
    /// Switch a pass on that does not run by itself, or that an earlier `--no-pass` named
    #[arg(long, value_name = "NAME")]
    pub(crate) pass: Vec<String>,
    /// Write the text of these stages: config, graph, fused, scheduled, plan, mlir, llvm, asm, ptx,
    /// manifest
    #[arg(long, value_name = "STAGE", value_delimiter = ',', long_help = emit_help())]
    pub(crate) emit: Vec<String>,
    /// Folder of the stages' text [default: <output>.emit]
    #[arg(long, value_name = "DIR")]
    pub(crate) emit_dir: Option<PathBuf>,
    /// Print the time of every stage and pass
    #[arg(long)]
    pub(crate) time_passes: bool,
    /// NVIDIA's assembler, for CUDA targets, or `none` [default: the one on PATH, where there is one]
    #[arg(long, value_name = "PATH")]
    pub(crate) ptxas: Option<PathBuf>,
    /// Print nothing but errors
    #[arg(long)]
    pub(crate) quiet: bool,
}

/// The stages with what is true after them.
fn emit_help() -> String {
    let mut help = "Write the text of these stages, comma separated:".to_owned();
    for stage in Stage::ALL {
        let _ = write!(help, "\n  {:<10} {}", stage.mnemonic(), stage.sentence());
    }
    help
}

/// Arguments of `plan`.
#[derive(Args, Debug)]
pub(crate) struct PlanArguments {
    /// As for `build`.
    #[command(flatten)]
    pub(crate) build: BuildArguments,
    /// Device whose memory and bandwidth are assumed
    #[arg(long, value_name = "NAME")]
    pub(crate) device: Option<String>,
    /// Memory bandwidth to assume, in GB/s [default: measured]
    #[arg(long, value_name = "GB/S")]
    pub(crate) bandwidth: Option<f64>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `inspect`.
#[derive(Args, Debug)]
pub(crate) struct InspectArguments {
    /// An emitted program, a checkpoint's directory, or a GGUF file
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `compare`.
#[derive(Args, Debug)]
pub(crate) struct CompareArguments {
    /// Emitted programs; ratios are relative to the first
    #[arg(value_name = "PROGRAM", required = true)]
    pub(crate) programs: Vec<PathBuf>,
    /// Write one self-contained page with tables and plots
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Measure llama.cpp's `llama-bench` with a model beside the programs; may be given several times
    #[arg(long, value_name = "PATH:MODEL.gguf")]
    pub(crate) llama_bench: Vec<String>,
    /// Tokens of the prompt, 0 for none [default: 512]
    #[arg(short, value_name = "N", value_parser = clap::value_parser!(u64).range(..1 << 32))]
    pub(crate) prompt: Option<u64>,
    /// Tokens to generate, 0 for none [default: 64]
    #[arg(short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(..1 << 32))]
    pub(crate) generate: Option<u64>,
    /// Tokens of context in front of the generation [default: 512]
    #[arg(short, value_name = "N", value_parser = clap::value_parser!(u64).range(..1 << 32))]
    pub(crate) depth: Option<u64>,
    /// Turns that every program gets
    #[arg(short = 'r', value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..10_000))]
    pub(crate) turns: u64,
    /// Threads of every program [default: what the first program takes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..1025))]
    pub(crate) threads: Option<u64>,
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{Arguments, Command};

    #[test]
    fn the_definitions_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn lists_are_separated_by_commas_and_targets_default_to_native() {
        let line =
            ["qwen2c", "build", "--model", "7B", "--emit", "graph,plan", "--no-pass", "fuse_attention"];
        let Command::Build(build) = Arguments::try_parse_from(line).unwrap().command else {
            panic!("`build` was asked for")
        };
        assert_eq!(build.emit, ["graph", "plan"]);
        assert_eq!(build.target, ["native"]);
        assert_eq!(build.no_pass, ["fuse_attention"]);
        assert_eq!(build.dtype, "bf16");
    }

    #[test]
    fn a_context_of_zero_is_refused() {
        assert!(Arguments::try_parse_from(["qwen2c", "plan", "--model", "7B", "--context", "0"]).is_err());
    }
}

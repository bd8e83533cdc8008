//! The optimizer: a list of rewrites of the graph, each in a file of its own.
//!
//! [`PASSES`] is its table of contents and the order of execution. Every pass takes a graph that the
//! verifier accepts and leaves one, so that any subset of the optional passes can be switched off
//! (`--no-pass`): the graph before the first pass is the unfused twin, the graph after the last one
//! has one operation per kernel.
//!
//! A pass runs once for each step list, because what pays depends on the rows of a step.

mod fold_constants;
mod fuse_add_and_norm;
mod fuse_attention;
mod fuse_bias_into_projection;
mod fuse_bias_rope_and_cache_write;
mod fuse_norm_into_projection;
mod fuse_projection_and_cache_write;
mod fuse_residual_into_projection;
mod fuse_silu_and_multiply;
mod group_experts;
mod interleave_independent_operations;
mod merge_gate_and_up;
mod merge_qkv_projections;
mod merge_weights;
mod pad_uneven_dimensions;
mod persistent_decode;
mod quantize_activations;
mod remove_dead_values;
mod resolve_rope;
mod rewrite;
mod round_attention;
mod run;
mod select_candidates;
mod split_attention;

#[cfg(test)]
pub(crate) mod tests;

pub use run::{PassError, PassReport, SelectionError, run_passes, select_passes};

use qwen2c_request::TargetDescription;

use crate::{Graph, ModelConfig};

/// What a pass may know besides the graph.
#[derive(Clone, Copy, Debug)]
pub struct PassContext<'a> {
    /// The model, where the graph left something open: rotary frequencies.
    pub config: &'a ModelConfig,
    /// What the target wants of a graph.
    pub target: &'a TargetDescription,
    /// Most rows of a step of the list that the graph is for.
    pub max_rows: u64,
}

/// A rewrite of the graph. Returns the number of places rewritten.
pub type PassFunction = fn(&mut Graph, &PassContext<'_>) -> u64;

/// An entry of the table of passes.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Name of the file and the function, on the command line, in dumps and timings.
    pub name: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// Whether `--no-pass` may switch it off.
    pub optional: bool,
    /// Whether it runs where nothing is said of it; otherwise `--pass` switches it on.
    pub by_default: bool,
    /// The rewrite.
    pub run: PassFunction,
}

const fn mandatory(name: &'static str, summary: &'static str, run: PassFunction) -> Pass {
    Pass { name, summary, optional: false, by_default: true, run }
}

const fn optional(name: &'static str, summary: &'static str, run: PassFunction) -> Pass {
    Pass { name, summary, optional: true, by_default: true, run }
}

const fn on_request(name: &'static str, summary: &'static str, run: PassFunction) -> Pass {
    Pass { name, summary, optional: true, by_default: false, run }
}

/// Name of the pass that rounds inputs of products.
pub const QUANTIZE_ACTIVATIONS: &str = "quantize_activations";

/// Name of the pass that rounds what attention multiplies.
pub const ROUND_ATTENTION: &str = "round_attention";

/// The optional passes that change what is computed instead of how: references that are to agree with a
/// program run them too.
pub const ROUNDING_PASSES: [&str; 2] = [QUANTIZE_ACTIVATIONS, ROUND_ATTENTION];

/// Name of the pass that only devices have a use for.
pub const PERSISTENT_DECODE: &str = "persistent_decode";

/// All passes in order of execution.
pub const PASSES: &[Pass] = &[
    mandatory(
        "resolve_rope",
        "computes the rotary frequencies, stretched by YaRN where the configuration says so",
        resolve_rope::run,
    ),
    optional(
        "fold_constants",
        "moves constant factors into the attention scale and drops factors of one",
        fold_constants::run,
    ),
    optional(
        "pad_uneven_dimensions",
        "widens MLPs and experts with zeros to a multiple of the vector width",
        pad_uneven_dimensions::run,
    ),
    optional(
        "merge_qkv_projections",
        "computes query, key and value with one projection",
        merge_qkv_projections::run,
    ),
    optional("merge_gate_and_up", "computes gate and up with one projection", merge_gate_and_up::run),
    optional(
        "fuse_silu_and_multiply",
        "applies silu and the product with up inside the projection of gate and up",
        fuse_silu_and_multiply::run,
    ),
    optional(
        "fuse_bias_rope_and_cache_write",
        "adds the bias, rotates, and writes keys and values to the cache in one operation",
        fuse_bias_rope_and_cache_write::run,
    ),
    optional(
        "fuse_attention",
        "computes scores, softmax and the sum of values in one walk over the cache",
        fuse_attention::run,
    ),
    optional(
        "fuse_bias_into_projection",
        "adds a bias inside the projection before it",
        fuse_bias_into_projection::run,
    ),
    optional(
        "fuse_residual_into_projection",
        "adds the residual stream inside the projection before it",
        fuse_residual_into_projection::run,
    ),
    optional("fuse_add_and_norm", "normalizes a sum in the operation that adds it", fuse_add_and_norm::run),
    optional(
        "group_experts",
        "multiplies all rows of an expert at once where a step brings several rows",
        group_experts::run,
    ),
    optional(
        QUANTIZE_ACTIVATIONS,
        "rounds activations to integers in front of products with quantized weights",
        quantize_activations::run,
    ),
    optional(
        ROUND_ATTENTION,
        "rounds queries and the weights of values to bf16 where a target multiplies pairs of that",
        round_attention::run,
    ),
    optional(
        "split_attention",
        "attends to each block of positions by itself, where a step brings one row",
        split_attention::run,
    ),
    optional(
        "fuse_projection_and_cache_write",
        "rotates and writes to the cache inside the projection, where a step brings one row",
        fuse_projection_and_cache_write::run,
    ),
    optional(
        "fuse_norm_into_projection",
        "normalizes inside the projections behind a norm, where a step brings one row",
        fuse_norm_into_projection::run,
    ),
    optional(
        "select_candidates",
        "leaves the largest logits of a generated token, for a host that would have to fetch them all",
        select_candidates::run,
    ),
    optional(
        "interleave_independent_operations",
        "puts operations side by side that do not wait for one another, where a step brings one row",
        interleave_independent_operations::run,
    ),
    mandatory(
        "remove_dead_values",
        "drops operations, values and weights that nothing reads",
        remove_dead_values::run,
    ),
    on_request(
        PERSISTENT_DECODE,
        "runs a token in one launch on a CUDA device, with barriers instead of launches",
        persistent_decode::run,
    ),
];

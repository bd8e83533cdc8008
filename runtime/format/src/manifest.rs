//! The manifest: what `inspect` and `info` print, and the few numbers the runtime starts from.

use serde::{Deserialize, Serialize};

/// Facts about an emitted program. Stored as JSON; holds no time, path or host name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Compiler name and version: `qwen2c 0.1.0`.
    pub build: String,
    /// The model.
    pub model: ModelSummary,
    /// Target with its features: `x86-64-v4`; several architectures of a device: `sm_80,sm_90`.
    pub target: String,
    /// Target family: `cpu` or `cuda`.
    pub family: String,
    /// Features the machine must have, in the names of `/proc/cpuinfo`.
    pub required_features: Vec<String>,
    /// Quantization: `none`.
    pub quant: String,
    /// Activation type: `bf16`.
    pub dtype: String,
    /// Positions of one slot.
    pub context: u64,
    /// Sequences served at once.
    pub slots: u64,
    /// Bytes of the weight region.
    pub weight_bytes: u64,
    /// Bytes of all key and value caches, part of the arena.
    pub kv_cache_bytes: u64,
    /// Bytes of the arena.
    pub arena_bytes: u64,
    /// Where the runtime's inputs and outputs lie in the arena.
    pub inputs: InputOffsets,
    /// Sampling defaults.
    pub generation: GenerationDefaults,
    /// The checkpoint's chat template (Jinja).
    pub chat_template: Option<String>,
    /// Variables of the template besides `messages`: `bos_token`, `eos_token`.
    pub template_tokens: Vec<(String, String)>,
    /// Passes that ran.
    pub passes: Vec<PassRecord>,
    /// What `self-test` compares with.
    pub self_test: Option<SelfTestRecord>,
}

/// The model's shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSummary {
    /// `qwen2-0.5b`.
    pub name: String,
    /// `qwen2`, `qwen2_moe`, `llama`.
    pub architecture: String,
    /// Number of parameters.
    pub parameters: u64,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Number of blocks.
    pub layers: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Elements of one head.
    pub head_dim: u64,
    /// Rows of the embedding and columns of the logits.
    pub vocabulary: u64,
    /// Routed experts; 0 for a dense model.
    pub experts: u64,
    /// Experts chosen for each token.
    pub experts_per_token: u64,
}

/// Byte offsets in the arena of what the runtime writes before a step and reads after it.
///
/// No step writes to an input and nothing else is ever placed there, so that a runtime may leave what it
/// has not changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputOffsets {
    /// `token i32[rows]`.
    pub token: u64,
    /// `position i32[rows]`.
    pub position: u64,
    /// `slot i32[rows]`.
    pub slot: u64,
    /// `logit_rows i32[logit_rows]`: which rows of the step go through the head.
    pub logit_rows: u64,
    /// `logits f32[logit_rows, vocabulary]`.
    pub logits: u64,
    /// The largest logits of a generated token, where the first list leaves them.
    pub candidates: Option<CandidateOffsets>,
}

/// Byte offsets in the arena of a row's largest logits, largest first, the lower id first where equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidateOffsets {
    /// How many.
    pub count: u64,
    /// `f32[count]`.
    pub values: u64,
    /// `i32[count]`.
    pub ids: u64,
}

/// What the checkpoint's `generation_config.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerationDefaults {
    /// Ids that end an answer.
    pub stop_ids: Vec<u32>,
    /// Id put before the first token, where the tokenizer asks for one.
    pub bos_id: Option<u32>,
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: u32,
    /// 1 is off.
    pub top_p: f32,
    /// 1 is off.
    pub repetition_penalty: f32,
}

/// One pass of the build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassRecord {
    /// `fuse_attention`.
    pub name: String,
    /// Places rewritten.
    pub rewrites: u64,
    /// Arena bytes that need not be moved in a decode step.
    pub bytes_saved: u64,
    /// False where `--no-pass` switched it off.
    pub enabled: bool,
}

/// Ids and logits recorded at build by the graph interpreter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SelfTestRecord {
    /// Input ids, at most 8.
    pub tokens: Vec<u32>,
    /// Ids whose logits are compared, the same for every row.
    pub columns: Vec<u32>,
    /// `[tokens, columns]`, row-major: the interpreter's logits on the dequantized weights.
    pub logits: Vec<f32>,
    /// Relative L2 error that is still accepted.
    pub tolerance: f32,
}

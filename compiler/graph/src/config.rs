//! What a model is: every number that the graph depends on, with no defaults left open.

/// The families whose blocks the graph knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Dense Qwen2, Qwen2.5, Qwen1.5.
    Qwen2,
    /// Qwen2 and Qwen1.5 mixture of experts.
    Qwen2Moe,
    /// Llama: a Qwen2 block without biases.
    Llama,
}

impl Family {
    /// `model_type` in `config.json`, `general.architecture` in GGUF up to the underscore.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qwen2 => "qwen2",
            Self::Qwen2Moe => "qwen2_moe",
            Self::Llama => "llama",
        }
    }
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Stretching for long contexts.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// YaRN (Peng et al. 2023), static, as HF transformers computes it.
    Yarn {
        /// Ratio of the new context to the original one.
        factor: f64,
        /// Positions of the original training.
        original_context: u64,
        /// Rotations above which a dimension keeps its frequency.
        beta_fast: f64,
        /// Rotations below which a dimension is interpolated fully.
        beta_slow: f64,
        /// Multiplies cosines and sines.
        attention_factor: f64,
    },
}

/// The experts of a mixture-of-experts model.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertConfig {
    /// Routed experts of a sparse layer.
    pub experts: u64,
    /// Experts chosen for each token.
    pub experts_per_token: u64,
    /// Width of a routed expert.
    pub intermediate: u64,
    /// Width of the shared expert.
    pub shared_intermediate: u64,
    /// Chosen weights are divided by their sum (`norm_topk_prob`).
    pub normalize_weights: bool,
    /// Every how many layers one is sparse (`decoder_sparse_step`).
    pub sparse_step: u64,
    /// Layers that are dense whatever `sparse_step` says.
    pub dense_layers: Vec<u64>,
}

/// A model's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Name shown to people and used in file names: `qwen2-0.5b`.
    pub name: String,
    /// Which blocks.
    pub family: Family,
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
    /// Width of the dense MLP.
    pub intermediate: u64,
    /// Rows of the embedding.
    pub vocabulary: u64,
    /// Query, key and value projections have biases.
    pub qkv_bias: bool,
    /// The output head is the embedding.
    pub tied_embedding: bool,
    /// Epsilon of every RMSNorm.
    pub epsilon: f32,
    /// Rotary embedding.
    pub rope: Rope,
    /// Largest context the model serves, YaRN included.
    pub max_context: u64,
    /// Present for [`Family::Qwen2Moe`].
    pub experts: Option<ExpertConfig>,
}

impl ModelConfig {
    /// Whether the MLP of `layer` consists of experts.
    pub fn is_sparse(&self, layer: u64) -> bool {
        self.experts.as_ref().is_some_and(|experts| {
            experts.experts > 0
                && !experts.dense_layers.contains(&layer)
                && (layer + 1).is_multiple_of(experts.sparse_step)
        })
    }
}

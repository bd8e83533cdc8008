//! The operations of the graph. One list serves the graph, the interpreter and the targets.
//!
//! In the signatures below `T` is the activation type (`--dtype`), `W` that type or f32, the other element
//! types are as written. Inputs come first, then `w:` weights, then `c:` caches. `rows` is written for either
//! variable dimension.

use std::fmt;
use std::hash::{Hash, Hasher};

/// An `f32` attribute, compared and hashed by its bits.
#[derive(Clone, Copy, Debug)]
pub struct Real(pub f32);

impl PartialEq for Real {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Eq for Real {}

impl Hash for Real {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

impl fmt::Display for Real {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `{:?}` prints the shortest digits that read back as the same value.
        write!(formatter, "{:?}", self.0)
    }
}

/// What a kernel computes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// `(token i32[rows]) w:[vocabulary, hidden] -> f32[rows, hidden]`: row `token[r]` of the weight.
    Embed,
    /// `(x E[rows, n], logit_rows i32[logit_rows]) -> E[logit_rows, n]`: row `logit_rows[r]` of `x`.
    GatherRows,
    /// `(x f32[rows, n]) w:f32[n] -> T[rows, n]`: `x / sqrt(mean(x²) + epsilon) * w`, in f32, rounded
    /// once (Zhang and Sennrich 2019).
    RmsNorm {
        /// Added to the mean square.
        epsilon: Real,
    },
    /// `(x T[…, n]) -> I8[…, n]`, or `I16[…, n]`: rounds each group of a row to integers with a scale
    /// ([`quantize_activations`](crate::quantize_activations)).
    QuantizeRows,
    /// `(x T[rows, k], [residual f32[rows, n]]) w:T[n, k], [w:f32[n] bias], [w:f32[k] norm] -> f32[rows, n]`,
    /// or with `silu_multiply` `w:T[2n, k] -> T[rows, n]`. `x` may be `I8` or `I16` where the weight is
    /// quantized in the same groups: the product is then one of integers, scaled group by group. With
    /// `norm` it is `f32[rows, k]`, and is normalized as by [`Operation::RmsNorm`] with the last weight and
    /// rounded to `T`, which is the first weight's element type, before it is multiplied.
    ///
    /// `y = x · wᵀ (+ bias) (+ residual)`. With `silu_multiply` the weight's first `n` rows are the
    /// gate, the others the up projection, and the result is `silu(gate) * up` (Shazeer 2020);
    /// `residual` is then false.
    Matmul {
        /// The input is normalized first, with this epsilon; the norm's weight is the last one.
        norm: Option<Real>,
        /// A bias is the second weight.
        bias: bool,
        /// The second input is added to the product.
        residual: bool,
        /// The product's halves are combined as `silu(first) * second`.
        silu_multiply: bool,
    },
    /// `(x f32[rows, n]) w:f32[n] -> f32[rows, n]`.
    AddBias,
    /// `(x f32[rows, heads·head_dim], position i32[rows]) w:f32[context, head_dim] -> W[rows, heads·head_dim]`.
    ///
    /// The weight's row `p` holds `head_dim / 2` cosines, then as many sines, already multiplied by
    /// YaRN's attention factor. Element `i` pairs with `i + head_dim / 2` (Su et al. 2021, in the
    /// order of GPT-NeoX): `y[i] = x[i]·cos − x[i+d/2]·sin`, `y[i+d/2] = x[i+d/2]·cos + x[i]·sin`.
    Rotate {
        /// Elements of one head.
        head_dim: u64,
    },
    /// `(x f32[rows, kv_heads·head_dim], position i32[rows], slot i32[rows]) c: -> ()`: rounds `x` to
    /// the cache's element type and stores it at `(slot[r], head, position[r])`.
    WriteCache,
    /// `(x W[rows, n]) -> f32[rows, n]`: `x * factor`.
    Scale {
        /// Multiplier.
        factor: Real,
    },
    /// `(q W[rows, heads·head_dim], position i32[rows], slot i32[rows]) c:key -> f32[rows, heads, context]`:
    /// `scale · q·k` for positions up to `position[r]`; the others are not written.
    AttentionScores {
        /// Query heads.
        heads: u64,
        /// Multiplier of the products.
        scale: Real,
    },
    /// `(scores f32[rows, heads, context], position i32[rows]) -> f32[rows, heads, context]`: softmax
    /// over positions 0 … `position[r]`; the others are not written.
    CausalSoftmax,
    /// `(p f32[rows, heads, context], position i32[rows], slot i32[rows]) c:value -> T[rows, heads·head_dim]`:
    /// sums of values weighted by `p`; query head `h` reads kv head `h / (heads / kv_heads)`.
    AttentionValues {
        /// Query heads.
        heads: u64,
        /// Weights are rounded before they multiply values: in each block of
        /// [`CACHE_BLOCK_POSITIONS`](crate::CACHE_BLOCK_POSITIONS) positions, their ratios to the block's
        /// largest to bf16.
        rounded: bool,
    },
    /// `(q W[rows, heads·head_dim], position i32[rows], slot i32[rows]) c:key c:value -> T[rows, heads·head_dim]`:
    /// scores, causal softmax and weighted sum in one pass over the cache (Milakov and Gimelshein
    /// 2018; Dao et al. 2022).
    Attention {
        /// Query heads.
        heads: u64,
        /// Multiplier of the products.
        scale: Real,
        /// As in [`Operation::AttentionValues`]; the sum that weights are divided by is not rounded.
        rounded: bool,
    },
    /// `(q W[rows, heads·head_dim], position i32[rows], slot i32[rows]) c:key c:value
    /// -> f32[rows, blocks, heads·head_dim] sums, f32[rows, blocks, 2·heads] totals`.
    ///
    /// Attention to each block of [`CACHE_BLOCK_POSITIONS`](crate::CACHE_BLOCK_POSITIONS) positions by itself:
    /// with weights `exp(score − m)`, where `m` is the head's largest score in the block, the weighted sum of
    /// values, and for all heads `m`, then for all heads the sum of weights. Blocks behind `position[r]` are
    /// not written.
    AttentionBlocks {
        /// Query heads.
        heads: u64,
        /// Multiplier of the products.
        scale: Real,
        /// As in [`Operation::Attention`].
        rounded: bool,
    },
    /// `(sums f32[rows, blocks, n], totals f32[rows, blocks, 2·heads], position i32[rows]) -> T[rows, n]`: the
    /// attention to all blocks up to that of `position[r]`, in ascending order (Dao et al. 2023,
    /// "Flash-Decoding").
    MergeBlocks {
        /// Query heads.
        heads: u64,
    },
    /// `(qkv f32[rows, (heads + 2·kv_heads)·head_dim], position i32[rows], slot i32[rows])
    /// w:f32[context, head_dim] table, [w:f32[(heads + 2·kv_heads)·head_dim] bias] c:key c:value -> W[rows, heads·head_dim]`.
    ///
    /// Adds the bias, rotates queries and keys, writes keys and values to the caches, and returns the
    /// rotated queries.
    RotateAndWriteCache {
        /// Query heads.
        heads: u64,
        /// A bias is the second weight.
        bias: bool,
    },
    /// `(x T[rows, k], position i32[rows], slot i32[rows]) w:T[(heads + 2·kv_heads)·head_dim, k],
    /// w:f32[context, head_dim] table, [w:f32[(heads + 2·kv_heads)·head_dim] bias], [w:f32[k] norm]
    /// c:key c:value -> f32[rows, heads·head_dim]`.
    ///
    /// The merged projection of [`Operation::Matmul`], whose result goes the way of
    /// [`Operation::RotateAndWriteCache`] at once.
    ProjectAndWriteCache {
        /// Query heads.
        heads: u64,
        /// A bias is the third weight.
        bias: bool,
        /// As in [`Operation::Matmul`].
        norm: Option<Real>,
    },
    /// `(a f32[rows, n], b f32[rows, n]) -> f32[rows, n]`.
    Add,
    /// `(a f32[rows, n], b f32[rows, n]) w:f32[n] -> f32[rows, n], T[rows, n]`: the sum, and the sum
    /// normalized as by [`Operation::RmsNorm`].
    AddAndNorm {
        /// Added to the mean square.
        epsilon: Real,
    },
    /// `(x E[…, n]) -> E[…, m]`: elements `first` … `first + m` of the last dimension. Divides what a
    /// merged projection brought.
    Slice {
        /// First element taken.
        first: u64,
    },
    /// `(x f32[…]) -> f32[…]`: `x / (1 + exp(−x))`.
    Silu,
    /// `(x f32[…]) -> f32[…]`: `1 / (1 + exp(−x))`.
    Sigmoid,
    /// `(a f32[…], b f32[…]) -> T[…]`.
    Multiply,
    /// `(gate f32[…], up f32[…]) -> T[…]`: `silu(gate) * up`.
    SiluMultiply,
    /// `(x f32[rows, n], factor f32[rows, 1]) -> f32[rows, n]`.
    ScaleRows,
    /// `(x f32[rows, experts]) -> f32[rows, experts]`: softmax over all experts.
    Softmax,
    /// `(p f32[rows, experts]) -> f32[rows, k], i32[rows, k]`: the `k` largest, largest first, the
    /// lower index first where equal; with `normalize` divided by their sum. Probabilities, which are 0
    /// or more; a target with memory of its own is asked for the largest of any numbers too.
    TopK {
        /// Experts chosen for each row.
        k: u64,
        /// The chosen weights are divided by their sum.
        normalize: bool,
    },
    /// `(experts i32[rows, k]) -> i32[…]`: lists the (row, choice) pairs of each expert.
    ///
    /// The result is `[2 + 2·E + rows·k]` integers: the number of experts with rows, their numbers in
    /// ascending order (`E` places), `E + 1` offsets into the entries (indexed by expert number), and
    /// the entries `row·k + choice`, ascending within an expert. Its type is
    /// `i32[table=2 + 2·E + max_rows·k]`.
    GroupRows {
        /// Number of experts `E`.
        experts: u64,
    },
    /// `(x T[rows, n] or T[rows, k, n], experts i32[rows, k], [groups i32[…]]) w:T[E, m, n] -> f32[rows, k, m]`,
    /// or with `silu_multiply` `w:T[E, 2m, n] -> T[rows, k, m]`.
    ///
    /// Multiplies each (row, choice) with its expert's weight; `x` may be `I8` or `I16` as in
    /// [`Operation::Matmul`]. With `grouped` the third input comes
    /// from [`Operation::GroupRows`] and each expert's weight is read once.
    ExpertMatmul {
        /// Work is listed by expert.
        grouped: bool,
        /// As in [`Operation::Matmul`].
        silu_multiply: bool,
    },
    /// `(y f32[rows, k, n], weights f32[rows, k], [residual f32[rows, n]]) -> f32[rows, n]`: sum over the
    /// `k` choices of `weight · y`, in order of choice, plus the residual.
    CombineExperts {
        /// The third input is added to the sum.
        residual: bool,
    },
}

impl Operation {
    /// The name in the text form and in kernel names: `matmul`, `rms_norm`, …
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::GatherRows => "gather_rows",
            Self::RmsNorm { .. } => "rms_norm",
            Self::QuantizeRows => "quantize_rows",
            Self::Matmul { .. } => "matmul",
            Self::AddBias => "add_bias",
            Self::Rotate { .. } => "rotate",
            Self::WriteCache => "write_cache",
            Self::Scale { .. } => "scale",
            Self::AttentionScores { .. } => "attention_scores",
            Self::CausalSoftmax => "causal_softmax",
            Self::AttentionValues { .. } => "attention_values",
            Self::Attention { .. } => "attention",
            Self::AttentionBlocks { .. } => "attention_blocks",
            Self::MergeBlocks { .. } => "merge_blocks",
            Self::RotateAndWriteCache { .. } => "rotate_and_write_cache",
            Self::ProjectAndWriteCache { .. } => "project_and_write_cache",
            Self::Add => "add",
            Self::AddAndNorm { .. } => "add_and_norm",
            Self::Slice { .. } => "slice",
            Self::Silu => "silu",
            Self::Sigmoid => "sigmoid",
            Self::Multiply => "multiply",
            Self::SiluMultiply => "silu_multiply",
            Self::ScaleRows => "scale_rows",
            Self::Softmax => "softmax",
            Self::TopK { .. } => "top_k",
            Self::GroupRows { .. } => "group_rows",
            Self::ExpertMatmul { .. } => "expert_matmul",
            Self::CombineExperts { .. } => "combine_experts",
        }
    }

    /// Whether the operation writes to its caches: it is then never dead, and keeps its place before
    /// the operations that read them.
    pub const fn writes_cache(&self) -> bool {
        matches!(
            self,
            Self::WriteCache | Self::RotateAndWriteCache { .. } | Self::ProjectAndWriteCache { .. }
        )
    }

    /// Epsilon of the norm that goes before the product; its weight is the operation's last.
    pub const fn norm(&self) -> Option<Real> {
        match self {
            Self::Matmul { norm, .. } | Self::ProjectAndWriteCache { norm, .. } => *norm,
            _ => None,
        }
    }
}

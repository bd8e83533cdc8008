//! The CPU's kernels: one file each, with `tiles` (how many tiles a step has) and `body` (what one tile
//! computes). Tiles are independent: they write disjoint memory and may run in any order.
//!
//! Every reduction has one order, whatever the number of rows, tiles or threads: a prompt in chunks, a
//! prompt at once and a decode step compute the same bits.

mod attention;
mod attention_block;
mod attention_blocks;
mod attention_scores;
mod attention_values;
mod cache;
mod causal_softmax;
mod combine_experts;
mod elementwise;
mod embed;
mod expert_matmul;
mod fetch_ahead;
mod functions;
mod gather_rows;
mod group_rows;
mod integer_product;
mod matmul;
mod matrix_attention;
mod matrix_attention_block;
mod matrix_integer_product;
mod matrix_order;
mod matrix_product;
mod merge_blocks;
mod panel_product;
mod quantize_rows;
mod rms_norm;
mod rotate;
mod rotate_and_write_cache;
mod scale_rows;
mod slice;
mod softmax;
mod top_k;
mod write_cache;

use std::ops::Deref;

use qwen2c_request::Operation;

use crate::builder::Val;
use crate::cpu::instructions::Instructions;
use crate::operands::Operands;
pub(super) use attention::queries_of_tile;
pub(super) use matmul::describe_tiles;
pub(super) use panel_product::pair_of;

/// A kernel under construction.
pub(super) struct Kernel<'k, 'r> {
    /// Builder, request and operands.
    pub(super) operands: Operands<'k, 'r>,
    /// `f32` lanes of a vector register.
    pub(super) lanes: u32,
    /// Instructions for products of small numbers.
    pub(super) instructions: Instructions,
}

impl<'k, 'r> Deref for Kernel<'k, 'r> {
    type Target = Operands<'k, 'r>;

    fn deref(&self) -> &Operands<'k, 'r> {
        &self.operands
    }
}

/// Emits the number of tiles of a step.
pub(super) fn tiles<'k>(kernel: &Kernel<'k, '_>) -> Val<'k> {
    match kernel.request.operation {
        Operation::QuantizeRows => quantize_rows::tiles(kernel),
        Operation::Matmul { .. } => matmul::tiles(kernel),
        Operation::ExpertMatmul { .. } => expert_matmul::tiles(kernel),
        Operation::Attention { rounded, .. } => attention::tiles(kernel, rounded),
        Operation::AttentionBlocks { heads, rounded, .. } => attention_blocks::tiles(kernel, heads, rounded),
        Operation::MergeBlocks { heads } => merge_blocks::tiles(kernel, heads),
        Operation::AttentionScores { .. } => attention_scores::tiles(kernel),
        Operation::CausalSoftmax => causal_softmax::tiles(kernel),
        Operation::AttentionValues { .. } => attention_values::tiles(kernel),
        Operation::RotateAndWriteCache { .. } => rotate_and_write_cache::tiles(kernel),
        Operation::GroupRows { .. } => group_rows::tiles(kernel),
        // One tile a row.
        _ => kernel.rows,
    }
}

/// Emits what one tile computes.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, tile: Val<'k>) {
    match kernel.request.operation {
        Operation::Embed => embed::body(kernel, tile),
        Operation::GatherRows => gather_rows::body(kernel, tile),
        Operation::RmsNorm { epsilon } => rms_norm::body(kernel, tile, epsilon.0),
        Operation::AddAndNorm { epsilon } => rms_norm::body_with_add(kernel, tile, epsilon.0),
        Operation::QuantizeRows => quantize_rows::body(kernel, tile),
        Operation::Matmul { .. } => matmul::body(kernel, tile),
        Operation::ExpertMatmul { .. } => expert_matmul::body(kernel, tile),
        Operation::CombineExperts { residual } => combine_experts::body(kernel, tile, residual),
        Operation::Rotate { head_dim } => rotate::body(kernel, tile, head_dim),
        Operation::WriteCache => write_cache::body(kernel, tile),
        Operation::RotateAndWriteCache { heads, bias } => {
            rotate_and_write_cache::body(kernel, tile, heads, bias)
        }
        Operation::ProjectAndWriteCache { .. } => unreachable!("`choose` refuses products that write caches"),
        Operation::AttentionScores { heads, scale } => attention_scores::body(kernel, tile, heads, scale.0),
        Operation::CausalSoftmax => causal_softmax::body(kernel, tile),
        Operation::AttentionValues { heads, rounded } => attention_values::body(kernel, tile, heads, rounded),
        Operation::Attention { scale, rounded, .. } => attention::body(kernel, tile, scale.0, rounded),
        Operation::AttentionBlocks { heads, scale, rounded } => {
            attention_blocks::body(kernel, tile, heads, scale.0, rounded)
        }
        Operation::MergeBlocks { heads } => merge_blocks::body(kernel, tile, heads),
        Operation::AddBias => elementwise::add_bias(kernel, tile),
        Operation::Add => elementwise::add(kernel, tile),
        Operation::Scale { factor } => elementwise::scale(kernel, tile, factor.0),
        Operation::Silu => elementwise::silu(kernel, tile),
        Operation::Sigmoid => elementwise::sigmoid(kernel, tile),
        Operation::Multiply => elementwise::multiply(kernel, tile),
        Operation::SiluMultiply => elementwise::silu_multiply(kernel, tile),
        Operation::ScaleRows => scale_rows::body(kernel, tile),
        Operation::Slice { first } => slice::body(kernel, tile, first),
        Operation::Softmax => softmax::body(kernel, tile),
        Operation::TopK { k, normalize } => top_k::body(kernel, tile, k, normalize),
        Operation::GroupRows { experts } => group_rows::body(kernel, experts),
    }
}

//! Answers kernel requests: tiles, readable layouts, bytes and operations.

use qwen2c_request::{
    CACHE_BLOCK_POSITIONS, Cost, Element, KernelChoice, KernelRequest, LayoutOption, Operation, TensorType,
    Unservable, WeightLayout, WeightType,
};

use super::instructions::Instructions;
use super::kernels::{self, pair_of};
use crate::pack::weight_bytes;

/// Largest head the attention kernels hold in registers.
const LARGEST_HEAD_DIM: u64 = 256;

/// Relative time of gathering an embedding row from panels instead of reading it whole.
const PANEL_GATHER_COST: u32 = 150;

/// Answers `request` for a processor with these instructions.
///
/// # Errors
///
/// [`Unservable`] where an extent lies outside what the kernels were written for.
pub(super) fn choose(
    instructions: Instructions,
    request: &KernelRequest,
) -> Result<KernelChoice, Unservable> {
    check_head_dim(request)?;
    check_fusion(request)?;
    check_rows(request)?;
    let lanes = instructions.lanes;
    let layouts: Vec<Vec<LayoutOption>> =
        request.weights.iter().enumerate().map(|(index, ty)| layouts(lanes, request, index, ty)).collect();
    Ok(KernelChoice {
        tiles: describe_tiles(instructions, request, &layouts),
        layouts,
        workspace_bytes: 0,
        cost: cost(lanes, request),
        launches: Vec::new(),
    })
}

fn check_head_dim(request: &KernelRequest) -> Result<(), Unservable> {
    match request.caches.iter().map(|cache| cache.head_dim).max() {
        Some(head_dim) if head_dim > LARGEST_HEAD_DIM => Err(Unservable {
            reason: format!(
                "heads of {head_dim} elements; the attention kernels serve up to {LARGEST_HEAD_DIM}"
            ),
        }),
        _ => Ok(()),
    }
}

/// Steps of a processor cost a barrier, so that its description asks for no such fusion.
fn check_fusion(request: &KernelRequest) -> Result<(), Unservable> {
    let writes_cache = matches!(request.operation, Operation::ProjectAndWriteCache { .. });
    if request.operation.norm().is_some() || writes_cache {
        let reason = "a norm or a write to the cache inside a product; a processor does them apart";
        return Err(Unservable { reason: reason.to_owned() });
    }
    Ok(())
}

/// Several rows are work enough for one walk over the cache each.
fn check_rows(request: &KernelRequest) -> Result<(), Unservable> {
    if matches!(request.operation, Operation::AttentionBlocks { .. }) && request.max_rows > 1 {
        return Err(Unservable { reason: "an attention of several rows in parts".to_owned() });
    }
    Ok(())
}

fn layouts(lanes: u32, request: &KernelRequest, index: usize, ty: &WeightType) -> Vec<LayoutOption> {
    let row_major = LayoutOption { layout: WeightLayout::RowMajor, cost: 100 };
    let panels = |separate_halves, cost| LayoutOption {
        layout: WeightLayout::Panels { lanes, pair: pair_of(ty), separate_halves },
        cost,
    };
    match request.operation {
        Operation::Matmul { silu_multiply, .. } | Operation::ExpertMatmul { silu_multiply, .. }
            if index == 0 =>
        {
            vec![panels(silu_multiply, 100)]
        }
        // Integers with scales exist in panels alone.
        Operation::Embed if ty.quantization.is_some() => vec![panels(false, 100)],
        Operation::Embed => vec![row_major, panels(false, PANEL_GATHER_COST)],
        _ => vec![row_major],
    }
}

fn describe_tiles(
    instructions: Instructions,
    request: &KernelRequest,
    layouts: &[Vec<LayoutOption>],
) -> String {
    match request.operation {
        Operation::Matmul { .. } | Operation::ExpertMatmul { .. } => {
            kernels::describe_tiles(instructions, request, &[layouts[0][0].layout])
        }
        Operation::Attention { rounded, .. } => {
            format!("{} queries of a kv head", kernels::queries_of_tile(instructions, request, rounded))
        }
        Operation::AttentionScores { .. } | Operation::AttentionValues { .. } | Operation::CausalSoftmax => {
            "1x1 rows x heads".to_owned()
        }
        Operation::AttentionBlocks { .. } => "an eighth of the blocks x heads of a kv head".to_owned(),
        Operation::MergeBlocks { .. } => "4 heads".to_owned(),
        Operation::GroupRows { .. } => "all rows".to_owned(),
        Operation::RotateAndWriteCache { .. } => "1x1 rows x kv heads".to_owned(),
        Operation::QuantizeRows if request.max_rows == 1 => "up to 1024 elements".to_owned(),
        _ => "1 row".to_owned(),
    }
}

/// Bytes of one row of a tensor; a tensor without rows (the group table) counts as nothing.
fn row_bytes(tensor: &TensorType) -> u64 {
    let has_rows = tensor.dimensions.iter().any(|dimension| dimension.size.constant().is_none());
    if has_rows { tensor.bytes(1, 1) } else { 0 }
}

fn cost(lanes: u32, request: &KernelRequest) -> Cost {
    let activations: u64 = request.inputs.iter().chain(&request.outputs).map(row_bytes).sum();
    let weight_bytes = |index: usize| {
        let option = layouts(lanes, request, index, &request.weights[index])[0];
        weight_bytes(&request.weights[index], option.layout)
    };
    let mut cost = Cost { bytes_per_row: activations, ..Cost::default() };
    match request.operation {
        Operation::Matmul { .. } => {
            cost.fixed_bytes = weight_bytes(0);
            cost.operations_per_row = 2 * request.weights[0].rows() * request.weights[0].columns();
        }
        Operation::ExpertMatmul { .. } => expert_cost(request, weight_bytes(0), &mut cost),
        Operation::Embed => {
            // A row is one of the weight's, whatever its format.
            cost.bytes_per_row += weight_bytes(0) / request.weights[0].rows().max(1);
        }
        Operation::Attention { .. }
        | Operation::AttentionScores { .. }
        | Operation::AttentionValues { .. } => {
            attention_cost(request, &mut cost);
        }
        Operation::AttentionBlocks { heads, .. } => {
            attention_cost(request, &mut cost);
            cost.bytes_per_row = row_bytes(&request.inputs[0]);
            cost.bytes_per_row_and_position += parts_bytes(&request.outputs[0], heads);
        }
        Operation::MergeBlocks { heads } => {
            let width = request.outputs[0].row_elements();
            cost.bytes_per_row = row_bytes(&request.outputs[0]);
            cost.bytes_per_row_and_position = parts_bytes(&request.inputs[0], heads);
            cost.operations_per_row_and_position = 4 * width / CACHE_BLOCK_POSITIONS;
        }
        Operation::CausalSoftmax => {
            // Only the visible part of a row of scores is touched.
            let heads = heads_of_scores(&request.inputs[0]);
            cost.bytes_per_row = 0;
            cost.bytes_per_row_and_position = 2 * heads * Element::F32.bytes();
            cost.operations_per_row_and_position = 2 * heads;
        }
        _ => {
            cost.operations_per_row = request.outputs.iter().map(TensorType::row_elements).sum();
            cost.fixed_bytes = request
                .weights
                .iter()
                .filter(|weight| weight.extents().len() == 1)
                .map(|weight| weight.columns() * weight.element.bytes())
                .sum();
        }
    }
    cost
}

/// A row touches `k` experts; few rows touch different ones, many rows share them, so that the weights of
/// all experts bound the bytes from above and the per-row figure holds for decode.
fn expert_cost(request: &KernelRequest, all_weights_bytes: u64, cost: &mut Cost) {
    let weight = &request.weights[0];
    let experts = weight.extents()[0];
    let choices = request.inputs[1].row_elements();
    let touched = (choices * request.max_rows).min(experts);
    cost.fixed_bytes = all_weights_bytes / experts * touched;
    cost.operations_per_row = 2 * choices * (weight.rows() / experts) * weight.columns();
}

/// Bytes of an attention's parts for each position: of the sums of values, and two totals for each head.
fn parts_bytes(sums: &TensorType, heads: u64) -> u64 {
    let width = sums.dimensions.last().and_then(|last| last.size.constant()).unwrap_or(0);
    (width + 2 * heads) * Element::F32.bytes() / CACHE_BLOCK_POSITIONS
}

fn attention_cost(request: &KernelRequest, cost: &mut Cost) {
    let cache_bytes: u64 =
        request.caches.iter().map(|cache| cache.kv_heads * cache.head_dim * cache.element.bytes()).sum();
    let head_dim = request.caches[0].head_dim;
    let heads = match request.operation {
        Operation::Attention { heads, .. }
        | Operation::AttentionBlocks { heads, .. }
        | Operation::AttentionScores { heads, .. }
        | Operation::AttentionValues { heads, .. } => heads,
        _ => 0,
    };
    let products = request.caches.len() as u64;
    cost.bytes_per_row_and_position = cache_bytes;
    cost.operations_per_row_and_position = 2 * products * heads * head_dim;
    cost.bytes_per_row = heads * head_dim * (Element::F32.bytes() + Element::F32.bytes());
    if let Operation::AttentionScores { .. } | Operation::AttentionValues { .. } = request.operation {
        cost.bytes_per_row_and_position += heads * Element::F32.bytes();
    }
}

fn heads_of_scores(scores: &TensorType) -> u64 {
    scores.dimensions.iter().filter_map(|dimension| dimension.size.constant()).next().unwrap_or(1)
}

//! Answers kernel requests: tiles, readable layouts, bytes and operations.

use qwen2c_request::{
    Cost, Element, KernelChoice, KernelRequest, LayoutOption, Operation, TensorType, Unservable,
    WeightLayout, WeightType,
};

use super::kernels::{check_matmul, launches, matmul_layout, workspace_bytes};
use super::layout;
use crate::pack::weight_bytes;

/// Largest head that the attention kernel shares out to a warp.
const LARGEST_HEAD_DIM: u64 = 256;

/// Relative time of gathering an embedding row from a product's layout instead of reading it whole.
const PANEL_GATHER_COST: u32 = 110;

/// Answers `request`.
///
/// # Errors
///
/// [`Unservable`] where an extent or type lies outside what the kernels were written for.
pub(super) fn choose(request: &KernelRequest) -> Result<KernelChoice, Unservable> {
    check(request)?;
    let layouts: Vec<Vec<LayoutOption>> =
        request.weights.iter().enumerate().map(|(index, ty)| layouts(request, index, ty)).collect();
    let best: Vec<WeightLayout> = layouts.iter().map(|options| options[0].layout).collect();
    let shapes = launches(request, &best);
    let tiles: Vec<String> = shapes
        .iter()
        .map(|(_, shape)| {
            let rows = if shape.rows_per_block == 1 { "row" } else { "rows" };
            format!(
                "{} blocks of {} threads for {} {rows}",
                shape.blocks, shape.threads, shape.rows_per_block
            )
        })
        .collect();
    Ok(KernelChoice {
        tiles: tiles.join(", then "),
        workspace_bytes: workspace_bytes(request),
        cost: cost(request, &best),
        launches: shapes.iter().map(|(_, shape)| shape.grid()).collect(),
        layouts,
    })
}

fn check(request: &KernelRequest) -> Result<(), Unservable> {
    if let Some(head_dim) = request.caches.iter().map(|cache| cache.head_dim).max()
        && head_dim > LARGEST_HEAD_DIM
    {
        let reason =
            format!("heads of {head_dim} elements; the attention kernels serve up to {LARGEST_HEAD_DIM}");
        return Err(Unservable { reason });
    }
    let is_integer = |ty: &TensorType| ty.element.integer_group().is_some();
    if request.inputs.iter().chain(&request.outputs).any(is_integer) {
        return Err(Unservable {
            reason: "activations as integers; a CUDA device widens weights".to_owned(),
        });
    }
    if let Operation::Attention { rounded: true, .. } | Operation::AttentionValues { rounded: true, .. } =
        request.operation
    {
        return Err(Unservable {
            reason: "rounded weights of values; CUDA kernels round as they go".to_owned(),
        });
    }
    if let Operation::AttentionBlocks { .. } | Operation::MergeBlocks { .. } = request.operation {
        return Err(Unservable {
            reason: "an attention in parts; CUDA kernels cut it themselves".to_owned(),
        });
    }
    if request.weights.iter().any(|weight| weight.quantization.is_some_and(|q| q.bits == 4 && q.group < 32)) {
        return Err(Unservable { reason: "groups of less than 32 weights of 4 bits".to_owned() });
    }
    check_matmul(request)
}

fn layouts(request: &KernelRequest, index: usize, ty: &WeightType) -> Vec<LayoutOption> {
    let row_major = LayoutOption { layout: WeightLayout::RowMajor, cost: 100 };
    let panels = |separate_halves, cost| LayoutOption { layout: matmul_layout(ty, separate_halves), cost };
    match request.operation {
        Operation::Matmul { silu_multiply, .. } | Operation::ExpertMatmul { silu_multiply, .. }
            if index == 0 =>
        {
            vec![panels(silu_multiply, 100)]
        }
        Operation::ProjectAndWriteCache { .. } if index == 0 => vec![panels(false, 100)],
        // Integers with scales exist in panels alone.
        Operation::Embed if ty.quantization.is_some() => vec![panels(false, 100)],
        Operation::Embed => vec![row_major, panels(false, PANEL_GATHER_COST)],
        _ => vec![row_major],
    }
}

/// Bytes of one row of a tensor; a tensor without rows (the group table) counts as nothing.
fn row_bytes(tensor: &TensorType) -> u64 {
    let has_rows = tensor.dimensions.iter().any(|dimension| dimension.size.constant().is_none());
    if has_rows { tensor.bytes(1, 1) } else { 0 }
}

fn cost(request: &KernelRequest, layouts: &[WeightLayout]) -> Cost {
    let activations: u64 = request.inputs.iter().chain(&request.outputs).map(row_bytes).sum();
    let weight_bytes = |index: usize| weight_bytes(&request.weights[index], layouts[index]);
    let mut cost = Cost { bytes_per_row: activations, ..Cost::default() };
    match request.operation {
        Operation::Matmul { .. } | Operation::ProjectAndWriteCache { .. } => {
            // A rotary table lies between the product's weight and vectors: a row of it for each of `x`.
            let table = request.weights[1..].iter().find(|weight| weight.extents().len() == 2);
            cost.bytes_per_row += table.map_or(0, |table| table.columns() * table.element.bytes());
            cost.fixed_bytes = weight_bytes(0) + vector_bytes(request);
            cost.operations_per_row = 2 * request.weights[0].rows() * request.weights[0].columns();
        }
        Operation::ExpertMatmul { .. } => {
            // Few rows touch different experts, many share them.
            let weight = &request.weights[0];
            let experts = weight.extents()[0];
            let choices = request.inputs[1].row_elements();
            let touched = (choices * request.max_rows).min(experts);
            cost.fixed_bytes = weight_bytes(0) / experts * touched;
            cost.operations_per_row = 2 * choices * (weight.rows() / experts) * weight.columns();
        }
        Operation::Embed => {
            // A row is one of the weight's, whatever its format.
            cost.bytes_per_row += weight_bytes(0) / request.weights[0].rows().max(1);
        }
        Operation::Attention { heads, .. }
        | Operation::AttentionScores { heads, .. }
        | Operation::AttentionValues { heads, .. } => attention_cost(request, heads, &mut cost),
        Operation::CausalSoftmax => {
            // Only the visible part of a row of scores is touched.
            let heads = request.inputs[0].row_elements() / request.inputs[0].columns();
            cost.bytes_per_row = 0;
            cost.bytes_per_row_and_position = 2 * heads * Element::F32.bytes();
            cost.operations_per_row_and_position = 2 * heads;
        }
        _ => {
            cost.operations_per_row = request.outputs.iter().map(TensorType::row_elements).sum();
            cost.fixed_bytes = vector_bytes(request);
        }
    }
    cost
}

/// Bytes of biases and weights of norms.
fn vector_bytes(request: &KernelRequest) -> u64 {
    let vectors = request.weights.iter().filter(|weight| weight.extents().len() == 1);
    vectors.map(|weight| weight.columns() * weight.element.bytes()).sum()
}

fn attention_cost(request: &KernelRequest, heads: u64, cost: &mut Cost) {
    let cache_bytes: u64 = request
        .caches
        .iter()
        .map(|cache| cache.kv_heads * layout::padded_head_dim(cache) * cache.element.bytes())
        .sum();
    let head_dim = request.caches[0].head_dim;
    let products = request.caches.len() as u64;
    cost.bytes_per_row_and_position = cache_bytes;
    cost.operations_per_row_and_position = 2 * products * heads * head_dim;
    cost.bytes_per_row = heads * head_dim * (Element::F32.bytes() + Element::F32.bytes());
    if !matches!(request.operation, Operation::Attention { .. }) {
        cost.bytes_per_row_and_position += heads * Element::F32.bytes();
    }
}

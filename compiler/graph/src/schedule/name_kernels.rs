//! Makes the kernels out of requests and layouts, and names them.
//!
//! A name says the operation, its main extents, its flags, and the rows: `matmul_1152x896_bias_rows1`,
//! `attention_14x64_rows512`, `expert_matmul_60x2816x2048_silu_multiply_rows1`. Names that come out
//! equal (say, for two element types) are told apart by a number in the order of first use.

use std::collections::{BTreeMap, BTreeSet};

use qwen2c_request::{CacheKind, KernelRequest, Operation, WeightLayout};

use super::choose_kernels::Requests;
use super::{ListSpec, Schedule, ScheduledKernel, ScheduledList};
use crate::{Graph, Weight};

/// Joins requests and layouts to kernels and sets the layouts in all graphs.
pub(super) fn run(lists: Vec<ListSpec>, requests: Requests, weights: Vec<Weight>) -> Schedule {
    let layout_of: BTreeMap<String, Option<WeightLayout>> =
        weights.iter().map(|weight| (weight.name.clone(), weight.layout)).collect();
    let mut kernels: Vec<ScheduledKernel> = Vec::new();
    let mut index_of: BTreeMap<(usize, Vec<WeightLayout>), usize> = BTreeMap::new();
    let mut names = BTreeSet::new();
    let mut scheduled = Vec::with_capacity(lists.len());
    for (list, request_of) in lists.into_iter().zip(&requests.request_of) {
        let ListSpec { name, mut graph, max_rows, max_logit_rows } = list;
        set_layouts(&mut graph, &layout_of);
        let kernel_of = graph.operations.iter().zip(request_of).map(|(op, request)| {
            let layouts: Vec<WeightLayout> =
                op.weights.iter().filter_map(|id| graph.weight(*id).layout).collect();
            *index_of.entry((*request, layouts)).or_insert_with_key(|(request, layouts)| {
                let (request, choice) = requests.answers[*request].clone();
                let name = unique_name(&request, &mut names);
                kernels.push(ScheduledKernel { name, request, layouts: layouts.clone(), choice });
                kernels.len() - 1
            })
        });
        let kernel_of = kernel_of.collect();
        scheduled.push(ScheduledList { name, graph, max_rows, max_logit_rows, kernel_of });
    }
    Schedule { kernels, lists: scheduled, weights }
}

fn set_layouts(graph: &mut Graph, layout_of: &BTreeMap<String, Option<WeightLayout>>) {
    for weight in &mut graph.weights {
        weight.layout = layout_of.get(&weight.name).copied().flatten();
    }
}

fn unique_name(request: &KernelRequest, names: &mut BTreeSet<String>) -> String {
    let base = base_name(request);
    let mut name = base.clone();
    let mut number = 2;
    while !names.insert(name.clone()) {
        name = format!("{base}.{number}");
        number += 1;
    }
    name
}

/// Operation, extents, flags and rows.
fn base_name(request: &KernelRequest) -> String {
    let mut name = request.operation.name().to_owned();
    let extents: Vec<String> = extents(request).iter().map(u64::to_string).collect();
    if !extents.is_empty() {
        name.push('_');
        name.push_str(&extents.join("x"));
    }
    for (is_set, flag) in flags(request) {
        if is_set {
            name.push('_');
            name.push_str(flag);
        }
    }
    name.push_str(&format!("_rows{}", request.max_rows));
    name
}

/// The numbers that tell requests of one operation apart for a reader: heads and head size around the
/// cache, the weight's shape where there is one, else the result's.
fn extents(request: &KernelRequest) -> Vec<u64> {
    if let Some(cache) = request.caches.first() {
        return match request.operation {
            Operation::AttentionScores { heads, .. }
            | Operation::AttentionValues { heads, .. }
            | Operation::Attention { heads, .. }
            | Operation::AttentionBlocks { heads, .. }
            | Operation::RotateAndWriteCache { heads, .. } => vec![heads, cache.head_dim],
            Operation::ProjectAndWriteCache { .. } => request.weights[0].extents(),
            _ => vec![cache.kv_heads, cache.head_dim],
        };
    }
    match (&request.operation, request.weights.first(), request.outputs.first()) {
        (Operation::Rotate { head_dim }, _, Some(output)) => {
            vec![output.row_elements() / (*head_dim).max(1), *head_dim]
        }
        (_, Some(weight), _) => weight.extents(),
        (_, None, Some(output)) => {
            output.dimensions.iter().filter_map(|dimension| dimension.size.constant()).collect()
        }
        (_, None, None) => Vec::new(),
    }
}

fn flags(request: &KernelRequest) -> Vec<(bool, &'static str)> {
    match &request.operation {
        Operation::WriteCache => {
            let is_key = request.caches.first().is_some_and(|cache| cache.kind == CacheKind::Key);
            vec![(is_key, "key"), (!is_key, "value")]
        }
        Operation::Matmul { norm, bias, residual, silu_multiply } => vec![
            (norm.is_some(), "norm"),
            (*bias, "bias"),
            (*residual, "residual"),
            (*silu_multiply, "silu_multiply"),
        ],
        Operation::ProjectAndWriteCache { bias, norm, .. } => {
            vec![(norm.is_some(), "norm"), (*bias, "bias")]
        }
        Operation::RotateAndWriteCache { bias, .. } => vec![(*bias, "bias")],
        Operation::TopK { normalize, .. } => vec![(*normalize, "normalize")],
        Operation::ExpertMatmul { grouped, silu_multiply } => {
            vec![(*grouped, "grouped"), (*silu_multiply, "silu_multiply")]
        }
        Operation::CombineExperts { residual } => vec![(*residual, "residual")],
        _ => Vec::new(),
    }
}

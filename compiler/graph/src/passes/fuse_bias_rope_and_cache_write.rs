//! Adds the bias, rotates, and writes the cache in one operation.
//!
//! # What it does
//!
//! Turns what stands between a merged projection and its attention (bias, slices, rotations of query
//! and key, writes of key and value) into one operation that returns the rotated query.
//!
//! # Why
//!
//! Each of these steps does next to nothing but costs a barrier and a walk through the arena; keys and
//! values go to their cache without a stop.
//!
//! # Before
//!
//! ```text
//! %biased: f32[rows, query_key_value=32] = add_bias(%qkv, @qkv.bias)
//! %q: f32[rows, query=16] = slice(%biased) {first=0}
//! %k: f32[rows, key=8] = slice(%biased) {first=16}
//! %v: f32[rows, value=8] = slice(%biased) {first=24}
//! %q.rotated: f32[rows, query=16] = rotate(%q, %position, @rope) {head_dim=4}
//! %k.rotated: f32[rows, key=8] = rotate(%k, %position, @rope) {head_dim=4}
//! write_cache(%k.rotated, %position, %slot, #key)
//! write_cache(%v, %position, %slot, #value)
//! ```
//!
//! # After
//!
//! ```text
//! %q.rotated: f32[rows, query=16] = rotate_and_write_cache(%qkv, %position, %slot, @rope, @qkv.bias, #key, #value) {heads=4, bias}
//! ```
//!
//! # When it does not apply
//!
//! Without `merge_qkv_projections`, and where something else reads a value in between.

use qwen2c_request::{CacheKind, Operation};

use crate::passes::PassContext;
use crate::passes::rewrite::{Replacement, Uses, rewrite_all};
use crate::{Graph, Op, ValueId};

/// Fuses the way into all caches.
pub(super) fn run(graph: &mut Graph, _context: &PassContext<'_>) -> u64 {
    rewrite_all(graph, |graph, uses, index| find(graph, uses, index))
}

/// The operation that reads `value` alone, where it is of the kind asked for.
fn only_reader<'g>(graph: &'g Graph, uses: &Uses, value: ValueId) -> Option<(usize, &'g Op)> {
    let index = uses.only_reader(value)?;
    Some((index, &graph.operations[index]))
}

/// Looks for the pattern at the slice that takes the query.
fn find(graph: &Graph, uses: &Uses, index: usize) -> Option<Replacement> {
    let query_slice = &graph.operations[index];
    if query_slice.operation != (Operation::Slice { first: 0 }) {
        return None;
    }
    let merged = *query_slice.inputs.first()?;
    let [query, key, value] = find_slices(graph, uses, merged)?;

    let (query_rotate, query_op) = only_reader(graph, uses, graph.operations[query].outputs[0])?;
    let (key_rotate, key_op) = only_reader(graph, uses, graph.operations[key].outputs[0])?;
    let Operation::Rotate { head_dim } = query_op.operation else { return None };
    let are_alike = key_op.operation == query_op.operation
        && key_op.weights == query_op.weights
        && key_op.inputs.get(1) == query_op.inputs.get(1);
    let (key_write, key_write_op) = only_reader(graph, uses, key_op.outputs[0])?;
    let (value_write, value_write_op) = only_reader(graph, uses, graph.operations[value].outputs[0])?;
    let are_writes =
        [(key_write_op, CacheKind::Key), (value_write_op, CacheKind::Value)].iter().all(|(op, kind)| {
            op.operation == Operation::WriteCache
                && op.caches.iter().all(|id| graph.cache(*id).ty.kind == *kind)
        });
    if !are_alike || !are_writes || key_write_op.inputs[1..] != value_write_op.inputs[1..] {
        return None;
    }
    let [position, slot] = key_write_op.inputs[1..] else { return None };
    if query_op.inputs.get(1) != Some(&position) {
        return None;
    }

    let mut remove = vec![query, key, value, query_rotate, key_rotate, key_write, value_write];
    let mut weights = vec![*query_op.weights.first()?];
    let mut product = merged;
    let bias = uses.writer(merged).filter(|index| graph.operations[*index].operation == Operation::AddBias);
    if let Some(add_bias) = bias {
        remove.push(add_bias);
        weights.push(*graph.operations[add_bias].weights.first()?);
        product = *graph.operations[add_bias].inputs.first()?;
    }
    let heads = graph.value(query_op.outputs[0]).ty.row_elements() / head_dim;
    let fused = Op {
        operation: Operation::RotateAndWriteCache { heads, bias: bias.is_some() },
        layer: query_slice.layer,
        inputs: vec![product, position, slot],
        weights,
        caches: [key_write_op, value_write_op].iter().flat_map(|op| op.caches.clone()).collect(),
        outputs: query_op.outputs.clone(),
    };
    // Nothing reads the caches before their writes, and all other operands come before the slices.
    Some(Replacement { remove, at: index, insert: vec![fused] })
}

/// The slices of query, key and value, if they divide `merged` without a rest and nothing else reads it.
fn find_slices(graph: &Graph, uses: &Uses, merged: ValueId) -> Option<[usize; 3]> {
    let mut slices: Vec<(u64, usize)> = uses
        .readers(merged)
        .iter()
        .filter_map(|index| match graph.operations[*index].operation {
            Operation::Slice { first } => Some((first, *index)),
            _ => None,
        })
        .collect();
    slices.sort_unstable();
    let width = |index: usize| graph.value(graph.operations[index].outputs[0]).ty.row_elements();
    let [(0, query), (key_first, key), (value_first, value)] = slices[..] else { return None };
    let is_divided = key_first == width(query)
        && value_first == key_first + width(key)
        && width(key) == width(value)
        && value_first + width(value) == graph.value(merged).ty.row_elements();
    let is_private = uses.readers(merged).len() == 3 && !graph.outputs.contains(&merged);
    (is_divided && is_private).then_some([query, key, value])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::merge_qkv_projections;
    use crate::passes::tests::{ATTENTION, rewrite};

    fn merge_and_fuse(graph: &mut Graph, context: &PassContext<'_>) -> u64 {
        merge_qkv_projections::run(graph, context);
        run(graph, context)
    }

    #[test]
    fn a_merged_projection_goes_to_the_cache_at_once() {
        let (rewrites, after) = rewrite(merge_and_fuse, ATTENTION, 1);
        assert_eq!(rewrites, 1);
        insta::assert_snapshot!(after);
    }

    #[test]
    fn separate_projections_stay() {
        assert_eq!(rewrite(run, ATTENTION, 1), (0, ATTENTION.to_owned()));
    }

    #[test]
    fn a_rotated_key_with_another_reader_stays() {
        let shared =
            ATTENTION.replace("  output %attention\n", "  output %attention\n  output %key.rotated\n");
        let (rewrites, after) = rewrite(merge_and_fuse, &shared, 1);
        assert_eq!(rewrites, 0);
        assert!(!after.contains("rotate_and_write_cache"));
    }
}

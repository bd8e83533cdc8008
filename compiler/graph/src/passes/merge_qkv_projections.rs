//! Computes query, key and value with one projection.
//!
//! # What it does
//!
//! Joins the weights of the three projections that feed an attention, and their biases, along the
//! rows; slices of the one product take the place of the three.
//!
//! # Why
//!
//! The input is read once, one step and its barrier take the place of three, and the narrow key and
//! value projections of grouped heads no longer run alone. `fuse_bias_rope_and_cache_write` then reads
//! the product whole.
//!
//! # Before
//!
//! ```text
//! %q: f32[rows, query=64] = matmul(%x, @q.weight)
//! %k: f32[rows, key=16] = matmul(%x, @k.weight)
//! %v: f32[rows, value=16] = matmul(%x, @v.weight)
//! %q.biased: f32[rows, query=64] = add_bias(%q, @q.bias)
//! …
//! ```
//!
//! # After
//!
//! ```text
//! %qkv: f32[rows, query_key_value=96] = matmul(%x, @qkv.weight)
//! %qkv.biased: f32[rows, query_key_value=96] = add_bias(%qkv, @qkv.bias)
//! %q.biased: f32[rows, query=64] = slice(%qkv.biased) {first=0}
//! %k.biased: f32[rows, key=16] = slice(%qkv.biased) {first=64}
//! %v.biased: f32[rows, value=16] = slice(%qkv.biased) {first=80}
//! …
//! ```
//!
//! # When it does not apply
//!
//! Where the three do not read the same value, where only some of them have a bias, or where something
//! else reads a product.

use qwen2c_request::Operation;

use crate::passes::PassContext;
use crate::passes::merge_weights::merge_weights;
use crate::passes::rewrite::{Replacement, Uses, add_widened, joint_name, rewrite_all};
use crate::{CacheId, Graph, Op, ValueId};

/// A projection and the bias behind it.
struct Projection {
    matmul: usize,
    add_bias: Option<usize>,
    /// What the rest of the graph reads.
    result: ValueId,
}

/// Merges the projections of all attentions.
pub(super) fn run(graph: &mut Graph, _context: &PassContext<'_>) -> u64 {
    rewrite_all(graph, |graph, uses, index| {
        let projections = find_projections(graph, uses, index)?;
        merge(graph, &projections)
    })
}

/// The projections of query, key and value of the attention that begins at `index` with its scores.
fn find_projections(graph: &Graph, uses: &Uses, index: usize) -> Option<[Projection; 3]> {
    let scores = &graph.operations[index];
    if !matches!(scores.operation, Operation::AttentionScores { .. } | Operation::Attention { .. }) {
        return None;
    }
    let layer = scores.layer;
    let key_cache = *scores.caches.first()?;
    let value_cache = graph.operations.iter().find_map(|op| match op.operation {
        Operation::AttentionValues { .. } if op.layer == layer => op.caches.first().copied(),
        Operation::Attention { .. } if op.layer == layer => op.caches.get(1).copied(),
        _ => None,
    })?;
    let written_to = |cache: CacheId| {
        let mut writers = graph.operations.iter().filter(|op| op.operation == Operation::WriteCache);
        writers.find(|op| op.caches == [cache])?.inputs.first().copied()
    };
    Some([
        find_projection(graph, uses, *scores.inputs.first()?)?,
        find_projection(graph, uses, written_to(key_cache)?)?,
        find_projection(graph, uses, written_to(value_cache)?)?,
    ])
}

/// Walks back from a value over rotation and scale to the projection it comes from.
fn find_projection(graph: &Graph, uses: &Uses, mut value: ValueId) -> Option<Projection> {
    let mut add_bias = None;
    let mut result = value;
    loop {
        let index = uses.private_writer(graph, value)?;
        let op = &graph.operations[index];
        match op.operation {
            Operation::Rotate { .. } | Operation::Scale { .. } if add_bias.is_none() => result = op.inputs[0],
            Operation::AddBias if add_bias.is_none() => add_bias = Some(index),
            Operation::Matmul { norm: None, bias: false, residual: false, silu_multiply: false } => {
                return Some(Projection { matmul: index, add_bias, result });
            }
            _ => return None,
        }
        value = op.inputs[0];
    }
}

fn merge(graph: &mut Graph, projections: &[Projection; 3]) -> Option<Replacement> {
    let matmuls = projections.each_ref().map(|projection| graph.operations[projection.matmul].clone());
    if matmuls.iter().any(|matmul| matmul.inputs != matmuls[0].inputs) {
        return None;
    }
    let add_biases: Vec<Op> = projections
        .iter()
        .filter_map(|projection| Some(graph.operations[projection.add_bias?].clone()))
        .collect();
    if !matches!(add_biases.len(), 0 | 3) {
        return None;
    }
    let middle = "qkv";
    let dimension = "query_key_value";
    let weight =
        merge_weights(graph, &matmuls.each_ref().map(|matmul| matmul.weights[0]), middle, dimension)?;
    let width = graph.weight(weight).ty.extents()[0];
    let names = matmuls.each_ref().map(|matmul| graph.value(matmul.outputs[0]).name.clone());
    let name = joint_name(&names.each_ref().map(String::as_str), middle);
    let mut product = add_widened(graph, matmuls[0].outputs[0], &name, dimension, width);
    let mut insert = vec![Op { weights: vec![weight], outputs: vec![product], ..matmuls[0].clone() }];
    if let Some(first) = add_biases.first() {
        let biases: Vec<_> = add_biases.iter().map(|add_bias| add_bias.weights[0]).collect();
        let bias = merge_weights(graph, &biases, middle, dimension)?;
        let biased = add_widened(graph, product, &format!("{name}.biased"), dimension, width);
        let operation = first.operation.clone();
        insert.push(Op {
            operation,
            inputs: vec![product],
            weights: vec![bias],
            outputs: vec![biased],
            ..first.clone()
        });
        product = biased;
    }
    let mut first = 0;
    for projection in projections {
        insert.push(Op {
            operation: Operation::Slice { first },
            layer: matmuls[0].layer,
            inputs: vec![product],
            weights: Vec::new(),
            caches: Vec::new(),
            outputs: vec![projection.result],
        });
        first += graph.value(projection.result).ty.row_elements();
    }
    let remove: Vec<usize> = projections
        .iter()
        .flat_map(|projection| [Some(projection.matmul), projection.add_bias])
        .flatten()
        .collect();
    let at = remove.iter().copied().min()?;
    Some(Replacement { remove, at, insert })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::tests::{ATTENTION, rewrite};

    #[test]
    fn projections_with_biases_are_merged() {
        let (rewrites, after) = rewrite(run, ATTENTION, 1);
        assert_eq!(rewrites, 1);
        insta::assert_snapshot!(after);
    }

    #[test]
    fn projections_without_biases_are_merged() {
        let mut plain = ATTENTION.to_owned();
        for (name, width) in [("query", 16), ("key", 8), ("value", 8)] {
            let biased = format!(
                "%{name}.biased: f32[rows, {name}={width}] = add_bias(%{name}, @{name}.bias) layer 0"
            );
            assert!(plain.contains(&biased));
            plain = plain.replace(&biased, "").replace(&format!("{name}.biased"), name);
        }
        let (rewrites, after) = rewrite(run, &plain, 1);
        assert_eq!(rewrites, 1);
        assert_eq!(after.matches("matmul").count(), 1);
        assert!(!after.contains("add_bias"));
    }

    #[test]
    fn a_projection_of_another_value_stays() {
        let other = ATTENTION.replace("= matmul(%x, @key.weight)", "= matmul(%other, @key.weight)");
        assert_eq!(rewrite(run, &other, 1), (0, other));
    }

    #[test]
    fn a_single_missing_bias_keeps_them_apart() {
        let biased = "  %key.biased: f32[rows, key=8] = add_bias(%key, @key.bias) layer 0\n";
        assert!(ATTENTION.contains(biased));
        let uneven = ATTENTION.replace(biased, "").replace("%key.biased", "%key");
        assert_eq!(rewrite(run, &uneven, 1), (0, uneven));
    }
}

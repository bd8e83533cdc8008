//! Rotates and writes to the cache inside the projection of query, key and value.
//!
//! # What it does
//!
//! Makes one operation of a merged projection and of what `fuse_bias_rope_and_cache_write` left behind it.
//!
//! # Why
//!
//! On a device the way from one row's projection to the caches takes as long as starting it. Who has the two
//! sums that a rotation mixes can rotate them and store the result where it belongs.
//!
//! # Before
//!
//! ```text
//! %qkv: f32[rows, query_key_value=32] = matmul(%x, @qkv.weight)
//! %q.rotated: f32[rows, query=16] = rotate_and_write_cache(%qkv, %position, %slot, @rope, @qkv.bias, #key, #value) {heads=4, bias}
//! ```
//!
//! # After
//!
//! ```text
//! %q.rotated: f32[rows, query=16] = project_and_write_cache(%x, %position, %slot, @qkv.weight, @rope, @qkv.bias, #key, #value) {heads=4, bias}
//! ```
//!
//! # When it does not apply
//!
//! Where a step brings several rows, whose products go to the matrix unit, and on targets that start kernels
//! in no time. Where something else reads the projection, or it multiplies integers or has a weight of
//! another type than the activations, and where queries are rounded.

use qwen2c_request::{Element, Operation};

use crate::passes::PassContext;
use crate::passes::rewrite::{Replacement, Uses, rewrite_all};
use crate::{Graph, Op};

/// Fuses the projections of all layers.
pub(super) fn run(graph: &mut Graph, context: &PassContext<'_>) -> u64 {
    if context.max_rows > 1 || !context.target.prefers_few_launches {
        return 0;
    }
    rewrite_all(graph, |graph, uses, index| find(graph, uses, index))
}

fn find(graph: &Graph, uses: &Uses, index: usize) -> Option<Replacement> {
    let write = &graph.operations[index];
    let Operation::RotateAndWriteCache { heads, bias } = write.operation else { return None };
    let [merged, position, slot] = write.inputs[..] else { return None };
    if graph.value(*write.outputs.first()?).ty.element != Element::F32 {
        return None;
    }
    let product = uses.private_writer(graph, merged)?;
    let product_op = &graph.operations[product];
    let Operation::Matmul { norm, bias: false, residual: false, silu_multiply: false } = product_op.operation
    else {
        return None;
    };
    let (x, weight) = (*product_op.inputs.first()?, *product_op.weights.first()?);
    if norm.is_none() && graph.value(x).ty.element != graph.weight(weight).ty.element {
        return None;
    }
    let of_norm = &product_op.weights[1..];
    let fused = Op {
        operation: Operation::ProjectAndWriteCache { heads, bias, norm },
        layer: product_op.layer,
        inputs: vec![x, position, slot],
        weights: [&[weight], &write.weights[..], of_norm].concat(),
        caches: write.caches.clone(),
        outputs: write.outputs.clone(),
    };
    Some(Replacement { remove: vec![product, index], at: index, insert: vec![fused] })
}

#[cfg(test)]
mod tests {
    use qwen2c_request::TargetDescription;

    use super::*;
    use crate::passes::tests::{ATTENTION, rewrite};
    use crate::passes::{fuse_bias_rope_and_cache_write, merge_qkv_projections, round_attention};

    fn run_for_device(graph: &mut Graph, context: &PassContext<'_>) -> u64 {
        let target = TargetDescription { prefers_few_launches: true, ..context.target.clone() };
        run(graph, &PassContext { target: &target, ..*context })
    }

    fn merge(graph: &mut Graph, context: &PassContext<'_>) {
        merge_qkv_projections::run(graph, context);
        fuse_bias_rope_and_cache_write::run(graph, context);
    }

    fn merge_and_fuse(graph: &mut Graph, context: &PassContext<'_>) -> u64 {
        merge(graph, context);
        run_for_device(graph, context)
    }

    #[test]
    fn a_merged_projection_writes_to_the_cache() {
        let (rewrites, after) = rewrite(merge_and_fuse, ATTENTION, 1);
        assert_eq!(rewrites, 1);
        insta::assert_snapshot!(after);
    }

    #[test]
    fn several_rows_and_other_targets_keep_their_projection() {
        assert_eq!(rewrite(merge_and_fuse, ATTENTION, 8).0, 0);
        let on_a_processor = |graph: &mut Graph, context: &PassContext<'_>| {
            merge(graph, context);
            run(graph, context)
        };
        assert_eq!(rewrite(on_a_processor, ATTENTION, 1).0, 0);
    }

    #[test]
    fn a_projection_with_another_reader_stays() {
        let with_reader = |graph: &mut Graph, context: &PassContext<'_>| {
            merge(graph, context);
            let write = graph.operations.iter().find(|op| op.operation.writes_cache()).expect("a write");
            graph.outputs.push(write.inputs[0]);
            run_for_device(graph, context)
        };
        assert_eq!(rewrite(with_reader, ATTENTION, 1).0, 0);
    }

    #[test]
    fn rounded_queries_stay() {
        let rounded = |graph: &mut Graph, context: &PassContext<'_>| {
            merge(graph, context);
            round_attention::run(graph, context);
            run_for_device(graph, context)
        };
        assert_eq!(rewrite(rounded, ATTENTION, 1).0, 0);
    }

    #[test]
    fn a_weight_of_another_type_stays() {
        let exact = ATTENTION.replace(".weight: bf16", ".weight: f32");
        let (rewrites, after) = rewrite(merge_and_fuse, &exact, 1);
        assert_eq!(rewrites, 0);
        assert!(after.contains("rotate_and_write_cache"), "{after}");
    }
}

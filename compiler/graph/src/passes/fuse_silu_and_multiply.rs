//! Applies silu and the product with up where gate and up are computed.
//!
//! # What it does
//!
//! Turns silu and product into one operation; where its operands are the two halves of one projection
//! (`merge_gate_and_up`), that operation becomes the epilogue of the projection.
//!
//! # Why
//!
//! Gate and up never reach the arena: the widest activations of the model.
//!
//! # Before
//!
//! ```text
//! %gate_up: f32[rows, gate_up=64] = matmul(%x, @gate_up.weight)
//! %gate: f32[rows, intermediate=32] = slice(%gate_up) {first=0}
//! %up: f32[rows, intermediate=32] = slice(%gate_up) {first=32}
//! %silu: f32[rows, intermediate=32] = silu(%gate)
//! %product: bf16[rows, intermediate=32] = multiply(%silu, %up)
//! ```
//!
//! # After
//!
//! ```text
//! %product: bf16[rows, intermediate=32] = matmul(%x, @gate_up.weight) {silu_multiply}
//! ```
//!
//! # When it does not apply
//!
//! Where something else reads an intermediate value. Without `merge_gate_and_up` it stops at
//! `%product = silu_multiply(%gate, %up)`.

use qwen2c_request::Operation;

use crate::passes::PassContext;
use crate::passes::rewrite::{Replacement, Uses, rewrite_all};
use crate::{Graph, Op, ValueId};

/// Fuses all gated MLPs.
pub(super) fn run(graph: &mut Graph, _context: &PassContext<'_>) -> u64 {
    rewrite_all(graph, |graph, uses, index| match graph.operations[index].operation {
        Operation::Multiply => fuse_silu(graph, uses, index),
        Operation::SiluMultiply => fuse_into_projection(graph, uses, index),
        _ => None,
    })
}

/// `multiply(silu(gate), up)` → `silu_multiply(gate, up)`.
fn fuse_silu(graph: &Graph, uses: &Uses, index: usize) -> Option<Replacement> {
    let multiply = &graph.operations[index];
    let [left, right] = multiply.inputs.as_slice() else { return None };
    let silu_at = |value: ValueId| {
        let index = uses.private_writer(graph, value)?;
        (graph.operations[index].operation == Operation::Silu).then_some(index)
    };
    let (silu, up) = match (silu_at(*left), silu_at(*right)) {
        (Some(silu), _) => (silu, *right),
        (None, Some(silu)) => (silu, *left),
        (None, None) => return None,
    };
    let gate = *graph.operations[silu].inputs.first()?;
    let fused = Op { operation: Operation::SiluMultiply, inputs: vec![gate, up], ..multiply.clone() };
    Some(Replacement { remove: vec![silu, index], at: index, insert: vec![fused] })
}

/// `silu_multiply` of the halves of a projection → the projection with an epilogue.
fn fuse_into_projection(graph: &Graph, uses: &Uses, index: usize) -> Option<Replacement> {
    let silu_multiply = &graph.operations[index];
    let [gate, up] = silu_multiply.inputs.as_slice() else { return None };
    let half = graph.value(*gate).ty.dimensions.last()?.size.constant()?;
    let slices = [uses.private_writer(graph, *gate)?, uses.private_writer(graph, *up)?];
    let [gate_slice, up_slice] = slices.map(|slice| &graph.operations[slice]);
    let are_halves = gate_slice.operation == Operation::Slice { first: 0 }
        && up_slice.operation == Operation::Slice { first: half }
        && gate_slice.inputs == up_slice.inputs;
    let merged = *gate_slice.inputs.first()?;
    let is_whole = graph.value(merged).ty.dimensions.last()?.size.constant() == Some(2 * half);
    if !(are_halves && is_whole && uses.readers(merged).len() == 2 && !graph.outputs.contains(&merged)) {
        return None;
    }
    let projection = uses.writer(merged)?;
    let mut fused = graph.operations[projection].clone();
    match &mut fused.operation {
        Operation::Matmul { norm: None, bias: false, residual: false, silu_multiply }
        | Operation::ExpertMatmul { silu_multiply, .. } => *silu_multiply = true,
        _ => return None,
    }
    fused.outputs.clone_from(&silu_multiply.outputs);
    Some(Replacement {
        remove: vec![projection, slices[0], slices[1], index],
        at: index,
        insert: vec![fused],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::tests::{EXPERTS, MLP, rewrite};
    use crate::passes::{PassContext, merge_gate_and_up};

    fn merge_and_fuse(graph: &mut Graph, context: &PassContext<'_>) -> u64 {
        merge_gate_and_up::run(graph, context);
        run(graph, context)
    }

    #[test]
    fn separate_projections_get_one_product() {
        let (rewrites, after) = rewrite(run, MLP, 1);
        assert_eq!(rewrites, 1);
        insta::assert_snapshot!(after);
    }

    #[test]
    fn a_merged_projection_gets_an_epilogue() {
        let (rewrites, after) = rewrite(merge_and_fuse, MLP, 1);
        assert_eq!(rewrites, 2);
        insta::assert_snapshot!(after);
    }

    #[test]
    fn merged_experts_get_an_epilogue() {
        let (rewrites, after) = rewrite(merge_and_fuse, EXPERTS, 1);
        assert_eq!(rewrites, 2);
        assert_eq!(after.matches("expert_matmul").count(), 2);
        assert!(after.contains("{silu_multiply}"), "{after}");
    }

    #[test]
    fn a_product_without_silu_stays() {
        let plain = MLP.replace("= silu(%gate)", "= sigmoid(%gate)");
        assert_eq!(rewrite(run, &plain, 1), (0, plain));
    }

    #[test]
    fn a_silu_with_another_reader_stays() {
        let shared = MLP.replace("  output %down\n", "  output %down\n  output %gate.activated\n");
        assert_eq!(rewrite(run, &shared, 1), (0, shared));
    }
}

//! Computes gate and up with one projection.
//!
//! # What it does
//!
//! Joins the weights of the two projections of a gated MLP along the rows, gate first, for the dense
//! MLP, the shared expert and the routed experts alike; slices of the one product take the place of
//! the two.
//!
//! # Why
//!
//! The input is read once, and a kernel that holds a gate and its up together can combine them before
//! they are written: `fuse_silu_and_multiply` does.
//!
//! # Before
//!
//! ```text
//! %gate: f32[rows, intermediate=32] = matmul(%x, @gate.weight)
//! %up: f32[rows, intermediate=32] = matmul(%x, @up.weight)
//! ```
//!
//! # After
//!
//! ```text
//! %gate_up: f32[rows, gate_up=64] = matmul(%x, @gate_up.weight)
//! %gate: f32[rows, intermediate=32] = slice(%gate_up) {first=0}
//! %up: f32[rows, intermediate=32] = slice(%gate_up) {first=32}
//! ```
//!
//! # When it does not apply
//!
//! Where the two read different values, differ in width, or are read by something besides the product;
//! where all experts come from one tensor, between whose rows no others fit.

use qwen2c_request::Operation;

use crate::passes::PassContext;
use crate::passes::merge_weights::merge_weights;
use crate::passes::rewrite::{Replacement, Uses, add_widened, joint_name, rewrite_all};
use crate::{Graph, Op};

/// Merges the projections of all gated MLPs.
pub(super) fn run(graph: &mut Graph, _context: &PassContext<'_>) -> u64 {
    rewrite_all(graph, |graph, uses, index| {
        let [gate, up] = find_projections(graph, uses, index)?;
        merge(graph, gate, up)
    })
}

/// The projections of gate and up that meet in the product at `index`.
fn find_projections(graph: &Graph, uses: &Uses, index: usize) -> Option<[usize; 2]> {
    let multiply = &graph.operations[index];
    let [left, right] = multiply.inputs.as_slice() else { return None };
    let silu_of = |value| {
        let op = &graph.operations[uses.private_writer(graph, value)?];
        if op.operation == Operation::Silu { op.inputs.first().copied() } else { None }
    };
    let (gate, up) = match multiply.operation {
        Operation::SiluMultiply => (*left, *right),
        Operation::Multiply => match (silu_of(*left), silu_of(*right)) {
            (Some(gate), _) => (gate, *right),
            (None, Some(gate)) => (gate, *left),
            (None, None) => return None,
        },
        _ => return None,
    };
    let projections = [uses.private_writer(graph, gate)?, uses.private_writer(graph, up)?];
    let [gate, up] = projections.map(|index| &graph.operations[index]);
    let is_plain = matches!(
        gate.operation,
        Operation::Matmul { norm: None, bias: false, residual: false, silu_multiply: false }
            | Operation::ExpertMatmul { silu_multiply: false, .. }
    );
    let is_alike = gate.operation == up.operation
        && gate.inputs == up.inputs
        && graph.value(gate.outputs[0]).ty == graph.value(up.outputs[0]).ty;
    (is_plain && is_alike).then_some(projections)
}

fn merge(graph: &mut Graph, gate_index: usize, up_index: usize) -> Option<Replacement> {
    let [gate, up] = [gate_index, up_index].map(|index| graph.operations[index].clone());
    let [gate_value, up_value] = [gate.outputs[0], up.outputs[0]];
    let half = graph.value(gate_value).ty.dimensions.last()?.size.constant()?;
    let (middle, dimension) = ("gate_up", "gate_up");
    let weight = merge_weights(graph, &[gate.weights[0], up.weights[0]], middle, dimension)?;
    let name = joint_name(&[&graph.value(gate_value).name, &graph.value(up_value).name], middle);
    let product = add_widened(graph, gate_value, &name, dimension, 2 * half);
    let slice = |first, output| Op {
        operation: Operation::Slice { first },
        layer: gate.layer,
        inputs: vec![product],
        weights: Vec::new(),
        caches: Vec::new(),
        outputs: vec![output],
    };
    let insert = vec![
        Op { weights: vec![weight], outputs: vec![product], ..gate.clone() },
        slice(0, gate_value),
        slice(half, up_value),
    ];
    Some(Replacement { remove: vec![gate_index, up_index], at: gate_index.min(up_index), insert })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::tests::{EXPERTS, MLP, rewrite};

    #[test]
    fn a_dense_mlp_is_merged() {
        let (rewrites, after) = rewrite(run, MLP, 1);
        assert_eq!(rewrites, 1);
        insta::assert_snapshot!(after);
    }

    #[test]
    fn experts_are_merged_one_by_one() {
        let (rewrites, after) = rewrite(run, EXPERTS, 1);
        assert_eq!(rewrites, 1);
        insta::assert_snapshot!(after);
    }

    #[test]
    fn experts_in_one_tensor_stay() {
        let stacked = EXPERTS.replace(r#"3 * ("experts.{}.up"[32])"#, r#""experts.up"[96]"#);
        assert_ne!(stacked, EXPERTS);
        assert_eq!(rewrite(run, &stacked, 1), (0, stacked));
    }

    #[test]
    fn a_gate_with_another_reader_stays() {
        let shared = MLP.replace("  output %down\n", "  output %down\n  output %gate\n");
        assert_eq!(rewrite(run, &shared, 1), (0, shared));
    }
}

//! Widens MLPs and experts to a multiple of the vector width.
//!
//! # What it does
//!
//! Appends zero rows to the gate and up projections and zero columns to the down projection, so that
//! their common width is a multiple of the target's vector lanes.
//!
//! # Why
//!
//! Kernels then have no ragged edge in the middle of a block. The added elements are exactly zero from
//! the weights to the product (`silu(0) · 0 = 0`), and adding zeros changes no sum.
//!
//! # Before
//!
//! ```text
//! weight @gate.weight: bf16[intermediate=13, hidden=64] = "gate_proj.weight"[13]
//! weight @down.weight: bf16[hidden=64, intermediate=13] = "down_proj.weight"[64]
//! %gate: f32[rows, intermediate=13] = matmul(%x, @gate.weight)
//! ```
//!
//! # After
//!
//! ```text
//! weight @gate.weight: bf16[intermediate=16, hidden=64] = "gate_proj.weight"[13 padded 16]
//! weight @down.weight: bf16[hidden=64, intermediate=16] = "down_proj.weight"[64] columns 13
//! %gate: f32[rows, intermediate=16] = matmul(%x, @gate.weight)
//! ```
//!
//! # When it does not apply
//!
//! Where the width is a multiple already, where a weight or a value of the chain has another reader, or
//! where all experts come from one tensor, between whose experts no zeros fit. Readers of checkpoints give
//! each expert as a tensor of its own, also where a file stacks them, so that this is a graph written by hand.
//! Groups of a quantized weight need no padding: the last of a row may be shorter.

use qwen2c_request::{Operation, Size};

use crate::passes::PassContext;
use crate::passes::rewrite::{Uses, weight_readers};
use crate::{Graph, ValueId, WeightId, WeightSource};

/// A gated MLP: what must be widened together.
struct GatedMlp {
    /// Gate, its silu, up, and their product.
    values: [ValueId; 4],
    /// Gate and up.
    first_weights: [WeightId; 2],
    down: WeightId,
    width: u64,
}

/// Pads all gated MLPs.
pub(super) fn run(graph: &mut Graph, context: &PassContext<'_>) -> u64 {
    let uses = Uses::new(graph);
    let mut rewrites = 0;
    for index in 0..graph.operations.len() {
        let Some(mlp) = find_gated_mlp(graph, &uses, index) else { continue };
        let padded = mlp.width.next_multiple_of(u64::from(context.target.vector_lanes.max(1)));
        let can_be_padded = padded != mlp.width
            && mlp.first_weights.iter().all(|weight| has_rows_to_pad(graph, *weight, mlp.width))
            && graph.weight(mlp.down).source_columns == mlp.width
            && mlp.first_weights.iter().chain([&mlp.down]).all(|weight| weight_readers(graph, *weight) == 1);
        if can_be_padded {
            pad(graph, &mlp, padded);
            rewrites += 1;
        }
    }
    rewrites
}

/// The MLP around the product at `index`.
fn find_gated_mlp(graph: &Graph, uses: &Uses, index: usize) -> Option<GatedMlp> {
    let multiply = &graph.operations[index];
    let ([left, right], [product]) = (multiply.inputs.as_slice(), multiply.outputs.as_slice()) else {
        return None;
    };
    if multiply.operation != Operation::Multiply {
        return None;
    }
    let silu_of = |value: ValueId| {
        let op = &graph.operations[uses.private_writer(graph, value)?];
        if op.operation == Operation::Silu { op.inputs.first().copied() } else { None }
    };
    let (gate, silu, up) = match (silu_of(*left), silu_of(*right)) {
        (Some(gate), _) => (gate, *left, *right),
        (None, Some(gate)) => (gate, *right, *left),
        (None, None) => return None,
    };
    let projection_of = |value: ValueId| {
        let op = &graph.operations[uses.private_writer(graph, value)?];
        is_plain_projection(&op.operation).then(|| op.weights[0])
    };
    let down = &graph.operations[uses.only_reader(*product)?];
    if !is_plain_projection(&down.operation) || down.inputs[0] != *product {
        return None;
    }
    Some(GatedMlp {
        values: [gate, silu, up, *product],
        first_weights: [projection_of(gate)?, projection_of(up)?],
        down: down.weights[0],
        width: graph.value(*product).ty.dimensions.last()?.size.constant()?,
    })
}

/// A projection without bias, residual or epilogue.
fn is_plain_projection(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::Matmul { norm: None, bias: false, residual: false, silu_multiply: false }
            | Operation::ExpertMatmul { silu_multiply: false, .. }
    )
}

/// Whether the weight is made of tensors of `width` rows, each of which can be padded.
fn has_rows_to_pad(graph: &Graph, weight: WeightId, width: u64) -> bool {
    match &graph.weight(weight).source {
        WeightSource::Tensors(parts) => {
            parts.iter().all(|part| part.rows == width && part.padded_rows == width)
        }
        WeightSource::RopeTable(_) | WeightSource::UnresolvedRopeTable => false,
    }
}

fn pad(graph: &mut Graph, mlp: &GatedMlp, padded: u64) {
    for id in mlp.values {
        if let Some(last) = graph.values[id.0 as usize].ty.dimensions.last_mut() {
            last.size = Size::Constant(padded);
        }
    }
    for id in mlp.first_weights {
        let weight = &mut graph.weights[id.0 as usize];
        if let [.., rows, _] = weight.ty.dimensions.as_mut_slice() {
            rows.size = Size::Constant(padded);
        }
        if let WeightSource::Tensors(parts) = &mut weight.source {
            for part in parts {
                part.padded_rows = padded;
            }
        }
    }
    if let Some(columns) = graph.weights[mlp.down.0 as usize].ty.dimensions.last_mut() {
        columns.size = Size::Constant(padded);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::tests::rewrite;

    const DENSE: &str = r#"graph mlp {
  input %x: bf16[rows, hidden=64]
  weight @gate.weight: bf16[intermediate=13, hidden=64] = "gate_proj.weight"[13]
  weight @up.weight: bf16[intermediate=13, hidden=64] = "up_proj.weight"[13]
  weight @down.weight: bf16[hidden=64, intermediate=13] = "down_proj.weight"[64]
  %gate: f32[rows, intermediate=13] = matmul(%x, @gate.weight) layer 0
  %up: f32[rows, intermediate=13] = matmul(%x, @up.weight) layer 0
  %silu: f32[rows, intermediate=13] = silu(%gate) layer 0
  %product: bf16[rows, intermediate=13] = multiply(%silu, %up) layer 0
  %down: f32[rows, hidden=64] = matmul(%product, @down.weight) layer 0
  output %down
}
"#;

    const EXPERTS: &str = r#"graph experts {
  input %x: bf16[rows, hidden=64]
  input %experts: i32[rows, choices=2]
  weight @gate.weight: bf16[experts=3, intermediate=20, hidden=64] = 3 * ("experts.{}.gate"[20])
  weight @up.weight: bf16[experts=3, intermediate=20, hidden=64] = 3 * ("experts.{}.up"[20])
  weight @down.weight: bf16[experts=3, hidden=64, intermediate=20] = 3 * ("experts.{}.down"[64])
  %gate: f32[rows, choices=2, intermediate=20] = expert_matmul(%x, %experts, @gate.weight) layer 0
  %up: f32[rows, choices=2, intermediate=20] = expert_matmul(%x, %experts, @up.weight) layer 0
  %silu: f32[rows, choices=2, intermediate=20] = silu(%gate) layer 0
  %product: bf16[rows, choices=2, intermediate=20] = multiply(%silu, %up) layer 0
  %down: f32[rows, choices=2, hidden=64] = expert_matmul(%product, %experts, @down.weight) layer 0
  output %down
}
"#;

    #[test]
    fn a_dense_mlp_is_padded() {
        let (rewrites, after) = rewrite(run, DENSE, 1);
        assert_eq!(rewrites, 1);
        insta::assert_snapshot!(after);
    }

    #[test]
    fn experts_are_padded_one_by_one() {
        let (rewrites, after) = rewrite(run, EXPERTS, 1);
        assert_eq!(rewrites, 1);
        insta::assert_snapshot!(after);
    }

    #[test]
    fn an_even_width_stays() {
        let even = DENSE.replace("13", "32");
        assert_eq!(rewrite(run, &even, 1), (0, even));
    }

    #[test]
    fn experts_in_one_tensor_stay() {
        let stacked = EXPERTS.replace(r#"3 * ("experts.{}.up"[20])"#, r#""experts.up"[60]"#);
        assert_eq!(rewrite(run, &stacked, 1), (0, stacked));
    }
}

//! Adds a bias inside the projection before it.
//!
//! # What it does
//!
//! Makes the bias of a projection its second weight. It serves what `fuse_bias_rope_and_cache_write`
//! left over.
//!
//! # Why
//!
//! The product is written once instead of written, read and written again.
//!
//! # Before
//!
//! ```text
//! %y: f32[rows, n=16] = matmul(%x, @y.weight)
//! %biased: f32[rows, n=16] = add_bias(%y, @y.bias)
//! ```
//!
//! # After
//!
//! ```text
//! %biased: f32[rows, n=16] = matmul(%x, @y.weight, @y.bias) {bias}
//! ```
//!
//! # When it does not apply
//!
//! Where something else reads the product, or the projection has a bias, a residual or an epilogue.

use qwen2c_request::Operation;

use crate::passes::PassContext;
use crate::passes::rewrite::{Replacement, Uses, rewrite_all};
use crate::{Graph, Op};

/// Fuses all biases.
pub(super) fn run(graph: &mut Graph, _context: &PassContext<'_>) -> u64 {
    rewrite_all(graph, |graph, uses, index| find(graph, uses, index))
}

fn find(graph: &Graph, uses: &Uses, index: usize) -> Option<Replacement> {
    let add_bias = &graph.operations[index];
    if add_bias.operation != Operation::AddBias {
        return None;
    }
    let matmul = uses.private_writer(graph, *add_bias.inputs.first()?)?;
    let matmul_op = &graph.operations[matmul];
    if matmul_op.operation
        != (Operation::Matmul { norm: None, bias: false, residual: false, silu_multiply: false })
    {
        return None;
    }
    let fused = Op {
        operation: Operation::Matmul { norm: None, bias: true, residual: false, silu_multiply: false },
        weights: matmul_op.weights.iter().chain(&add_bias.weights).copied().collect(),
        outputs: add_bias.outputs.clone(),
        ..matmul_op.clone()
    };
    Some(Replacement { remove: vec![matmul, index], at: index, insert: vec![fused] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::tests::{ATTENTION, rewrite};

    #[test]
    fn biases_join_their_projections() {
        let (rewrites, after) = rewrite(run, ATTENTION, 1);
        assert_eq!(rewrites, 3);
        insta::assert_snapshot!(after);
    }

    #[test]
    fn a_product_with_another_reader_stays() {
        let outputs = "  output %attention\n  output %query\n  output %key\n  output %value\n";
        let shared = ATTENTION.replace("  output %attention\n", outputs);
        assert_eq!(rewrite(run, &shared, 1), (0, shared));
    }
}

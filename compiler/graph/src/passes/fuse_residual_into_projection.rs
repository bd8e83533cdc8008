//! Adds the residual stream inside the projection before it.
//!
//! # What it does
//!
//! Makes the other operand of a sum an input of the projection, or of the combination of experts, that
//! computes one operand.
//!
//! # Why
//!
//! The product is not written and read again, and a step and its barrier go.
//!
//! # Before
//!
//! ```text
//! %y: f32[rows, hidden=64] = matmul(%x, @y.weight)
//! %sum: f32[rows, hidden=64] = add(%h, %y)
//! ```
//!
//! # After
//!
//! ```text
//! %sum: f32[rows, hidden=64] = matmul(%x, %h, @y.weight) {residual}
//! ```
//!
//! # When it does not apply
//!
//! Where something else reads the product, or the projection has a residual or an epilogue.

use qwen2c_request::Operation;

use crate::passes::PassContext;
use crate::passes::rewrite::{Replacement, Uses, rewrite_all};
use crate::{Graph, ValueId};

/// Fuses all sums.
pub(super) fn run(graph: &mut Graph, _context: &PassContext<'_>) -> u64 {
    rewrite_all(graph, |graph, uses, index| {
        let add = &graph.operations[index];
        let [left, right] = add.inputs.as_slice() else { return None };
        if add.operation != Operation::Add {
            return None;
        }
        fuse(graph, uses, index, *right, *left).or_else(|| fuse(graph, uses, index, *left, *right))
    })
}

fn fuse(
    graph: &Graph,
    uses: &Uses,
    index: usize,
    product: ValueId,
    residual: ValueId,
) -> Option<Replacement> {
    let writer = uses.private_writer(graph, product)?;
    let mut fused = graph.operations[writer].clone();
    match &mut fused.operation {
        Operation::Matmul { residual: residual @ false, silu_multiply: false, .. }
        | Operation::CombineExperts { residual: residual @ false } => *residual = true,
        _ => return None,
    }
    fused.inputs.push(residual);
    fused.outputs.clone_from(&graph.operations[index].outputs);
    Some(Replacement { remove: vec![writer, index], at: index, insert: vec![fused] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::tests::{EXPERTS, MLP, rewrite};

    #[test]
    fn a_sum_joins_the_projection() {
        let added = MLP.replace(
            "  output %down\n",
            "  %sum: f32[rows, hidden=64] = add(%h, %down) layer 0\n  output %sum\n",
        );
        let (rewrites, after) = rewrite(run, &added, 1);
        assert_eq!(rewrites, 1);
        insta::assert_snapshot!(after);
    }

    #[test]
    fn a_sum_joins_the_combination_of_experts() {
        let added = EXPERTS.replace(
            "  output %sum\n",
            "  %total: f32[rows, hidden=64] = add(%sum, %h) layer 0\n  output %total\n",
        );
        let (rewrites, after) = rewrite(run, &added, 1);
        assert_eq!(rewrites, 1);
        assert!(after.contains("combine_experts(%down, %weights, %h) {residual}"), "{after}");
    }

    #[test]
    fn a_product_with_another_reader_stays() {
        let shared = MLP.replace(
            "  output %down\n",
            "  %sum: f32[rows, hidden=64] = add(%h, %down) layer 0\n  output %sum\n  output %down\n",
        );
        assert_eq!(rewrite(run, &shared, 1), (0, shared));
    }

    #[test]
    fn a_product_added_to_itself_stays() {
        let doubled = MLP.replace(
            "  output %down\n",
            "  %sum: f32[rows, hidden=64] = add(%down, %down) layer 0\n  output %sum\n",
        );
        assert_eq!(rewrite(run, &doubled, 1), (0, doubled));
    }
}

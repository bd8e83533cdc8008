//! Computes scores, softmax and the sum of values in one walk over the cache.
//!
//! # What it does
//!
//! Turns the three operations of an attention into one.
//!
//! # Why
//!
//! Scores and probabilities, which grow with the context, never reach the arena: the softmax is kept
//! as a running maximum and sum (Milakov and Gimelshein 2018; Dao et al. 2022).
//!
//! # Before
//!
//! ```text
//! %scores: f32[rows, heads=4, context=64] = attention_scores(%q, %position, %slot, #key) {heads=4, scale=0.5}
//! %probabilities: f32[rows, heads=4, context=64] = causal_softmax(%scores, %position)
//! %attention: bf16[rows, query=16] = attention_values(%probabilities, %position, %slot, #value) {heads=4}
//! ```
//!
//! # After
//!
//! ```text
//! %attention: bf16[rows, query=16] = attention(%q, %position, %slot, #key, #value) {heads=4, scale=0.5}
//! ```
//!
//! # When it does not apply
//!
//! Where something else reads scores or probabilities, or the three disagree on positions or slots.

use qwen2c_request::Operation;

use crate::passes::PassContext;
use crate::passes::rewrite::{Replacement, Uses, rewrite_all};
use crate::{Graph, Op};

/// Fuses all attentions.
pub(super) fn run(graph: &mut Graph, _context: &PassContext<'_>) -> u64 {
    rewrite_all(graph, |graph, uses, index| find(graph, uses, index))
}

fn find(graph: &Graph, uses: &Uses, index: usize) -> Option<Replacement> {
    let values = &graph.operations[index];
    let Operation::AttentionValues { heads, rounded } = values.operation else { return None };
    let [probabilities, position, slot] = values.inputs[..] else { return None };
    let softmax = uses.private_writer(graph, probabilities)?;
    let softmax_op = &graph.operations[softmax];
    if softmax_op.operation != Operation::CausalSoftmax {
        return None;
    }
    let scores = uses.private_writer(graph, *softmax_op.inputs.first()?)?;
    let scores_op = &graph.operations[scores];
    let Operation::AttentionScores { heads: score_heads, scale } = scores_op.operation else { return None };
    let agrees = score_heads == heads
        && softmax_op.inputs.get(1) == Some(&position)
        && scores_op.inputs[1..] == [position, slot];
    let fused = Op {
        operation: Operation::Attention { heads, scale, rounded },
        inputs: scores_op.inputs.clone(),
        caches: scores_op.caches.iter().chain(&values.caches).copied().collect(),
        ..values.clone()
    };
    agrees.then(|| Replacement { remove: vec![scores, softmax, index], at: index, insert: vec![fused] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::tests::{ATTENTION, rewrite};

    #[test]
    fn an_attention_becomes_one_operation() {
        let (rewrites, after) = rewrite(run, ATTENTION, 1);
        assert_eq!(rewrites, 1);
        insta::assert_snapshot!(after);
    }

    #[test]
    fn probabilities_with_another_reader_stay() {
        let shared =
            ATTENTION.replace("  output %attention\n", "  output %attention\n  output %probabilities\n");
        assert_eq!(rewrite(run, &shared, 1), (0, shared));
    }
}

//! Leaves the largest logits of a generated token.
//!
//! # What it does
//!
//! Appends to the head the choice of the 64 largest logits with their ids, largest first, as further results
//! of the step.
//!
//! # Why
//!
//! A device would copy all logits to the host for every token, 600 KB of a vocabulary of 150 000, and the
//! host would search them all. Greedy decoding needs the first candidate, and top-k with its usual 20 to 50
//! needs no more than these; where a sampler wants to see all logits, they are still there.
//!
//! # Before
//!
//! ```text
//! %logits: f32[logit_rows, vocabulary=151936] = matmul(%x, @embedding)
//! output %logits
//! ```
//!
//! # After
//!
//! ```text
//! %logits: f32[logit_rows, vocabulary=151936] = matmul(%x, @embedding)
//! %candidates: f32[logit_rows, candidates=64], %candidates.ids: i32[logit_rows, candidates=64] = top_k(%logits) {k=64}
//! output %logits
//! output %candidates
//! output %candidates.ids
//! ```
//!
//! # When it does not apply
//!
//! Where the host reads the arena itself. Behind a prompt, whose logits are copied once.

use qwen2c_request::{Dimension, Element, Operation, TensorType};

use crate::passes::PassContext;
use crate::{Graph, Op};

/// Candidates that a step leaves.
const CANDIDATES: u64 = 64;

/// Selects the candidates of the graph's logits.
pub(super) fn run(graph: &mut Graph, context: &PassContext<'_>) -> u64 {
    if !context.target.has_own_memory || context.max_rows != 1 {
        return 0;
    }
    let logits = graph.outputs.iter().find(|output| graph.value(**output).name == "logits");
    let Some(&logits) = logits else { return 0 };
    let [rows, vocabulary] = graph.value(logits).ty.dimensions.as_slice() else { return 0 };
    let Some(vocabulary) = vocabulary.size.constant() else { return 0 };
    let k = CANDIDATES.min(vocabulary);
    let dimensions = vec![rows.clone(), Dimension::constant("candidates", k)];
    let ty = |element| TensorType { dimensions: dimensions.clone(), element };
    let values = graph.add_value("candidates", ty(Element::F32));
    let ids = graph.add_value("candidates.ids", ty(Element::I32));
    graph.operations.push(Op {
        operation: Operation::TopK { k, normalize: false },
        layer: None,
        inputs: vec![logits],
        weights: Vec::new(),
        caches: Vec::new(),
        outputs: vec![values, ids],
    });
    graph.outputs.extend([values, ids]);
    1
}

#[cfg(test)]
mod tests {
    use qwen2c_request::TargetDescription;

    use super::*;
    use crate::passes::tests::{HEAD, context, rewrite, tiny_config};
    use crate::{parse_graph, print_graph, verify};

    #[test]
    fn the_largest_logits_become_results() {
        let (rewrites, after) = rewrite(run, HEAD, 1);
        assert_eq!(rewrites, 1);
        insta::assert_snapshot!(after);
    }

    #[test]
    fn a_small_vocabulary_has_as_many_candidates_as_ids() {
        let small = HEAD.replace("vocabulary=101", "vocabulary=7").replace("[101]", "[7]");
        let (rewrites, after) = rewrite(run, &small, 1);
        assert_eq!(rewrites, 1);
        assert!(after.contains("{k=7}"), "{after}");
    }

    #[test]
    fn prompts_stay() {
        assert_eq!(rewrite(run, HEAD, 8), (0, HEAD.to_owned()));
    }

    #[test]
    fn a_graph_without_logits_stays() {
        let other = HEAD.replace("%logits", "%scores");
        assert_eq!(rewrite(run, &other, 1), (0, other));
    }

    #[test]
    fn logits_that_the_host_reads_itself_stay() {
        let mut graph = parse_graph(HEAD).expect("a graph");
        let config = tiny_config();
        let context = context(&config, 1);
        let target = TargetDescription { has_own_memory: false, ..context.target.clone() };
        let context = PassContext { target: &target, ..context };
        assert_eq!(run(&mut graph, &context), 0);
        verify(&graph).expect("it verifies");
        assert_eq!(print_graph(&graph), HEAD);
    }
}

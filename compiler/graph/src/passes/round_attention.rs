//! Rounds queries and the weights of values to bf16 where a target multiplies pairs of that.
//!
//! # What it does
//!
//! Makes the queries of an attention over caches of bf16 bf16 themselves, and lets it round what it multiplies
//! values with: in each block of positions, weights as ratios to the largest of them. The sum that they are
//! divided by stays as it is.
//!
//! # Why
//!
//! An instruction that multiplies two pairs of bf16 and adds them does with one vector of the cache what
//! otherwise takes a widening and a multiplication for each half. Keys and values have been rounded to bf16
//! anyway. Rounding is part of the graph, so that the interpreter and every program round alike.
//!
//! # Before
//!
//! ```text
//! %q: f32[rows, query=16] = rotate(%query, %position, @rope) {head_dim=4}
//! %attention: bf16[rows, query=16] = attention(%q, %position, %slot, #key, #value) {heads=4, scale=0.5}
//! ```
//!
//! # After
//!
//! ```text
//! %q: bf16[rows, query=16] = rotate(%query, %position, @rope) {head_dim=4}
//! %attention: bf16[rows, query=16] = attention(%q, %position, %slot, #key, #value) {heads=4, scale=0.5, rounded}
//! ```
//!
//! # When it does not apply
//!
//! Where caches have another type: whoever asks for f32 wants no rounding. On targets without such an
//! instruction. Queries that something else reads stay as they are.

use qwen2c_request::{Element, Operation};

use crate::passes::PassContext;
use crate::passes::rewrite::Uses;
use crate::{Graph, Op, ValueId};

/// Rounds all attentions.
pub(super) fn run(graph: &mut Graph, context: &PassContext<'_>) -> u64 {
    if !context.target.multiplies_bf16_pairs {
        return 0;
    }
    let uses = Uses::new(graph);
    let mut rewrites = 0;
    for index in 0..graph.operations.len() {
        if !reads_bf16_cache(graph, &graph.operations[index]) {
            continue;
        }
        let op = &mut graph.operations[index];
        if let Operation::Attention { rounded, .. } | Operation::AttentionValues { rounded, .. } =
            &mut op.operation
        {
            rewrites += u64::from(!*rounded);
            *rounded = true;
        }
        let multiplies_keys =
            matches!(op.operation, Operation::Attention { .. } | Operation::AttentionScores { .. });
        if let (true, Some(query)) = (multiplies_keys, op.inputs.first().copied()) {
            rewrites += round_query(graph, &uses, query);
        }
    }
    rewrites
}

fn reads_bf16_cache(graph: &Graph, op: &Op) -> bool {
    !op.caches.is_empty() && op.caches.iter().all(|cache| graph.cache(*cache).ty.element == Element::Bf16)
}

/// Rounds the rotated query that becomes `query`: where that is scaled, what it is scaled from, so that it
/// makes no difference whether the factor has been moved into the attention.
fn round_query(graph: &mut Graph, uses: &Uses, query: ValueId) -> u64 {
    let Some(writer) = uses.private_writer(graph, query) else { return 0 };
    let op = &graph.operations[writer];
    match op.operation {
        Operation::Scale { .. } => match op.inputs[..] {
            [rotated] => round_query(graph, uses, rotated),
            _ => 0,
        },
        Operation::Rotate { .. } | Operation::RotateAndWriteCache { .. } => {
            graph.values[query.0 as usize].ty.element = Element::Bf16;
            1
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use qwen2c_request::TargetDescription;

    use super::*;
    use crate::passes::tests::{ATTENTION, context, rewrite, tiny_config};
    use crate::text::{parse_graph, print_graph};

    #[test]
    fn queries_and_weights_are_rounded() {
        let (rewrites, after) = rewrite(run, ATTENTION, 1);
        assert_eq!(rewrites, 2);
        insta::assert_snapshot!(after);
    }

    #[test]
    fn a_fused_attention_is_rounded() {
        let (_, fused) = rewrite(crate::passes::fuse_attention::run, ATTENTION, 1);
        let (rewrites, after) = rewrite(run, &fused, 1);
        assert_eq!(rewrites, 2);
        insta::assert_snapshot!(after);
    }

    #[test]
    fn a_scaled_query_is_rounded_before_its_factor() {
        let scaled = ATTENTION.replace(
            "  %scores: f32[rows, heads=4, context=64] = attention_scores(%query.rotated,",
            "  %query.scaled: f32[rows, query=16] = scale(%query.rotated) {factor=0.3} layer 0\n  %scores: f32[rows, heads=4, context=64] = attention_scores(%query.scaled,",
        );
        let (rewrites, after) = rewrite(run, &scaled, 1);
        assert_eq!(rewrites, 2);
        assert!(after.contains("%query.rotated: bf16[rows, query=16] = rotate"), "{after}");
        assert!(after.contains("%query.scaled: f32[rows, query=16] = scale"), "{after}");
    }

    #[test]
    fn a_query_with_another_reader_stays() {
        let shared =
            ATTENTION.replace("  output %attention\n", "  output %attention\n  output %query.rotated\n");
        let (rewrites, after) = rewrite(run, &shared, 1);
        assert_eq!(rewrites, 1);
        assert!(after.contains("%query.rotated: f32[rows, query=16] = rotate"), "{after}");
    }

    #[test]
    fn a_cache_of_another_type_stays() {
        let exact = ATTENTION.replace("key bf16[", "key f32[").replace("value bf16[", "value f32[");
        assert_eq!(rewrite(run, &exact, 1), (0, exact));
    }

    #[test]
    fn a_target_without_the_instruction_stays() {
        let mut graph = parse_graph(ATTENTION).unwrap();
        let config = tiny_config();
        let context = context(&config, 1);
        let target = TargetDescription { multiplies_bf16_pairs: false, ..context.target.clone() };
        let context = PassContext { target: &target, ..context };
        assert_eq!(run(&mut graph, &context), 0);
        assert_eq!(print_graph(&graph), ATTENTION);
    }
}

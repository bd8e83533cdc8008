//! Puts operations that do not wait for one another side by side, where a step brings one row.
//!
//! # What it does
//!
//! Orders the body, and then the head, by depth: the number of operations that must be done one after another
//! before an operation can begin. Operations of one depth keep their order.
//!
//! # Why
//!
//! Workers meet behind each run of neighbours that do not wait for one another, instead of behind each operation
//! (`plan/join_steps.rs`). A block with experts is where this pays: the shared expert does not wait for the
//! router, so its large products run beside the softmax, the choice and the routed experts, which leave most
//! workers without work or are short themselves. Its weights stay its own: as further experts they would
//! save no byte, and prompts would write and read a sum for each of them.
//!
//! # Before
//!
//! ```text
//! %router: f32[rows, experts=3] = matmul(%x, @router)
//! %probabilities: f32[rows, experts=3] = softmax(%router)
//! %weights: f32[rows, choices=2], %chosen: i32[rows, choices=2] = top_k(%probabilities) {k=2}
//! %routed: f32[rows, choices=2, intermediate=32] = expert_matmul(%x, %chosen, @routed)
//! %shared: f32[rows, intermediate=32] = matmul(%x, @shared)
//! ```
//!
//! # After
//!
//! ```text
//! %router: f32[rows, experts=3] = matmul(%x, @router)
//! %shared: f32[rows, intermediate=32] = matmul(%x, @shared)
//! %probabilities: f32[rows, experts=3] = softmax(%router)
//! %weights: f32[rows, choices=2], %chosen: i32[rows, choices=2] = top_k(%probabilities) {k=2}
//! %routed: f32[rows, choices=2, intermediate=32] = expert_matmul(%x, %chosen, @routed)
//! ```
//!
//! # When it does not apply
//!
//! In step lists of several rows: work enough for all workers, and values that wait are large.

use qwen2c_request::Operation;

use crate::passes::PassContext;
use crate::{Graph, Op};

/// Orders the operations by depth; counts those that moved.
pub(super) fn run(graph: &mut Graph, context: &PassContext<'_>) -> u64 {
    if context.max_rows > 1 {
        return 0;
    }
    let depths = depths(graph);
    let is_gather = |op: &Op| op.operation == Operation::GatherRows;
    let head = graph.operations.iter().position(is_gather).unwrap_or(graph.operations.len());
    let mut order: Vec<usize> = (0..graph.operations.len()).collect();
    order.sort_by_key(|index| (*index >= head, depths[*index], *index));
    let moved = order.iter().enumerate().filter(|(place, index)| place != *index).count();
    graph.operations = order.into_iter().map(|index| graph.operations[index].clone()).collect();
    moved as u64
}

/// For each operation, how many must be done one after another before it. Those of one cache keep their order.
fn depths(graph: &Graph) -> Vec<usize> {
    let mut value_ready = vec![0; graph.values.len()];
    let mut cache_ready = vec![0; graph.caches.len()];
    let depth_of = |op: &Op| {
        let values = op.inputs.iter().map(|id| value_ready[id.0 as usize]);
        let caches = op.caches.iter().map(|id| cache_ready[id.0 as usize]);
        let depth = values.chain(caches).max().unwrap_or(0);
        op.outputs.iter().for_each(|id| value_ready[id.0 as usize] = depth + 1);
        op.caches.iter().for_each(|id| cache_ready[id.0 as usize] = depth + 1);
        depth
    };
    graph.operations.iter().map(depth_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::tests::{ATTENTION, rewrite};

    const SHARED_BEHIND_ROUTED: &str = r#"graph shared {
  input %x: bf16[rows, hidden=64]
  input %logit_rows: i32[logit_rows]
  weight @router: f32[experts=3, hidden=64] = "router"[3]
  weight @routed: bf16[experts=3, intermediate=32, hidden=64] = 3 * ("experts.{}"[32])
  weight @shared: bf16[intermediate=32, hidden=64] = "shared"[32]
  weight @head: f32[vocabulary=101, intermediate=32] = "head"[101]
  %router: f32[rows, experts=3] = matmul(%x, @router) layer 0
  %probabilities: f32[rows, experts=3] = softmax(%router) layer 0
  %weights: f32[rows, choices=2], %chosen: i32[rows, choices=2] = top_k(%probabilities) {k=2} layer 0
  %routed: f32[rows, choices=2, intermediate=32] = expert_matmul(%x, %chosen, @routed) layer 0
  %sum: f32[rows, intermediate=32] = combine_experts(%routed, %weights) layer 0
  %shared: f32[rows, intermediate=32] = matmul(%x, @shared) layer 0
  %both: f32[rows, intermediate=32] = add(%sum, %shared) layer 0
  %last: f32[logit_rows, intermediate=32] = gather_rows(%both, %logit_rows)
  %logits: f32[logit_rows, vocabulary=101] = matmul(%last, @head)
  output %logits
}
"#;

    #[test]
    fn a_shared_expert_comes_beside_the_router() {
        let (moved, after) = rewrite(run, SHARED_BEHIND_ROUTED, 1);
        assert_eq!(moved, 5);
        insta::assert_snapshot!(after);
    }

    #[test]
    fn what_reads_a_cache_stays_behind_what_writes_it() {
        let (_, after) = rewrite(run, ATTENTION, 1);
        let place = |operation: &str| after.find(operation).unwrap_or_else(|| panic!("no {operation}"));
        assert!(place("write_cache(%key") < place("attention_scores("));
        assert!(place("write_cache(%value") < place("attention_values("));
    }

    #[test]
    fn several_rows_keep_their_order() {
        assert_eq!(rewrite(run, SHARED_BEHIND_ROUTED, 8), (0, SHARED_BEHIND_ROUTED.to_owned()));
    }
}

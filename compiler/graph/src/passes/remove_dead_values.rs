//! Drops what nothing reads.
//!
//! # What it does
//!
//! Removes operations whose results nothing reads and that write no cache, then the values, weights
//! and caches that no operation names any more.
//!
//! # Why
//!
//! Passes that merge weights leave the old ones behind; the plan must not find them.
//!
//! # Before
//!
//! ```text
//! weight @k.weight: bf16[key=8, hidden=64] = "k_proj.weight"[8]
//! %unread: f32[rows, hidden=64] = add(%h, %h)
//! ```
//!
//! # After
//!
//! Neither.
//!
//! # When it does not apply
//!
//! To inputs of the graph, which the runtime writes whether or not they are read. It cannot be
//! switched off: stages after the passes rely on it.

use crate::passes::PassContext;
use crate::{CacheId, Graph, ValueId, WeightId};

/// Removes all dead operations, values, weights and caches; counts them.
pub(super) fn run(graph: &mut Graph, _context: &PassContext<'_>) -> u64 {
    let size = |graph: &Graph| {
        graph.operations.len() + graph.values.len() + graph.weights.len() + graph.caches.len()
    };
    let before = size(graph);
    remove_operations(graph);
    remove_entries(graph);
    (before - size(graph)) as u64
}

/// Walks backwards: an operation lives if a later one or the graph's outputs read it, or if it writes a
/// cache.
fn remove_operations(graph: &mut Graph) {
    let mut is_read = vec![false; graph.values.len()];
    for output in &graph.outputs {
        is_read[output.0 as usize] = true;
    }
    let mut alive = Vec::with_capacity(graph.operations.len());
    for op in std::mem::take(&mut graph.operations).into_iter().rev() {
        if op.operation.writes_cache() || op.outputs.iter().any(|output| is_read[output.0 as usize]) {
            for input in &op.inputs {
                is_read[input.0 as usize] = true;
            }
            alive.push(op);
        }
    }
    alive.reverse();
    graph.operations = alive;
}

/// Drops the entries that nothing names and numbers the others anew, in their order; values in the order
/// of their definition, as the text form has them.
fn remove_entries(graph: &mut Graph) {
    let defined: Vec<ValueId> =
        graph.inputs.iter().chain(graph.operations.iter().flat_map(|op| &op.outputs)).copied().collect();
    let mut value_number = vec![ValueId(u32::MAX); graph.values.len()];
    for (number, id) in defined.iter().enumerate() {
        value_number[id.0 as usize] = ValueId(number as u32);
    }
    graph.values = defined.iter().map(|id| graph.value(*id).clone()).collect();

    let weight_numbers =
        numbers(graph.weights.len(), graph.operations.iter().flat_map(|op| op.weights.iter().map(|id| id.0)));
    let cache_numbers =
        numbers(graph.caches.len(), graph.operations.iter().flat_map(|op| op.caches.iter().map(|id| id.0)));
    retain(&mut graph.weights, &weight_numbers);
    retain(&mut graph.caches, &cache_numbers);

    let renumber = |id: &mut ValueId| *id = value_number[id.0 as usize];
    graph.inputs.iter_mut().chain(&mut graph.outputs).for_each(renumber);
    for op in &mut graph.operations {
        op.inputs.iter_mut().chain(&mut op.outputs).for_each(renumber);
        for id in &mut op.weights {
            *id = WeightId(weight_numbers[id.0 as usize].unwrap_or(u32::MAX));
        }
        for id in &mut op.caches {
            *id = CacheId(cache_numbers[id.0 as usize].unwrap_or(u32::MAX));
        }
    }
}

/// New numbers for the entries that are named, none for the others.
fn numbers(count: usize, named: impl Iterator<Item = u32>) -> Vec<Option<u32>> {
    let mut is_named = vec![false; count];
    for id in named {
        is_named[id as usize] = true;
    }
    let mut next = 0;
    is_named
        .into_iter()
        .map(|is_named| {
            is_named.then(|| {
                next += 1;
                next - 1
            })
        })
        .collect()
}

fn retain<T>(entries: &mut Vec<T>, numbers: &[Option<u32>]) {
    let mut index = 0;
    entries.retain(|_| {
        index += 1;
        numbers[index - 1].is_some()
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::tests::{MLP, rewrite};

    #[test]
    fn unread_operations_and_weights_go() {
        let dead = MLP.replace(
            "  output %down\n",
            "  %a: f32[rows, hidden=64] = add(%h, %down) layer 0\n  %b: f32[rows, hidden=64] = add(%a, %h) layer 0\n  output %down\n",
        ).replace(
            "  weight @down",
            "  weight @unread: f32[hidden=64] = \"unread\"[64]\n  weight @down",
        );
        let (removed, after) = rewrite(run, &dead, 1);
        // Two operations, their values, and a weight.
        assert_eq!(removed, 5);
        assert_eq!(after, MLP);
        insta::assert_snapshot!(after);
    }

    #[test]
    fn a_graph_without_dead_values_stays() {
        assert_eq!(rewrite(run, MLP, 1), (0, MLP.to_owned()));
    }

    #[test]
    fn a_cache_write_lives_without_readers() {
        let write = "graph write {
  input %position: i32[rows]
  input %slot: i32[rows]
  input %k: f32[rows, kv=8]
  cache #key: key f32[slots=1, kv_heads=2, context=64, head_dim=4]
  write_cache(%k, %position, %slot, #key) layer 0
}
";
        assert_eq!(rewrite(run, write, 1), (0, write.to_owned()));
    }
}

//! Lets attention of one row come in parts, one for each block of positions.
//!
//! # What it does
//!
//! Turns an attention into one that leaves each block's sum of values with the largest score and the sum of
//! weights, and the merge of these.
//!
//! # Why
//!
//! A token has as many independent walks over the cache as the cache has heads, which are as few as two: more
//! cores than that would wait, and three heads keep two cores busy for as long as four do. Blocks of all heads
//! are as many walks as a context wants (Dao et al. 2023, "Flash-Decoding"). What is written between them is a
//! thirty-fifth of what is read of the cache where 7 query heads share a head of it, and less where fewer do.
//!
//! # Before
//!
//! ```text
//! %attention: bf16[rows, query=16] = attention(%q, %position, %slot, #key, #value) {heads=4, scale=0.5}
//! ```
//!
//! # After
//!
//! ```text
//! %attention.sums: f32[rows, blocks=2, query=16], %attention.totals: f32[rows, blocks=2, totals=8] = attention_blocks(%q, %position, %slot, #key, #value) {heads=4, scale=0.5}
//! %attention: bf16[rows, query=16] = merge_blocks(%attention.sums, %attention.totals, %position) {heads=4}
//! ```
//!
//! # When it does not apply
//!
//! Where a step brings several rows, which are work enough. Where the context is one block, or the cache has
//! heads enough. On targets that do this inside a kernel.

use qwen2c_request::{Dimension, Element, Operation, TensorType};

use crate::passes::PassContext;
use crate::passes::rewrite::{Replacement, Uses, free_name, rewrite_all};
use crate::{Graph, Op, ValueId};

/// As many heads are work for the cores of most processors.
const ENOUGH_KV_HEADS: u64 = 16;

/// Splits all attentions.
pub(super) fn run(graph: &mut Graph, context: &PassContext<'_>) -> u64 {
    if context.max_rows > 1 || !context.target.splits_attention {
        return 0;
    }
    rewrite_all(graph, find)
}

fn find(graph: &mut Graph, _uses: &Uses, index: usize) -> Option<Replacement> {
    let op = graph.operations[index].clone();
    let Operation::Attention { heads, scale, rounded } = op.operation else { return None };
    let cache = graph.cache(*op.caches.first()?).ty.clone();
    if cache.blocks() < 2 || cache.kv_heads >= ENOUGH_KV_HEADS {
        return None;
    }
    let (position, result) = (*op.inputs.get(1)?, *op.outputs.first()?);
    let [rows, width] = &graph.value(result).ty.dimensions[..] else { return None };
    let of_blocks = |last: Dimension| TensorType {
        dimensions: vec![rows.clone(), Dimension::constant("blocks", cache.blocks()), last],
        element: Element::F32,
    };
    let (sums, totals) = (of_blocks(width.clone()), of_blocks(Dimension::constant("totals", 2 * heads)));
    let parts = vec![add_part(graph, result, "sums", sums), add_part(graph, result, "totals", totals)];
    let merge = Op {
        operation: Operation::MergeBlocks { heads },
        inputs: vec![parts[0], parts[1], position],
        caches: Vec::new(),
        ..op.clone()
    };
    let split = Op { operation: Operation::AttentionBlocks { heads, scale, rounded }, outputs: parts, ..op };
    Some(Replacement { remove: vec![index], at: index, insert: vec![split, merge] })
}

/// A value named after the one that it becomes a part of.
fn add_part(graph: &mut Graph, result: ValueId, part: &str, ty: TensorType) -> ValueId {
    let wanted = format!("{}.{part}", graph.value(result).name);
    let name = free_name(&wanted, |name| graph.values.iter().any(|value| value.name == name));
    graph.add_value(name, ty)
}

#[cfg(test)]
mod tests {
    use qwen2c_request::TargetDescription;

    use super::*;
    use crate::passes::fuse_attention;
    use crate::passes::tests::{ATTENTION, rewrite};

    /// An attention over caches of 300 positions.
    fn long() -> String {
        ATTENTION.replace("context=64", "context=300")
    }

    fn fuse_and_split(graph: &mut Graph, context: &PassContext<'_>) -> u64 {
        fuse_attention::run(graph, context);
        run(graph, context)
    }

    #[test]
    fn an_attention_comes_in_parts() {
        let (rewrites, after) = rewrite(fuse_and_split, &long(), 1);
        assert_eq!(rewrites, 1);
        insta::assert_snapshot!(after);
    }

    #[test]
    fn several_rows_stay() {
        assert_eq!(rewrite(fuse_and_split, &long(), 2).0, 0);
    }

    #[test]
    fn one_block_stays() {
        assert_eq!(rewrite(fuse_and_split, ATTENTION, 1).0, 0);
    }

    #[test]
    fn many_heads_stay() {
        let many = long()
            .replace("kv_heads=2", "kv_heads=16")
            .replace("key=8", "key=64")
            .replace("value=8", "value=64")
            .replace("[8]", "[64]")
            .replace("query=16", "query=64")
            .replace("[16]", "[64]")
            .replace("heads=4", "heads=16");
        assert_eq!(rewrite(fuse_and_split, &many, 1).0, 0);
    }

    #[test]
    fn other_targets_keep_their_attention() {
        let elsewhere = |graph: &mut Graph, context: &PassContext<'_>| {
            fuse_attention::run(graph, context);
            let target = TargetDescription { splits_attention: false, ..context.target.clone() };
            run(graph, &PassContext { target: &target, ..*context })
        };
        assert_eq!(rewrite(elsewhere, &long(), 1).0, 0);
    }
}

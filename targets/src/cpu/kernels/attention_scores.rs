//! `attention_scores`: products of a query with all keys that its row sees. A tile is one query head of
//! one row.
//!
//! ```text
//! for block, group of positions: out[position] = scale · q·K     stored where position ≤ the row's
//! ```

use qwen2c_request::CACHE_BLOCK_POSITIONS;

use super::Kernel;
use super::attention_block::{score_vectors, vectors_beside, visible};
use super::cache::HeadCache;
use crate::builder::Val;

/// Rows times query heads.
pub(super) fn tiles<'k>(kernel: &Kernel<'k, '_>) -> Val<'k> {
    kernel.rows * kernel.k.int(kernel.input_type(0).row_elements() / kernel.cache_type(0).head_dim)
}

/// One query head of one row.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, tile: Val<'k>, heads: u64, scale: f32) {
    let (k, lanes) = (kernel.k, kernel.lanes);
    let cache = kernel.cache_type(0);
    let (row, head) = (tile / k.int(heads), tile % k.int(heads));
    let kv_head = head / k.int(heads / cache.kv_heads);
    let keys = HeadCache::new(kernel, 0, kernel.input(2).load_index(row), kv_head);
    let count = kernel.input(1).load_index(row) + k.int(1);
    let query = kernel.input(0).at(tile * k.int(cache.head_dim));
    let context = kernel.output_type(0).row_elements() / heads;
    let out = kernel.output(0).at(tile * k.int(context));
    let vectors = vectors_beside(lanes, 1);
    k.repeat(k.int(0), count, vectors as i64 * i64::from(lanes), |position| {
        let block = keys.block(kernel, position / k.int(CACHE_BLOCK_POSITIONS));
        let place = position % k.int(CACHE_BLOCK_POSITIONS);
        let scores = score_vectors(kernel, &[query], block, (place, vectors), scale);
        for (index, score) in (0_i64..).zip(scores.into_iter().flatten()) {
            let first = position + k.int(index * i64::from(lanes));
            out.store_masked(first, score, visible(kernel, first, count));
        }
    });
}

//! `attention_values`: sum of values weighted by probabilities. A tile is one query head of one row.
//!
//! ```text
//! for block, position in block: out += p[position] · V[position, ..]
//! ```

use qwen2c_request::CACHE_BLOCK_POSITIONS;

use super::Kernel;
use super::attention_block::{store_in_head, weighted_values};
use super::cache::HeadCache;
use crate::builder::Val;
use crate::cpu::layout;

/// Rows times query heads.
pub(super) fn tiles<'k>(kernel: &Kernel<'k, '_>) -> Val<'k> {
    kernel.rows * kernel.k.int(kernel.output_type(0).row_elements() / kernel.cache_type(0).head_dim)
}

/// One query head of one row.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, tile: Val<'k>, heads: u64) {
    let (k, lanes) = (kernel.k, kernel.lanes);
    let cache = kernel.cache_type(0);
    let (row, head) = (tile / k.int(heads), tile % k.int(heads));
    let kv_head = head / k.int(heads / cache.kv_heads);
    let values = HeadCache::new(kernel, 0, kernel.input(2).load_index(row), kv_head);
    let count = kernel.input(1).load_index(row) + k.int(1);
    let context = kernel.input_type(0).row_elements() / heads;
    let weights = kernel.input(0).at(tile * k.int(context));
    let padded = layout::padded_head_dim(lanes, cache.head_dim);
    let vectors = (padded / u64::from(lanes)) as usize;
    let zeros = vec![k.float(0.0, lanes); vectors];
    let block_size = k.int(CACHE_BLOCK_POSITIONS);
    let blocks = count.divide_up(CACHE_BLOCK_POSITIONS as i64);
    let sums = k.for_each(k.int(0), blocks, 1, &zeros, |block, sums| {
        let first = block * block_size;
        let valid = (count - first).minimum(block_size);
        let values = (values.block(kernel, block), padded);
        weighted_values(kernel, &[weights.at(first)], values, valid, (0, vectors), sums)
    });
    let out = kernel.output(0).at(tile * k.int(cache.head_dim));
    for (index, sum) in (0_u64..).zip(sums) {
        store_in_head(kernel, out, cache.head_dim, index * u64::from(lanes), sum);
    }
}

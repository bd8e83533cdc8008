//! `rotate_and_write_cache`: what stands between the merged projection and attention. A tile is a key and value
//! head of a row, with the query heads that attend to it.
//!
//! ```text
//! for head in queries: out = rotate(qkv + bias)
//! key cache   = rotate(qkv + bias)    scattered: a position is a column
//! value cache = qkv + bias
//! ```

use super::Kernel;
use super::cache::HeadCache;
use super::rotate::rotate_pair;
use crate::builder::Val;

/// Rows times heads of the cache.
pub(super) fn tiles<'k>(kernel: &Kernel<'k, '_>) -> Val<'k> {
    kernel.rows * kernel.k.int(kernel.cache_type(0).kv_heads)
}

/// One head of the cache, for one row.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, tile: Val<'k>, heads: u64, bias: bool) {
    let k = kernel.k;
    let cache = kernel.cache_type(0);
    let (kv_heads, head_dim) = (cache.kv_heads, cache.head_dim);
    let (row, kv_head) = (tile / k.int(kv_heads), tile % k.int(kv_heads));
    let width = (heads + 2 * kv_heads) * head_dim;
    let position = kernel.input(1).load_index(row);
    let slot = kernel.input(2).load_index(row);
    let table = kernel.weight(0).at(position * k.int(head_dim));
    let source = kernel.input(0).at(row * k.int(width));
    let out = kernel.output(0).at(row * k.int(heads * head_dim));
    let load = |offset: Val<'k>, lanes: u32| {
        let x = source.load(offset, lanes);
        if bias { x + kernel.weight(1).load(offset, lanes) } else { x }
    };
    let half = k.int(head_dim / 2);

    let queries = k.int(heads / kv_heads);
    k.repeat(kv_head * queries, (kv_head + k.int(1)) * queries, 1, |head| {
        let first = head * k.int(head_dim);
        k.for_each_chunk(half, kernel.lanes, |column, lanes| {
            let (low, high) =
                rotate_pair(kernel, table, head_dim, column, lanes, |offset| load(first + offset, lanes));
            out.store(first + column, low);
            out.store(first + column + half, high);
        });
    });
    let first = (kv_head + k.int(heads)) * k.int(head_dim);
    let keys = HeadCache::new(kernel, 0, slot, kv_head);
    k.repeat(k.int(0), half, 1, |column| {
        let (low, high) = rotate_pair(kernel, table, head_dim, column, 1, |offset| load(first + offset, 1));
        keys.store_key(kernel, position, column, low);
        keys.store_key(kernel, position, column + half, high);
    });
    let first = (kv_head + k.int(heads + kv_heads)) * k.int(head_dim);
    let values = HeadCache::new(kernel, 1, slot, kv_head);
    values.store_values(kernel, position, |column, lanes| load(first + column, lanes));
}

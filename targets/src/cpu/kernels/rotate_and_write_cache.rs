//! `rotate_and_write_cache`: what stands between the merged projection and attention.
//!
//! ```text
//! for head in queries: out        = rotate(qkv + bias)
//! for head in keys:    key cache  = rotate(qkv + bias)    scattered: a position is a column
//! for head in values:  value cache = qkv + bias
//! ```

use super::Kernel;
use super::cache::HeadCache;
use super::rotate::rotate_pair;
use crate::builder::Val;

/// One row.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, row: Val<'k>, heads: u64, bias: bool) {
    let k = kernel.k;
    let cache = kernel.cache_type(0);
    let (kv_heads, head_dim) = (cache.kv_heads, cache.head_dim);
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

    k.repeat(k.int(0), k.int(heads), 1, |head| {
        let first = head * k.int(head_dim);
        k.for_each_chunk(half, kernel.lanes, |column, lanes| {
            let (low, high) =
                rotate_pair(kernel, table, head_dim, column, lanes, |offset| load(first + offset, lanes));
            out.store(first + column, low);
            out.store(first + column + half, high);
        });
    });
    k.repeat(k.int(0), k.int(kv_heads), 1, |head| {
        let first = (head + k.int(heads)) * k.int(head_dim);
        let entry = HeadCache::new(kernel, 0, slot, head);
        k.repeat(k.int(0), half, 1, |column| {
            let (low, high) =
                rotate_pair(kernel, table, head_dim, column, 1, |offset| load(first + offset, 1));
            entry.store_key(kernel, position, column, low);
            entry.store_key(kernel, position, column + half, high);
        });
    });
    k.repeat(k.int(0), k.int(kv_heads), 1, |head| {
        let first = (head + k.int(heads + kv_heads)) * k.int(head_dim);
        let entry = HeadCache::new(kernel, 1, slot, head);
        entry.store_values(kernel, position, |column, lanes| load(first + column, lanes));
    });
}

//! `write_cache`: stores one row's keys or values. Keys are scattered element by element, since a
//! position is a column of the block.

use qwen2c_request::CacheKind;

use super::Kernel;
use super::cache::HeadCache;
use crate::builder::Val;

/// One row.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, row: Val<'k>) {
    let k = kernel.k;
    let cache = kernel.cache_type(0);
    let head_dim = k.int(cache.head_dim);
    let source = kernel.input(0).at(row * k.int(cache.kv_heads * cache.head_dim));
    let position = kernel.input(1).load_index(row);
    let slot = kernel.input(2).load_index(row);
    k.repeat(k.int(0), k.int(cache.kv_heads), 1, |head| {
        let x = source.at(head * head_dim);
        let entry = HeadCache::new(kernel, 0, slot, head);
        match cache.kind {
            CacheKind::Key => k.repeat(k.int(0), head_dim, 1, |column| {
                entry.store_key(kernel, position, column, x.load(column, 1));
            }),
            CacheKind::Value => {
                entry.store_values(kernel, position, |column, lanes| x.load(column, lanes));
            }
        }
    });
}

//! `write_cache`: stores one row's keys or values. A block is a row.

use super::Kernel;
use super::cache::entry;

/// One row.
pub(super) fn body(kernel: &Kernel<'_, '_>) {
    let k = kernel.k;
    let cache = kernel.cache_type(0);
    let (row, head_dim) = (kernel.row(), k.int(cache.head_dim));
    let length = k.int(cache.kv_heads * cache.head_dim);
    let source = kernel.input(0).at(row * length);
    let position = kernel.input(1).load_index(row);
    let slot = kernel.input(2).load_index(row);
    kernel.for_each(length, |offset| {
        let entry = entry(kernel, 0, (slot, offset / head_dim), position);
        entry.store(offset % head_dim, source.load(offset, 1));
    });
}

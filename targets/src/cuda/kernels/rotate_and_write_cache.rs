//! `rotate_and_write_cache`: what stands between the merged projection and attention. A block is a row.
//!
//! ```text
//! for pair in queries: out         = rotate(qkv + bias)
//! for pair in keys:    key cache   = rotate(qkv + bias)
//! for x in values:     value cache = qkv + bias
//! ```
//!
//! A projection whose panels divide no head in two halves ends so too: `project_and_write_cache`.

use super::Kernel;
use super::cache::entry;
use super::rotate::rotate_pair;
use crate::builder::{Buffer, Compare, Val};

/// One row of `qkv`; weight `table_weight` is the rotary table, the one behind it the bias.
pub(super) fn body<'k>(
    kernel: &Kernel<'k, '_>,
    qkv: Buffer<'k>,
    (heads, bias): (u64, bool),
    table_weight: usize,
) {
    let k = kernel.k;
    let cache = kernel.cache_type(0);
    let (kv_heads, head_dim) = (cache.kv_heads, cache.head_dim);
    let row = kernel.row();
    let position = kernel.input(1).load_index(row);
    let slot = kernel.input(2).load_index(row);
    let table = kernel.weight(table_weight).at(position * k.int(head_dim));
    let source = qkv.at(row * k.int((heads + 2 * kv_heads) * head_dim));
    let out = kernel.output(0).at(row * k.int(heads * head_dim));
    let load = |offset: Val<'k>| {
        let x = source.load(offset, 1);
        if bias { x + kernel.weight(table_weight + 1).load(offset, 1) } else { x }
    };
    let half = k.int(head_dim / 2);
    kernel.for_each(k.int((heads + kv_heads) * head_dim / 2), |pair| {
        let (head, column) = (pair / half, pair % half);
        let first = head * k.int(head_dim) + column;
        let (low, high) = rotate_pair(kernel, table, head_dim, column, (load(first), load(first + half)));
        k.when_else(
            head.compare(Compare::Less, k.int(heads)),
            || {
                out.store(first, low);
                out.store(first + half, high);
            },
            || {
                let key = entry(kernel, 0, (slot, head - k.int(heads)), position);
                key.store(column, low);
                key.store(column + half, high);
            },
        );
    });
    kernel.for_each(k.int(kv_heads * head_dim), |offset| {
        let value = entry(kernel, 1, (slot, offset / k.int(head_dim)), position);
        value.store(offset % k.int(head_dim), load(offset + k.int((heads + kv_heads) * head_dim)));
    });
}

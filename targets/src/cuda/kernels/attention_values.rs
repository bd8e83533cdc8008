//! `attention_values`: sum of values weighted by probabilities. A block is one query head of one row, a thread
//! takes whole columns.
//!
//! ```text
//! for column of the head, shared out to threads: out[column] = Σ_position p[position] · V[position, column]
//! ```

use super::Kernel;
use super::cache::entry;

/// One query head of one row.
pub(super) fn body(kernel: &Kernel<'_, '_>, heads: u64) {
    let k = kernel.k;
    let cache = kernel.cache_type(0);
    let (row, head) = (kernel.row(), kernel.block());
    let kv_head = head / k.int(heads / cache.kv_heads);
    let slot = kernel.input(2).load_index(row);
    let count = kernel.input(1).load_index(row) + k.int(1);
    let of_head = row * k.int(heads) + head;
    let weights = kernel.input(0).at(of_head * k.int(kernel.input_type(0).columns()));
    let out = kernel.output(0).at(of_head * k.int(cache.head_dim));
    kernel.for_each(k.int(cache.head_dim), |column| {
        let sum = k.for_each(k.int(0), count, 1, &[k.float(0.0, 1)], |position, sum| {
            let value = entry(kernel, 0, (slot, kv_head), position).load(column, 1);
            vec![weights.load(position, 1).multiply_add(value, sum[0])]
        });
        out.store(column, sum[0]);
    });
}

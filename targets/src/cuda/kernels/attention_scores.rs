//! `attention_scores`: products of a query with all keys that its row sees. A block is one query head of one
//! row, a thread takes whole positions.
//!
//! ```text
//! for position ≤ the row's, shared out to threads: out[position] = scale · q·K[position, ..]
//! ```

use super::Kernel;
use super::cache::entry;

/// One query head of one row.
pub(super) fn body(kernel: &Kernel<'_, '_>, heads: u64, scale: f32) {
    let k = kernel.k;
    let cache = kernel.cache_type(0);
    let (row, head) = (kernel.row(), kernel.block());
    let kv_head = head / k.int(heads / cache.kv_heads);
    let slot = kernel.input(2).load_index(row);
    let count = kernel.input(1).load_index(row) + k.int(1);
    let of_head = row * k.int(heads) + head;
    let query = kernel.input(0).at(of_head * k.int(cache.head_dim));
    let out = kernel.output(0).at(of_head * k.int(kernel.output_type(0).columns()));
    kernel.for_each(count, |position| {
        let key = entry(kernel, 0, (slot, kv_head), position);
        let product = k.for_each(k.int(0), k.int(cache.head_dim), 1, &[k.float(0.0, 1)], |column, sum| {
            vec![query.load(column, 1).multiply_add(key.load(column, 1), sum[0])]
        });
        out.store(position, product[0] * k.float(scale, 1));
    });
}

//! `rotate`: rotary position embedding of all heads of a row, in the order of GPT-NeoX. A block is a row.
//!
//! ```text
//! for head, i in 0..head_dim/2, shared out to threads:
//!   out[i]       = x[i]·cos[i]       − x[i + d/2]·sin[i]
//!   out[i + d/2] = x[i + d/2]·cos[i] + x[i]·sin[i]
//! ```

use super::Kernel;
use crate::builder::{Buffer, Val};

/// One row.
pub(super) fn body(kernel: &Kernel<'_, '_>, head_dim: u64) {
    let k = kernel.k;
    let width = kernel.output_type(0).row_elements();
    let base = kernel.row() * k.int(width);
    let position = kernel.input(1).load_index(kernel.row());
    let table = kernel.weight(0).at(position * k.int(head_dim));
    let (source, out) = (kernel.input(0).at(base), kernel.output(0).at(base));
    let half = k.int(head_dim / 2);
    kernel.for_each(k.int(width / 2), |pair| {
        let (head, column) = (pair / half, pair % half);
        let first = head * k.int(head_dim) + column;
        let x = (source.load(first, 1), source.load(first + half, 1));
        let (low, high) = rotate_pair(kernel, table, head_dim, column, x);
        out.store(first, low);
        out.store(first + half, high);
    });
}

/// The rotated form of the elements at `column` and `column + head_dim / 2` of a head.
pub(super) fn rotate_pair<'k>(
    kernel: &Kernel<'k, '_>,
    table: Buffer<'k>,
    head_dim: u64,
    column: Val<'k>,
    (low, high): (Val<'k>, Val<'k>),
) -> (Val<'k>, Val<'k>) {
    let half = kernel.k.int(head_dim / 2);
    let (cosine, sine) = (table.load(column, 1), table.load(column + half, 1));
    (low * cosine - high * sine, high * cosine + low * sine)
}

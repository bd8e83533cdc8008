//! `rotate`: rotary position embedding of all heads of a row, in the order of GPT-NeoX.
//!
//! ```text
//! for head, i in 0..head_dim/2:
//!   out[i]       = x[i]·cos[i]       − x[i + d/2]·sin[i]
//!   out[i + d/2] = x[i + d/2]·cos[i] + x[i]·sin[i]
//! ```

use super::Kernel;
use crate::builder::{Buffer, Val};

/// One row.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, row: Val<'k>, head_dim: u64) {
    let k = kernel.k;
    let width = kernel.output_type(0).row_elements();
    let position = kernel.input(1).load_index(row);
    let table = kernel.weight(0).at(position * k.int(head_dim));
    let (source, out) = (kernel.input(0).at(row * k.int(width)), kernel.output(0).at(row * k.int(width)));
    k.repeat(k.int(0), k.int(width / head_dim), 1, |head| {
        let (x, y) = (source.at(head * k.int(head_dim)), out.at(head * k.int(head_dim)));
        k.for_each_chunk(k.int(head_dim / 2), kernel.lanes, |column, lanes| {
            let load = |offset| x.load(offset, lanes);
            let (low, high) = rotate_pair(kernel, table, head_dim, column, lanes, load);
            y.store(column, low);
            y.store(column + k.int(head_dim / 2), high);
        });
    });
}

/// The rotated elements at `column` and `column + head_dim / 2` of a head; `load` gives the head's
/// elements at an offset.
pub(super) fn rotate_pair<'k>(
    kernel: &Kernel<'k, '_>,
    table: Buffer<'k>,
    head_dim: u64,
    column: Val<'k>,
    lanes: u32,
    load: impl Fn(Val<'k>) -> Val<'k>,
) -> (Val<'k>, Val<'k>) {
    let half = kernel.k.int(head_dim / 2);
    let (low, high) = (load(column), load(column + half));
    let (cosine, sine) = (table.load(column, lanes), table.load(column + half, lanes));
    (low * cosine - high * sine, high * cosine + low * sine)
}

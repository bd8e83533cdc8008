//! `scale_rows`: multiplies a row by its own factor (the shared expert's gate).
//!
//! ```text
//! out[row, ..] = x[row, ..] · factor[row]
//! ```

use super::Kernel;
use crate::builder::Val;

/// One row.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, row: Val<'k>) {
    let k = kernel.k;
    let length = k.int(kernel.output_type(0).row_elements());
    let (x, out) = (kernel.input(0).at(row * length), kernel.output(0).at(row * length));
    let factor = kernel.input(1).load(row, 1);
    k.for_each_chunk(length, kernel.lanes, |offset, lanes| {
        out.store(offset, x.load(offset, lanes) * factor.splat(lanes));
    });
}

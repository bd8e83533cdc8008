//! `slice`: copies a range of a row's columns.
//!
//! ```text
//! out[row, ..] = x[row, first .. first + m]
//! ```

use super::Kernel;
use crate::builder::Val;

/// One row.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, row: Val<'k>, first: u64) {
    let k = kernel.k;
    let length = k.int(kernel.output_type(0).row_elements());
    let source = kernel.input(0).at(row * k.int(kernel.input_type(0).row_elements()) + k.int(first));
    let out = kernel.output(0).at(row * length);
    k.for_each_chunk(length, kernel.lanes, |offset, lanes| out.store(offset, source.load(offset, lanes)));
}

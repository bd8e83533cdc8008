//! `gather_rows`: copies the rows that go through the output head.
//!
//! ```text
//! out[r, ..] = x[logit_rows[r], ..]
//! ```

use super::Kernel;
use crate::builder::Val;

/// One row.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, row: Val<'k>) {
    let k = kernel.k;
    let length = k.int(kernel.input_type(0).row_elements());
    let source = kernel.input(0).at(kernel.input(1).load_index(row) * length);
    let out = kernel.output(0).at(row * length);
    k.for_each_chunk(length, kernel.lanes, |offset, lanes| out.store(offset, source.load(offset, lanes)));
}

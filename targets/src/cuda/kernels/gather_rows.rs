//! `gather_rows`: copies the rows that go through the output head. A block is a row.
//!
//! ```text
//! out[r, ..] = x[logit_rows[r], ..]
//! ```

use super::Kernel;

/// One row.
pub(super) fn body(kernel: &Kernel<'_, '_>) {
    let length = kernel.k.int(kernel.input_type(0).row_elements());
    let source = kernel.input(0).at(kernel.input(1).load_index(kernel.row()) * length);
    let out = kernel.output(0).at(kernel.row() * length);
    kernel.for_each(length, |offset| out.store(offset, source.load(offset, 1)));
}

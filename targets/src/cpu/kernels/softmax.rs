//! `softmax`: over all experts of a row (the router).

use super::Kernel;
use super::functions;
use crate::builder::Val;

/// One row.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, row: Val<'k>) {
    let k = kernel.k;
    let length = k.int(kernel.output_type(0).row_elements());
    let (x, out) = (kernel.input(0).at(row * length), kernel.output(0).at(row * length));
    functions::softmax(
        k,
        length,
        kernel.lanes,
        |offset, lanes| x.load(offset, lanes),
        |offset, value| out.store(offset, value),
    );
}

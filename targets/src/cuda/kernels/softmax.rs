//! `softmax`: over all experts of a row (the router). A block is a row.

use super::Kernel;
use super::functions::exp;
use crate::builder::{Buffer, Reduction, Val};

/// One row.
pub(super) fn body(kernel: &Kernel<'_, '_>) {
    let length = kernel.k.int(kernel.output_type(0).row_elements());
    let base = kernel.row() * length;
    softmax(kernel, kernel.input(0).at(base), kernel.output(0).at(base), length);
}

/// Softmax of the first `length` elements by the whole block.
pub(super) fn softmax<'k>(kernel: &Kernel<'k, '_>, x: Buffer<'k>, out: Buffer<'k>, length: Val<'k>) {
    let k = kernel.k;
    let largest = kernel.fold(length, f32::MIN, Reduction::Maximum, |offset| x.load(offset, 1));
    let term = |offset: Val<'k>| exp(k, x.load(offset, 1) - largest);
    let sum = kernel.fold(length, 0.0, Reduction::Sum, term);
    let inverse = k.float(1.0, 1) / sum;
    kernel.for_each(length, |offset| out.store(offset, term(offset) * inverse));
}

//! Operations that treat every element alone. A block is a row.
//!
//! ```text
//! for element in row, shared out to threads: out = function(a, b)
//! ```

use super::Kernel;
use super::functions;
use crate::builder::Val;

/// Stores `function(offset in the row, offset in the tensor)` for each element of a row.
fn map_row<'k>(kernel: &Kernel<'k, '_>, function: impl FnOnce(Val<'k>, Val<'k>) -> Val<'k>) {
    let length = kernel.k.int(kernel.output_type(0).row_elements());
    let base = kernel.row() * length;
    let out = kernel.output(0);
    kernel.for_each(length, |offset| out.store(base + offset, function(offset, base + offset)));
}

/// `x + bias`.
pub(super) fn add_bias(kernel: &Kernel<'_, '_>) {
    let (x, bias) = (kernel.input(0), kernel.weight(0));
    map_row(kernel, |column, offset| x.load(offset, 1) + bias.load(column, 1));
}

/// `a + b`.
pub(super) fn add(kernel: &Kernel<'_, '_>) {
    let (a, b) = (kernel.input(0), kernel.input(1));
    map_row(kernel, |_, offset| a.load(offset, 1) + b.load(offset, 1));
}

/// `x · factor`.
pub(super) fn scale(kernel: &Kernel<'_, '_>, factor: f32) {
    let x = kernel.input(0);
    map_row(kernel, |_, offset| x.load(offset, 1) * kernel.k.float(factor, 1));
}

/// `silu(x)`.
pub(super) fn silu(kernel: &Kernel<'_, '_>) {
    let x = kernel.input(0);
    map_row(kernel, |_, offset| functions::silu(kernel.k, x.load(offset, 1)));
}

/// `sigmoid(x)`.
pub(super) fn sigmoid(kernel: &Kernel<'_, '_>) {
    let x = kernel.input(0);
    map_row(kernel, |_, offset| functions::sigmoid(kernel.k, x.load(offset, 1)));
}

/// `a · b`.
pub(super) fn multiply(kernel: &Kernel<'_, '_>) {
    let (a, b) = (kernel.input(0), kernel.input(1));
    map_row(kernel, |_, offset| a.load(offset, 1) * b.load(offset, 1));
}

/// `silu(gate) · up`.
pub(super) fn silu_multiply(kernel: &Kernel<'_, '_>) {
    let (gate, up) = (kernel.input(0), kernel.input(1));
    map_row(kernel, |_, offset| functions::silu(kernel.k, gate.load(offset, 1)) * up.load(offset, 1));
}

/// `x · factor`, one factor for each row.
pub(super) fn scale_rows(kernel: &Kernel<'_, '_>) {
    let x = kernel.input(0);
    let factor = kernel.input(1).load(kernel.row(), 1);
    map_row(kernel, |_, offset| x.load(offset, 1) * factor);
}

/// The columns from `first` on.
pub(super) fn slice(kernel: &Kernel<'_, '_>, first: u64) {
    let k = kernel.k;
    let width = k.int(kernel.input_type(0).row_elements());
    let source = kernel.input(0).at(kernel.row() * width + k.int(first));
    map_row(kernel, |column, _| source.load(column, 1));
}

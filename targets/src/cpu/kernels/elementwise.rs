//! Operations that treat every element alone. A tile is a row.
//!
//! ```text
//! for element in row: out = function(a, b)
//! ```

use super::Kernel;
use super::functions;
use crate::builder::Val;

/// Stores `function(offset in the row, offset in the tensor, lanes)` for each element of a row.
fn map_row<'k>(kernel: &Kernel<'k, '_>, row: Val<'k>, function: impl Fn(Val<'k>, Val<'k>, u32) -> Val<'k>) {
    let k = kernel.k;
    let length = k.int(kernel.output_type(0).row_elements());
    let base = row * length;
    let out = kernel.output(0);
    k.for_each_chunk(length, kernel.lanes, |offset, lanes| {
        out.store(base + offset, function(offset, base + offset, lanes));
    });
}

/// `x + bias`.
pub(super) fn add_bias<'k>(kernel: &Kernel<'k, '_>, row: Val<'k>) {
    let (x, bias) = (kernel.input(0), kernel.weight(0));
    map_row(kernel, row, |column, offset, lanes| x.load(offset, lanes) + bias.load(column, lanes));
}

/// `a + b`.
pub(super) fn add<'k>(kernel: &Kernel<'k, '_>, row: Val<'k>) {
    let (a, b) = (kernel.input(0), kernel.input(1));
    map_row(kernel, row, |_, offset, lanes| a.load(offset, lanes) + b.load(offset, lanes));
}

/// `x · factor`.
pub(super) fn scale<'k>(kernel: &Kernel<'k, '_>, row: Val<'k>, factor: f32) {
    let x = kernel.input(0);
    map_row(kernel, row, |_, offset, lanes| x.load(offset, lanes) * kernel.k.float(factor, lanes));
}

/// `silu(x)`.
pub(super) fn silu<'k>(kernel: &Kernel<'k, '_>, row: Val<'k>) {
    let x = kernel.input(0);
    map_row(kernel, row, |_, offset, lanes| functions::silu(kernel.k, x.load(offset, lanes)));
}

/// `sigmoid(x)`.
pub(super) fn sigmoid<'k>(kernel: &Kernel<'k, '_>, row: Val<'k>) {
    let x = kernel.input(0);
    map_row(kernel, row, |_, offset, lanes| functions::sigmoid(kernel.k, x.load(offset, lanes)));
}

/// `a · b`.
pub(super) fn multiply<'k>(kernel: &Kernel<'k, '_>, row: Val<'k>) {
    let (a, b) = (kernel.input(0), kernel.input(1));
    map_row(kernel, row, |_, offset, lanes| a.load(offset, lanes) * b.load(offset, lanes));
}

/// `silu(gate) · up`.
pub(super) fn silu_multiply<'k>(kernel: &Kernel<'k, '_>, row: Val<'k>) {
    let (gate, up) = (kernel.input(0), kernel.input(1));
    map_row(kernel, row, |_, offset, lanes| {
        functions::silu(kernel.k, gate.load(offset, lanes)) * up.load(offset, lanes)
    });
}

//! `rms_norm` and `add_and_norm`: normalizes a row by its root mean square.
//!
//! ```text
//! mean = sum(x²) / n            lanes side by side, then low to high
//! out  = x · 1/sqrt(mean + epsilon) · weight
//! ```

use super::Kernel;
use crate::builder::{Buffer, Reduction, Val};

/// One row.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, row: Val<'k>, epsilon: f32) {
    let length = kernel.k.int(kernel.output_type(0).row_elements());
    let source = kernel.input(0).at(row * length);
    normalize(kernel, source, kernel.output(0).at(row * length), length, epsilon);
}

/// One row of the sum of two inputs, and its normalized form.
pub(super) fn body_with_add<'k>(kernel: &Kernel<'k, '_>, row: Val<'k>, epsilon: f32) {
    let k = kernel.k;
    let length = k.int(kernel.output_type(0).row_elements());
    let (left, right) = (kernel.input(0).at(row * length), kernel.input(1).at(row * length));
    let sum = kernel.output(0).at(row * length);
    k.for_each_chunk(length, kernel.lanes, |offset, lanes| {
        sum.store(offset, left.load(offset, lanes) + right.load(offset, lanes));
    });
    normalize(kernel, sum, kernel.output(1).at(row * length), length, epsilon);
}

fn normalize<'k>(
    kernel: &Kernel<'k, '_>,
    source: Buffer<'k>,
    out: Buffer<'k>,
    length: Val<'k>,
    epsilon: f32,
) {
    let (k, lanes) = (kernel.k, kernel.lanes);
    let weight = kernel.weight(0);
    let squares = k.fold_chunks(length, lanes, 0.0, Reduction::Sum, |offset, lanes| {
        let x = source.load(offset, lanes);
        x * x
    });
    let count = kernel.output_type(0).row_elements() as f32;
    let root = (squares / k.float(count, 1) + k.float(epsilon, 1)).square_root();
    let factor = k.float(1.0, 1) / root;
    k.for_each_chunk(length, lanes, |offset, lanes| {
        out.store(offset, source.load(offset, lanes) * factor.splat(lanes) * weight.load(offset, lanes));
    });
}

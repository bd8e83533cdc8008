//! `rms_norm` and `add_and_norm`: normalizes a row by its root mean square. A block is a row.
//!
//! ```text
//! mean = sum(x²) / n            each thread its elements, then the threads of a warp, then the warps
//! out  = x · 1/sqrt(mean + epsilon) · weight
//! ```

use super::Kernel;
use crate::builder::{KernelBuilder, Reduction, Val};

/// One row.
pub(super) fn body(kernel: &Kernel<'_, '_>, epsilon: f32) {
    let source = kernel.input(0).at(kernel.row() * length(kernel));
    let out = kernel.output(0).at(kernel.row() * length(kernel));
    let factor = factor(kernel, epsilon, |offset| source.load(offset, 1));
    kernel.for_each(length(kernel), |offset| {
        out.store(offset, source.load(offset, 1) * factor * kernel.weight(0).load(offset, 1));
    });
}

/// One row of the sum of two inputs, and its normalized form.
pub(super) fn body_with_add(kernel: &Kernel<'_, '_>, epsilon: f32) {
    let base = kernel.row() * length(kernel);
    let (left, right) = (kernel.input(0).at(base), kernel.input(1).at(base));
    let (sum, out) = (kernel.output(0).at(base), kernel.output(1).at(base));
    // A thread meets the same elements again, so that it need not wait for others before it reads them.
    kernel.for_each(length(kernel), |offset| sum.store(offset, left.load(offset, 1) + right.load(offset, 1)));
    let factor = factor(kernel, epsilon, |offset| sum.load(offset, 1));
    kernel.for_each(length(kernel), |offset| {
        out.store(offset, sum.load(offset, 1) * factor * kernel.weight(0).load(offset, 1));
    });
}

fn length<'k>(kernel: &Kernel<'k, '_>) -> Val<'k> {
    kernel.k.int(kernel.output_type(0).row_elements())
}

/// `1/sqrt(mean(x²) + epsilon)`.
fn factor<'k>(kernel: &Kernel<'k, '_>, epsilon: f32, load: impl FnOnce(Val<'k>) -> Val<'k>) -> Val<'k> {
    let k = kernel.k;
    let squares = kernel.fold(length(kernel), 0.0, Reduction::Sum, |offset| {
        let x = load(offset);
        x * x
    });
    inverse_root(k, squares, kernel.output_type(0).row_elements(), epsilon)
}

/// `1/sqrt(squares / count + epsilon)`.
pub(super) fn inverse_root<'k>(
    k: &'k KernelBuilder<'k>,
    squares: Val<'k>,
    count: u64,
    epsilon: f32,
) -> Val<'k> {
    k.float(1.0, 1) / (squares / k.float(count as f32, 1) + k.float(epsilon, 1)).square_root()
}

//! `combine_experts`: weighted sum of the chosen experts' outputs, in order of choice. A block is a row.
//!
//! ```text
//! out[row, ..] = (residual[row, ..] +) Σ_choice weights[row, choice] · y[row, choice, ..]
//! ```

use super::Kernel;

/// One row.
pub(super) fn body(kernel: &Kernel<'_, '_>, residual: bool) {
    let k = kernel.k;
    let choices = kernel.input_type(1).row_elements();
    let width = kernel.output_type(0).row_elements();
    let (row, length) = (kernel.row(), k.int(width));
    let y = kernel.input(0).at(row * k.int(choices * width));
    let weights = kernel.input(1).at(row * k.int(choices));
    let out = kernel.output(0).at(row * length);
    kernel.for_each(length, |offset| {
        let mut sum = k.float(0.0, 1);
        for choice in 0..choices {
            let weight = weights.load(k.int(choice), 1);
            sum = weight.multiply_add(y.load(offset + k.int(choice * width), 1), sum);
        }
        if residual {
            sum = kernel.input(2).load(row * length + offset, 1) + sum;
        }
        out.store(offset, sum);
    });
}

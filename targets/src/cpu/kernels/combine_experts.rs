//! `combine_experts`: weighted sum of the chosen experts' outputs, in order of choice.
//!
//! ```text
//! out[row, ..] = (residual[row, ..] +) Σ_choice weights[row, choice] · y[row, choice, ..]
//! ```

use super::Kernel;
use crate::builder::Val;

/// One row.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, row: Val<'k>, residual: bool) {
    let k = kernel.k;
    let choices = kernel.input_type(1).row_elements();
    let width = kernel.output_type(0).row_elements();
    let length = k.int(width);
    let y = kernel.input(0).at(row * k.int(choices * width));
    let weights = kernel.input(1).at(row * k.int(choices));
    let out = kernel.output(0).at(row * length);
    k.for_each_chunk(length, kernel.lanes, |offset, lanes| {
        let mut sum = k.float(0.0, lanes);
        for choice in 0..choices {
            let weight = weights.load(k.int(choice), 1).splat(lanes);
            sum = weight.multiply_add(y.load(offset + k.int(choice * width), lanes), sum);
        }
        if residual {
            sum = kernel.input(2).load(row * length + offset, lanes) + sum;
        }
        out.store(offset, sum);
    });
}

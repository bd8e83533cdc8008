//! `embed`: copies one row of the embedding. A block is a row of the step.
//!
//! ```text
//! for column in 0..hidden, shared out to threads: out[row, column] = weight[token[row], column]
//! ```

use qwen2c_request::{Element, Quantization};

use super::Kernel;
use super::unit_product::widen_integer;
use crate::builder::{Buffer, Scalar, Val};
use crate::cuda::layout::{BLOCK_UNITS, UNIT_BYTES, WarpGeometry};

/// One row.
pub(super) fn body(kernel: &Kernel<'_, '_>) {
    let k = kernel.k;
    let hidden = k.int(kernel.weight_type(0).columns());
    let token = kernel.input(0).load_index(kernel.row());
    let out = kernel.output(0).at(kernel.row() * hidden);
    let weight = kernel.weight(0);
    let Some(geometry) = kernel.geometry(0) else {
        let source = weight.at(token * hidden);
        kernel.for_each(hidden, |column| out.store(column, source.load(column, 1)));
        return;
    };
    match geometry.quantization {
        Some(quantization) => {
            kernel.for_each(hidden, |column| {
                out.store(column, integer_at(kernel, (geometry, quantization), token, column));
            });
        }
        None => {
            let source = weight.at_bytes(token * k.int(geometry.panel_bytes()));
            kernel.for_each(hidden, |column| out.store(column, source.load(column, 1)));
        }
    }
}

/// Element `column` of row `token` of a quantized weight.
fn integer_at<'k>(
    kernel: &Kernel<'k, '_>,
    (geometry, quantization): (WarpGeometry, Quantization),
    token: Val<'k>,
    column: Val<'k>,
) -> Val<'k> {
    let k = kernel.k;
    let (unit_inputs, panel_rows) = (k.int(geometry.unit_inputs()), k.int(geometry.panel_rows));
    let (unit, row) = (column / unit_inputs, token % panel_rows);
    let block = unit / k.int(BLOCK_UNITS);
    // The last block of a row may have fewer units.
    let units = (k.int(geometry.units()) - block * k.int(BLOCK_UNITS)).minimum(k.int(BLOCK_UNITS));
    let panel = token / panel_rows * k.int(geometry.panel_bytes());
    let start = kernel.weight(0).at_bytes(panel + block * k.int(geometry.block_bytes(BLOCK_UNITS)));
    let place = row * units + unit % k.int(BLOCK_UNITS);
    let per_dword = 32 / quantization.bits;
    let within = column % unit_inputs;
    let dword = place * k.int(UNIT_BYTES / 4) + within / k.int(per_dword);
    let dword = Buffer { element: Element::I32, ..start }.load(dword, 1);
    let input = (within % k.int(per_dword)).truncate(Scalar::I32);
    let first_bit = match quantization.bits {
        8 => input.shift_left(3),
        _ => input.and_bits(1).shift_left(4) + input.shift_right(1).shift_left(2),
    };
    let field = dword.shift_right_by(first_bit).and_bits((1 << quantization.bits) - 1);
    let group = (column - block * k.int(BLOCK_UNITS) * unit_inputs) / k.int(quantization.group);
    let scaling = |at_bytes: Val<'k>| {
        let scales = start.at_bytes(at_bytes + group * k.int(geometry.scaling_bytes()));
        scales.seen_as(quantization.scale).load(row, 1)
    };
    let scales_at_bytes = units * panel_rows * k.int(UNIT_BYTES);
    let integer = widen_integer(k, field, quantization.bias());
    let scale = scaling(scales_at_bytes);
    if !quantization.has_minimum {
        return integer * scale;
    }
    let groups = (units * unit_inputs).divide_up(quantization.group.into());
    integer.multiply_add(scale, scaling(scales_at_bytes + groups * k.int(geometry.scaling_bytes())))
}

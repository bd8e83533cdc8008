//! Weights of tests, in every format: what the compiler quantizes, and what checkpoints bring.

use std::convert::Infallible;

use qwen2c_request::{
    Element, Quantization, QuantizationError, QuantizedBlock, QuantizedRows, WeightLayout, WeightType,
    f16_to_f32, f32_to_f16, quantize_weights,
};

use crate::pack::{ReadWeight, pack_panels, weight_panels};

/// Formats that the compiler makes, then formats that only checkpoints have: those of Q4_1, Q4_K, Q5_1,
/// Q5_K and Q6_K, and two that no checkpoint has yet.
pub(crate) const FORMATS: [Quantization; 12] = [
    Quantization::signed(8, 32),
    Quantization::signed(4, 32),
    Quantization::signed(4, 64),
    Quantization::signed(8, 128),
    Quantization::signed(4, 128),
    Quantization { has_minimum: true, ..Quantization::signed(4, 32) },
    Quantization { has_minimum: true, scale: Element::F32, ..Quantization::signed(4, 32) },
    Quantization { has_minimum: true, ..Quantization::signed(8, 32) },
    Quantization { has_minimum: true, scale: Element::F32, ..Quantization::signed(8, 32) },
    Quantization { scale: Element::F32, ..Quantization::signed(8, 16) },
    Quantization { has_minimum: true, ..Quantization::signed(4, 128) },
    Quantization { has_minimum: true, scale: Element::F32, ..Quantization::signed(4, 16) },
];

/// A weight's elements, to be packed.
struct Values<'a> {
    ty: &'a WeightType,
    values: &'a [f32],
}

impl ReadWeight for Values<'_> {
    type Error = Infallible;

    fn rows(&mut self, first_row: u64, out: &mut [f32]) -> Result<(), Infallible> {
        out.copy_from_slice(&self.values[(first_row * self.ty.columns()) as usize..][..out.len()]);
        Ok(())
    }

    fn groups(
        &mut self,
        first_row: u64,
        out: &mut QuantizedRows<'_>,
    ) -> Result<QuantizationError, Infallible> {
        let mut values = vec![0.0; out.integers.len()];
        self.rows(first_row, &mut values)?;
        let quantization = self.ty.quantization.expect("a quantized weight");
        Ok(quantize(quantization, self.ty.columns() as usize, &values, out))
    }
}

/// Packs a weight with these elements, in two parts.
pub(crate) fn pack(ty: &WeightType, layout: WeightLayout, values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let panels = weight_panels(ty, layout);
    for panels in [0..panels / 2, panels / 2..panels] {
        let Ok(_) = pack_panels(ty, layout, panels, &mut Values { ty, values }, &mut |block| {
            bytes.extend_from_slice(block);
            Ok(())
        });
    }
    bytes
}

/// `values` as they are packed.
pub(crate) fn dequantized(quantization: Quantization, values: &[f32], columns: u64) -> Vec<f32> {
    let columns = columns as usize;
    let rows = values.len() / columns;
    let mut block = QuantizedBlock::new(quantization, rows, columns);
    let mut quantized = block.rows(0..rows);
    quantize(quantization, columns, values, &mut quantized);
    let mut widened = vec![0.0; values.len()];
    quantization.widen(columns, &quantized, &mut widened);
    widened
}

/// Whether the compiler quantizes to this format.
pub(crate) fn is_made(quantization: Quantization) -> bool {
    quantization == Quantization::signed(quantization.bits, quantization.group)
}

/// As the compiler does, or, in formats of checkpoints, from the range of each group.
fn quantize(
    quantization: Quantization,
    columns: usize,
    values: &[f32],
    out: &mut QuantizedRows<'_>,
) -> QuantizationError {
    if is_made(quantization) {
        return quantize_weights(quantization, columns, values, out);
    }
    let group = quantization.group as usize;
    // Finer scales are products of halves with small integers, as checkpoints have them: products with
    // integers are exact then, and a kernel that contracts operations gives the same bits.
    let in_format = |scaling: f32| match quantization.scale {
        Element::F16 => f16_to_f32(f32_to_f16(scaling)),
        _ => f16_to_f32(f32_to_f16(scaling / 13.0)) * 13.0,
    };
    let groups = columns.div_ceil(group);
    for (row, values) in values.chunks(columns).enumerate() {
        for (index, values) in values.chunks(group).enumerate() {
            let smallest = values.iter().copied().fold(f32::INFINITY, f32::min);
            let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let (minimum, integers) = if quantization.has_minimum {
                (in_format(smallest), (1 << quantization.bits) - 1)
            } else {
                (0.0, quantization.largest())
            };
            let range = if quantization.has_minimum { largest - minimum } else { largest.max(-smallest) };
            let scale = in_format(range / integers as f32);
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            out.scales[row * groups + index] = scale;
            if quantization.has_minimum {
                out.minima[row * groups + index] = minimum;
            }
            let lowest = if quantization.has_minimum { 0 } else { -integers };
            for (column, value) in (index * group..).zip(values) {
                let integer = ((value - minimum) * inverse).round() as i32;
                out.integers[row * columns + column] = integer.clamp(lowest, integers) as i8;
            }
        }
    }
    QuantizationError::default()
}

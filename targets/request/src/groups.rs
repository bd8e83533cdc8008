//! Rows of quantized weights between their source and their packing: integers, scales and minima side by
//! side, and the numbers they stand for.

use std::ops::Range;

use crate::{
    Element, Quantization, QuantizationError, f16_to_f32, quantize_groups, quantize_groups_with_minima,
};

/// Rows of integers with scales. Every row starts with a group of its own.
#[derive(Debug)]
pub struct QuantizedRows<'a> {
    /// One for each weight. Where groups have minima they are unsigned, bit for bit.
    pub integers: &'a mut [i8],
    /// One for each group.
    pub scales: &'a mut [f32],
    /// One for each group, or none.
    pub minima: &'a mut [f32],
}

impl QuantizedRows<'_> {
    /// The same rows for a shorter time.
    pub fn reborrow(&mut self) -> QuantizedRows<'_> {
        QuantizedRows { integers: self.integers, scales: self.scales, minima: self.minima }
    }

    /// Those in `range`, where there are `rows` rows in all.
    pub fn part(&mut self, rows: usize, range: Range<usize>) -> QuantizedRows<'_> {
        QuantizedRows {
            integers: part_of(self.integers, rows, &range),
            scales: part_of(self.scales, rows, &range),
            minima: part_of(self.minima, rows, &range),
        }
    }

    /// Makes all of them zero.
    pub fn clear(&mut self) {
        self.integers.fill(0);
        self.scales.fill(0.0);
        self.minima.fill(0.0);
    }
}

/// What belongs to some of `rows` rows.
fn part_of<'a, T>(all: &'a mut [T], rows: usize, range: &Range<usize>) -> &'a mut [T] {
    let each = all.len() / rows.max(1);
    &mut all[range.start * each..range.end * each]
}

/// Memory for [`QuantizedRows`], to be used again and again.
#[derive(Clone, Debug)]
pub struct QuantizedBlock {
    rows: usize,
    integers: Vec<i8>,
    scales: Vec<f32>,
    minima: Vec<f32>,
}

impl QuantizedBlock {
    /// `rows` rows of `columns` weights, all zero.
    pub fn new(quantization: Quantization, rows: usize, columns: usize) -> Self {
        let groups = rows * columns.div_ceil(quantization.group as usize);
        Self {
            rows,
            integers: vec![0; rows * columns],
            scales: vec![0.0; groups],
            minima: vec![0.0; if quantization.has_minimum { groups } else { 0 }],
        }
    }

    /// The rows in `range`.
    pub fn rows(&mut self, range: Range<usize>) -> QuantizedRows<'_> {
        QuantizedRows {
            integers: part_of(&mut self.integers, self.rows, &range),
            scales: part_of(&mut self.scales, self.rows, &range),
            minima: part_of(&mut self.minima, self.rows, &range),
        }
    }
}

impl Quantization {
    /// Writes the weights that rows of `columns` integers stand for: `integer · scale`, plus the minimum
    /// where there is one.
    pub fn widen(self, columns: usize, rows: &QuantizedRows<'_>, out: &mut [f32]) {
        let group = self.group as usize;
        let groups = columns.div_ceil(group);
        let of_rows = rows.integers.chunks(columns).zip(out.chunks_mut(columns)).enumerate();
        for (row, (integers, out)) in of_rows {
            for (index, (integers, out)) in integers.chunks(group).zip(out.chunks_mut(group)).enumerate() {
                let scale = rows.scales[row * groups + index];
                if self.has_minimum {
                    let minimum = rows.minima[row * groups + index];
                    for (weight, integer) in out.iter_mut().zip(integers) {
                        *weight = f32::from(integer.cast_unsigned()) * scale + minimum;
                    }
                } else {
                    for (weight, integer) in out.iter_mut().zip(integers) {
                        *weight = f32::from(*integer) * scale;
                    }
                }
            }
        }
    }
}

/// Quantizes rows of `columns` weights, as [`quantize_groups`] does, or with minima as
/// [`quantize_groups_with_minima`]; scales and minima are those of an f16. Returns what was lost.
pub fn quantize_weights(
    quantization: Quantization,
    columns: usize,
    weights: &[f32],
    out: &mut QuantizedRows<'_>,
) -> QuantizationError {
    debug_assert!(quantization.scale == Element::F16);
    let groups = columns.div_ceil(quantization.group as usize);
    let mut error = QuantizationError::default();
    let mut found = vec![0; groups];
    let rows = weights.chunks(columns).zip(out.integers.chunks_mut(columns));
    for (row, ((weights, integers), scales)) in rows.zip(out.scales.chunks_mut(groups)).enumerate() {
        if quantization.has_minimum {
            let minima = &mut out.minima[row * groups..][..groups];
            error += quantize_groups_with_minima(quantization, weights, integers, scales, minima);
            continue;
        }
        error += quantize_groups(quantization, weights, integers, &mut found);
        for (scale, bits) in scales.iter_mut().zip(&found) {
            *scale = f16_to_f32(*bits);
        }
    }
    error
}

/// Replaces each weight of a row by its quantized value, group by group.
pub fn round_row(quantization: Quantization, row: &mut [f32]) {
    let columns = row.len();
    let mut block = QuantizedBlock::new(quantization, 1, columns);
    let mut rows = block.rows(0..1);
    quantize_weights(quantization, columns, row, &mut rows);
    quantization.widen(columns, &rows, row);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_groups_of_its_own() {
        let quantization = Quantization::signed(8, 16);
        let mut block = QuantizedBlock::new(quantization, 2, 20);
        let rows = block.rows(0..2);
        rows.integers.fill(-3);
        rows.scales.copy_from_slice(&[1.0, 2.0, 4.0, 8.0]);
        let mut weights = [0.0; 40];
        quantization.widen(20, &rows, &mut weights);
        let expected: Vec<f32> =
            [(16, 1.0), (4, 2.0), (16, 4.0), (4, 8.0)].iter().flat_map(|&(n, s)| vec![-3.0 * s; n]).collect();
        assert_eq!(weights.as_slice(), expected);
        let second = block.rows(1..2);
        assert_eq!((second.integers.len(), &second.scales[..]), (20, &[4.0, 8.0][..]));
    }

    #[test]
    fn integers_with_a_minimum_are_unsigned() {
        let quantization = Quantization { has_minimum: true, ..Quantization::signed(8, 16) };
        let mut block = QuantizedBlock::new(quantization, 1, 16);
        let mut rows = block.rows(0..1);
        rows.integers.fill(-1);
        rows.scales.fill(0.5);
        rows.minima.fill(-2.0);
        let mut weights = [0.0; 16];
        quantization.widen(16, &rows, &mut weights);
        assert_eq!(weights, [125.5; 16]);
        rows.clear();
        quantization.widen(16, &rows, &mut weights);
        assert_eq!(weights, [0.0; 16]);
    }
}

//! Rounds groups of weights to unsigned integers with a common scale and a minimum.
//!
//! A minimum costs half a bit for each weight of a group of 32, and gives most groups little: of normally
//! distributed weights a sixth less squared error, where half a bit more of resolution would halve it. It
//! is for weights whose groups lie to one side of zero, and for those that were rounded this way before.

use crate::quantize::{CANDIDATES, LARGEST_F16, QuantizationError, ROUNDING, inverse_of};
use crate::{Quantization, f16_to_f32, f32_to_f16};

/// Ranges that are tried for 4-bit integers, relative to the group's. The first keeps groups that are on a
/// grid of 16 values already; narrower ones would cut off the outermost weights, which matter most.
const RANGES_OF_4_BITS: [f32; CANDIDATES] = [1.0, 1.02, 1.04, 1.06, 1.08, 1.1, 1.12, 1.14];

/// The same for 8-bit integers: ranges in which they round differently.
const RANGES_OF_8_BITS: [f32; CANDIDATES] = [1.0, 1.007, 1.014, 1.021, 1.028, 1.035, 1.042, 1.05];

/// Quantizes consecutive groups, of which the last may be shorter: writes an unsigned integer for each
/// weight, bit for bit, and for each group a scale and a minimum that an f16 can hold. Returns what was
/// lost.
///
/// Scale and minimum minimize the group's squared error: those of a line through (integer, weight) by least
/// squares, for the best of the integers that several ranges lead to. Like
/// [`quantize_groups`](crate::quantize_groups) it finds the same on every machine.
pub fn quantize_groups_with_minima(
    quantization: Quantization,
    weights: &[f32],
    integers: &mut [i8],
    scales: &mut [f32],
    minima: &mut [f32],
) -> QuantizationError {
    let group = quantization.group as usize;
    let mut error = QuantizationError::default();
    let groups = weights.chunks(group).zip(integers.chunks_mut(group)).zip(scales.iter_mut().zip(minima));
    for ((weights, integers), (scale, minimum)) in groups {
        let line = if quantization.bits == 4 {
            fit_line::<15>(weights, RANGES_OF_4_BITS)
        } else {
            fit_line::<255>(weights, RANGES_OF_8_BITS)
        };
        (*scale, *minimum) = (line.scale, line.minimum);
        let largest = ((1_u32 << quantization.bits) - 1) as f32;
        let inverse = inverse_of(line.scale);
        for (integer, weight) in integers.iter_mut().zip(weights) {
            let rounded = ((weight - line.minimum) * inverse).max(0.0).min(largest) + ROUNDING;
            // The sum's lowest bits are the integer's.
            *integer = rounded.to_bits() as i8;
            let difference = weight - ((rounded - ROUNDING) * line.scale + line.minimum);
            error.differences += f64::from(difference * difference);
            error.weights += f64::from(weight * weight);
        }
    }
    error
}

/// What integers stand for: `integer · scale + minimum`.
struct Line {
    scale: f32,
    minimum: f32,
}

/// The best line through a group's weights.
fn fit_line<const LARGEST: u16>(weights: &[f32], ranges: [f32; CANDIDATES]) -> Line {
    let smallest = weights.iter().fold(f32::INFINITY, |smallest, weight| weight.min(smallest));
    let largest = weights.iter().fold(f32::NEG_INFINITY, |largest, weight| weight.max(largest));
    let (middle, steps) = (0.5 * smallest + 0.5 * largest, f32::from(LARGEST));
    let inverses = ranges.map(|range| inverse_of((largest - smallest) * range / steps));
    // Candidates lie side by side, and weights are taken from the middle, where they are small.
    let (mut products, mut squares, mut sums) = ([0.0; CANDIDATES], [0.0; CANDIDATES], [0.0; CANDIDATES]);
    let mut sum = 0.0;
    for weight in weights {
        let weight = weight - middle;
        sum += weight;
        for candidate in 0..CANDIDATES {
            let place = (weight * inverses[candidate] + 0.5 * steps).max(0.0).min(steps);
            // Integers too are taken from their middle, so that little cancels below.
            let integer = (place + ROUNDING) - ROUNDING - 0.5 * steps;
            products[candidate] += weight * integer;
            squares[candidate] += integer * integer;
            sums[candidate] += integer;
        }
    }
    let count = weights.len() as f32;
    // A line explains as much of the squares as its slope does, and the mean, which all share.
    let mut best = (0.0, 0.0, 0.0);
    for candidate in 0..CANDIDATES {
        let shared = products[candidate] - sums[candidate] * sum / count;
        let spread = squares[candidate] - sums[candidate] * sums[candidate] / count;
        let explained = shared * shared / spread;
        if explained > best.0 {
            best = (explained, shared / spread, sums[candidate]);
        }
    }
    let (_, slope, integers) = best;
    let scale = through_f16(slope);
    // Where zero would be, with what rounding the scale has moved.
    Line { scale, minimum: through_f16(middle + (sum - scale * integers) / count - 0.5 * steps * scale) }
}

/// The nearest number that an f16 holds, and is finite.
fn through_f16(value: f32) -> f32 {
    f16_to_f32(f32_to_f16(value.clamp(-LARGEST_F16, LARGEST_F16)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::round_row;

    const INT4: Quantization = Quantization { has_minimum: true, ..Quantization::signed(4, 32) };
    const INT8: Quantization = Quantization { has_minimum: true, ..Quantization::signed(8, 32) };

    /// Sum of squared differences.
    fn lost(quantization: Quantization, weights: &[f32]) -> f32 {
        let mut rounded = weights.to_vec();
        round_row(quantization, &mut rounded);
        weights.iter().zip(&rounded).map(|(weight, rounded)| (weight - rounded).powi(2)).sum()
    }

    /// As [`lost`], by the plain rule: the smallest and the largest weight span the range.
    fn lost_by_the_plain_rule(bits: u32, weights: &[f32]) -> f32 {
        let smallest = weights.iter().copied().fold(f32::INFINITY, f32::min);
        let largest = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let scale = (largest - smallest) / ((1_u32 << bits) - 1) as f32;
        let rounded = |weight: f32| ((weight - smallest) / scale).round() * scale + smallest;
        weights.iter().map(|weight| (weight - rounded(*weight)).powi(2)).sum()
    }

    #[test]
    fn what_is_on_the_grid_stays() {
        for (quantization, largest) in [(INT4, 15), (INT8, 255)] {
            for (scale, minimum) in [(0.125, -0.5), (0.0625, 3.0), (0.25, -100.0)] {
                let on_grid = |index| (index * 7 % (largest + 1)) as f32 * scale + minimum;
                let mut row: Vec<f32> = (0..64).map(on_grid).collect();
                // Each group reaches from end to end, which fixes its scale.
                for group in row.chunks_mut(32) {
                    (group[3], group[4]) = (minimum, largest as f32 * scale + minimum);
                }
                let expected = row.clone();
                round_row(quantization, &mut row);
                assert_eq!(row, expected, "{quantization}");
            }
        }
    }

    #[test]
    fn groups_of_one_value_keep_it() {
        for value in [0.0, 0.75, -2.5] {
            let mut row = vec![value; 40];
            round_row(INT4, &mut row);
            assert_eq!(row, [value; 40]);
        }
    }

    #[test]
    fn what_an_f16_cannot_hold_stays_finite() {
        for mut row in
            [vec![1e-30; 32], vec![1e-12, -1e-12], vec![1e12, -3e12, 5.0], vec![f32::MAX, f32::MIN]]
        {
            round_row(INT4, &mut row);
            assert!(row.iter().all(|weight| weight.is_finite()), "{row:?}");
        }
    }

    proptest! {
        #[test]
        fn no_worse_than_the_plain_rule_but_for_the_rounding_of_scales(
            weights in prop::collection::vec(-0.1_f32..0.1, 2..=32), shift in -0.1_f32..0.1
        ) {
            let weights: Vec<f32> = weights.iter().map(|weight| weight + shift).collect();
            for (quantization, bits) in [(INT4, 4), (INT8, 8)] {
                let (found, plain) = (lost(quantization, &weights), lost_by_the_plain_rule(bits, &weights));
                // An f16 is off by 2⁻¹² of itself at most; half a step on average is what rounding costs.
                let spared = weights.iter().map(|weight| (weight.abs() + 0.2).powi(2)).sum::<f32>() * 1.2e-7;
                prop_assert!(found <= 1.05 * plain + spared, "{quantization}: {found} against {plain}");
            }
        }

        #[test]
        fn what_is_lost_is_told(weights in prop::collection::vec(-1.0_f32..1.0, 1..100)) {
            let (mut integers, mut scales, mut minima) = (vec![0; weights.len()], [0.0; 4], [0.0; 4]);
            let told = quantize_groups_with_minima(INT4, &weights, &mut integers, &mut scales, &mut minima);
            let expected = f64::from(lost(INT4, &weights));
            prop_assert!((told.differences - expected).abs() <= 1e-5 * expected + 1e-9);
        }
    }
}

//! Rounds groups of weights to unsigned integers with a common scale and a minimum.
//!
//! A minimum costs half a bit for each weight of a group of 32, and gives most groups little: of normally
//! distributed weights a sixth less squared error, where half a bit more of resolution would halve it. It
//! is for weights whose groups lie to one side of zero, and for those that were rounded this way before.

use crate::quantize::{
    BLOCK_GROUPS, CANDIDATES, LARGEST_F16, LONGEST_GROUP, QuantizationError, ROUNDING, inverse_of, range_of,
    square_sum,
};
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
/// squares, for the best of the integers that several ranges lead to. As [`quantize_groups`] does, it finds
/// the same on every machine, whatever a group's neighbours are.
///
/// [`quantize_groups`]: crate::quantize_groups
pub fn quantize_groups_with_minima(
    quantization: Quantization,
    weights: &[f32],
    integers: &mut [i8],
    scales: &mut [f32],
    minima: &mut [f32],
) -> QuantizationError {
    let mut error = QuantizationError::default();
    let block = quantization.group as usize * BLOCK_GROUPS;
    let lines = scales.chunks_mut(BLOCK_GROUPS).zip(minima.chunks_mut(BLOCK_GROUPS));
    let blocks = weights.chunks(block).zip(integers.chunks_mut(block)).zip(lines);
    for ((weights, integers), (scales, minima)) in blocks {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            error += unsafe { quantize_block_with_avx2(quantization, weights, integers, scales, minima) };
            continue;
        }
        error += quantize_block(quantization, weights, integers, scales, minima);
    }
    error
}

/// The same code, compiled for wider vectors than every processor has.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn quantize_block_with_avx2(
    quantization: Quantization,
    weights: &[f32],
    integers: &mut [i8],
    scales: &mut [f32],
    minima: &mut [f32],
) -> QuantizationError {
    quantize_block(quantization, weights, integers, scales, minima)
}

#[inline(always)]
fn quantize_block(
    quantization: Quantization,
    weights: &[f32],
    integers: &mut [i8],
    scales: &mut [f32],
    minima: &mut [f32],
) -> QuantizationError {
    let group = quantization.group as usize;
    if quantization.bits == 4 {
        quantize_block_in_phases::<15>(RANGES_OF_4_BITS, group, weights, integers, scales, minima)
    } else {
        quantize_block_in_phases::<255>(RANGES_OF_8_BITS, group, weights, integers, scales, minima)
    }
}

/// Takes each step for all groups before the next, because the steps of one group wait for one another.
#[inline(always)]
fn quantize_block_in_phases<const LARGEST: u16>(
    ranges: [f32; CANDIDATES],
    group: usize,
    weights: &[f32],
    integers: &mut [i8],
    scales: &mut [f32],
    minima: &mut [f32],
) -> QuantizationError {
    let mut spans = [Span::default(); BLOCK_GROUPS];
    for (span, weights) in spans.iter_mut().zip(weights.chunks(group)) {
        *span = Span::of(weights);
    }
    let mut sums = [CandidateSums::ZERO; BLOCK_GROUPS];
    for ((sums, span), weights) in sums.iter_mut().zip(&spans).zip(weights.chunks(group)) {
        *sums = CandidateSums::of::<LARGEST>(weights, *span, ranges);
    }
    let lines = sums.iter().zip(&spans).zip(weights.chunks(group)).zip(scales.iter_mut().zip(&mut *minima));
    for (((sums, span), weights), (scale, minimum)) in lines {
        (*scale, *minimum) = sums.best_line::<LARGEST>(span.middle, weights.len() as f32);
    }
    let mut differences = [0.0; LONGEST_GROUP * BLOCK_GROUPS];
    let differences = &mut differences[..weights.len()];
    let groups = integers.chunks_mut(group).zip(weights.chunks(group)).zip(differences.chunks_mut(group));
    for (((integers, weights), differences), (scale, minimum)) in groups.zip(scales.iter().zip(&*minima)) {
        let inverse = inverse_of(*scale);
        for ((integer, weight), difference) in integers.iter_mut().zip(weights).zip(differences) {
            let rounded = cut::<LARGEST>((weight - minimum) * inverse) + ROUNDING;
            // The sum's lowest bits are the integer's.
            *integer = rounded.to_bits() as i8;
            *difference = weight - ((rounded - ROUNDING) * scale + minimum);
        }
    }
    QuantizationError { differences: square_sum(differences).into(), weights: square_sum(weights).into() }
}

/// The nearest value that an unsigned integer can have.
#[inline(always)]
fn cut<const LARGEST: u16>(value: f32) -> f32 {
    value.max(0.0).min(f32::from(LARGEST))
}

/// Where a group's weights lie.
#[derive(Clone, Copy, Default)]
struct Span {
    middle: f32,
    width: f32,
}

impl Span {
    #[inline(always)]
    fn of(weights: &[f32]) -> Self {
        let (smallest, largest) = range_of(weights, (f32::INFINITY, f32::NEG_INFINITY));
        Self { middle: 0.5 * smallest + 0.5 * largest, width: largest - smallest }
    }
}

/// Sums over one group for each candidate, of weights and integers from their middles on.
#[derive(Clone, Copy)]
struct CandidateSums {
    /// Of weight · integer.
    products: [f32; CANDIDATES],
    /// Of integer².
    squares: [f32; CANDIDATES],
    /// Of the integers.
    integers: [f32; CANDIDATES],
    /// Of the weights.
    weights: f32,
}

impl CandidateSums {
    const ZERO: Self = Self {
        products: [0.0; CANDIDATES],
        squares: [0.0; CANDIDATES],
        integers: [0.0; CANDIDATES],
        weights: 0.0,
    };

    /// Candidates lie side by side, and weights are taken from the middle, where they are small.
    #[inline(always)]
    fn of<const LARGEST: u16>(weights: &[f32], span: Span, ranges: [f32; CANDIDATES]) -> Self {
        let steps = f32::from(LARGEST);
        let inverses = ranges.map(|range| inverse_of(span.width * range / steps));
        let mut sums = Self::ZERO;
        for weight in weights {
            let weight = weight - span.middle;
            sums.weights += weight;
            for (candidate, inverse) in inverses.iter().enumerate() {
                let place = cut::<LARGEST>(weight * inverse + 0.5 * steps);
                // Integers too are taken from their middle, so that little cancels below.
                let integer = (place + ROUNDING) - ROUNDING - 0.5 * steps;
                sums.products[candidate] += weight * integer;
                sums.squares[candidate] += integer * integer;
                sums.integers[candidate] += integer;
            }
        }
        sums
    }

    /// Scale and minimum of the best line through a group's weights. A line explains as much of the squares
    /// as its slope does, and the mean, which all share.
    #[inline(always)]
    fn best_line<const LARGEST: u16>(&self, middle: f32, count: f32) -> (f32, f32) {
        let mut best = (0.0, 0.0, 0.0);
        for candidate in 0..CANDIDATES {
            let integers = self.integers[candidate];
            let shared = self.products[candidate] - integers * self.weights / count;
            let spread = self.squares[candidate] - integers * integers / count;
            let explained = shared * shared / spread;
            if explained > best.0 {
                best = (explained, shared / spread, integers);
            }
        }
        let (_, slope, integers) = best;
        let scale = through_f16(slope);
        // Where zero would be, with what rounding the scale has moved.
        let minimum = middle + (self.weights - scale * integers) / count - 0.5 * f32::from(LARGEST) * scale;
        (scale, through_f16(minimum))
    }
}

/// The nearest number that an f16 holds, and is finite.
#[inline(always)]
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

    #[test]
    fn every_width_of_vectors_and_every_neighbourhood_gives_the_same_bits() {
        for quantization in [INT4, INT8, Quantization { group: 128, ..INT4 }] {
            let group = quantization.group as usize;
            // Of both signs, and groups of zeros of both signs.
            let weight = |index: usize| match index / group % 5 {
                4 if index.is_multiple_of(3) => -0.0,
                4 => 0.0,
                _ => (index.wrapping_mul(2_654_435_761) >> 7 & 0xffff) as f32 / 65536.0 - 0.3,
            };
            let weights: Vec<f32> = (0..group * 37 + 13).map(weight).collect();
            let mut block = (vec![0; weights.len()], vec![0.0; 38], vec![0.0; 38]);
            let (integers, scales, minima) = (&mut block.0, &mut block.1, &mut block.2);
            quantize_groups_with_minima(quantization, &weights, integers, scales, minima);
            for (index, weights) in weights.chunks(group).enumerate() {
                let (mut alone, mut scale, mut minimum) = (vec![0; weights.len()], [0.0], [0.0]);
                quantize_block(quantization, weights, &mut alone, &mut scale, &mut minimum);
                assert_eq!(alone, integers[index * group..][..alone.len()], "{quantization}, group {index}");
                let bits = (scale[0].to_bits(), minimum[0].to_bits());
                let expected = (scales[index].to_bits(), minima[index].to_bits());
                assert_eq!(bits, expected, "{quantization}, group {index}");
            }
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

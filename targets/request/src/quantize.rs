//! Rounds groups of weights to small integers with a common scale. The packer, the interpreter and the
//! tests use this one function, so that "the dequantized weights" are the same everywhere.

use crate::{Quantization, f16_to_f32, f32_to_f16};

/// Scales that are tried.
pub(crate) const CANDIDATES: usize = 8;

/// Relative corrections of the first scale that are tried for 4-bit integers. None is below 1: letting the
/// largest weights fall outside leaves less squared error, but a model whose largest weights are cut off
/// expects texts worse than one with more error everywhere.
const CANDIDATES_OF_4_BITS: [f32; CANDIDATES] = [1.0, 1.02, 1.04, 1.06, 1.08, 1.1, 1.13, 1.16];

/// The same for 8-bit integers, which lose little by a wider scale: scales so
/// far apart that most integers differ round by luck, and the best of eight has a fifth less squared error
/// than any one. The second puts the extreme at 127, as GGUF's Q8_0 does: weights that were rounded so
/// stay as they are.
const CANDIDATES_OF_8_BITS: [f32; CANDIDATES] = [1.0, 128.0 / 127.0, 1.015, 1.022, 1.03, 1.037, 1.045, 1.052];

/// The largest finite f16.
pub(crate) const LARGEST_F16: f32 = 65504.0;

/// Adding and subtracting this rounds a small float to the nearest integer, ties to even, in a way that
/// compilers turn into vector code.
pub(crate) const ROUNDING: f32 = 12_582_912.0;

/// How far quantized weights lie from the weights, as sums of squares.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QuantizationError {
    /// Of the differences.
    pub differences: f64,
    /// Of the weights.
    pub weights: f64,
}

impl QuantizationError {
    /// The relative L2 error.
    pub fn relative(self) -> f64 {
        if self.differences == 0.0 { 0.0 } else { (self.differences / self.weights).sqrt() }
    }
}

impl std::ops::AddAssign for QuantizationError {
    fn add_assign(&mut self, other: Self) {
        self.differences += other.differences;
        self.weights += other.weights;
    }
}

/// The largest group.
pub(crate) const LONGEST_GROUP: usize = 128;

/// Groups that go through each phase together.
pub(crate) const BLOCK_GROUPS: usize = 16;

/// Quantizes consecutive groups, of which the last may be shorter: writes an integer for each weight, and
/// for each group the bits of its scale, an f16. Returns what was lost.
///
/// The scale minimizes the group's squared error, in which a weight counts as `m`, its magnitude plus the
/// group's root mean square: what a model reads from large weights suffers most. For integers `q` the best
/// scale is `Σ m·w·q / Σ m·q²` (least squares) and leaves the error `Σ m·w² − (Σ m·w·q)² / Σ m·q²`; the
/// integers of several candidates are tried and those with the largest `(Σ m·w·q)² / Σ m·q²` win.
///
/// All machines find the same integers: the order of every sum is fixed and nothing is contracted,
/// however wide the vectors are that a compiler makes of it. A group's result does not depend on its
/// neighbours.
pub fn quantize_groups(
    quantization: Quantization,
    weights: &[f32],
    integers: &mut [i8],
    scales: &mut [u16],
) -> QuantizationError {
    let mut error = QuantizationError::default();
    let block = quantization.group as usize * BLOCK_GROUPS;
    let blocks = weights.chunks(block).zip(integers.chunks_mut(block)).zip(scales.chunks_mut(BLOCK_GROUPS));
    for ((weights, integers), scales) in blocks {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            error += unsafe { quantize_block_with_avx2(quantization, weights, integers, scales) };
            continue;
        }
        error += quantize_block(quantization, weights, integers, scales);
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
    scales: &mut [u16],
) -> QuantizationError {
    quantize_block(quantization, weights, integers, scales)
}

#[inline(always)]
fn quantize_block(
    quantization: Quantization,
    weights: &[f32],
    integers: &mut [i8],
    scales: &mut [u16],
) -> QuantizationError {
    let group = quantization.group as usize;
    if quantization.bits == 4 {
        quantize_block_in_phases::<7>(group, weights, integers, scales)
    } else {
        quantize_block_in_phases::<127>(group, weights, integers, scales)
    }
}

/// A group's result is a chain of steps that wait for one another. Taking each step for several groups
/// before the next gives the processor something to do meanwhile.
#[inline(always)]
fn quantize_block_in_phases<const LARGEST: i16>(
    group: usize,
    weights: &[f32],
    integers: &mut [i8],
    scales: &mut [u16],
) -> QuantizationError {
    // The smallest integer is one further from zero than the largest: the extreme goes there.
    let mut found = [0.0; BLOCK_GROUPS];
    for (scale, weights) in found.iter_mut().zip(weights.chunks(group)) {
        *scale = extreme_of(weights) / f32::from(-LARGEST - 1);
    }
    let mut sums = [CandidateSums::ZERO; BLOCK_GROUPS];
    for ((sums, first), weights) in sums.iter_mut().zip(&found).zip(weights.chunks(group)) {
        let usual = (square_sum(weights) / weights.len() as f32).sqrt();
        *sums = CandidateSums::of::<LARGEST>(weights, *first, usual);
    }
    for (scale, sums) in found.iter_mut().zip(&sums) {
        *scale = sums.best_scale().unwrap_or(*scale);
    }
    for (bits, scale) in scales.iter_mut().zip(&found) {
        // Weights beyond what an f16 scale can reach are cut off instead of becoming infinite.
        *bits = if *scale == 0.0 { 0 } else { f32_to_f16(scale.clamp(-LARGEST_F16, LARGEST_F16)) };
    }
    let mut differences = [0.0; LONGEST_GROUP * BLOCK_GROUPS];
    let differences = &mut differences[..weights.len()];
    let groups = integers.chunks_mut(group).zip(weights.chunks(group)).zip(differences.chunks_mut(group));
    for (((integers, weights), differences), bits) in groups.zip(scales) {
        let scale = f16_to_f32(*bits);
        let inverse = inverse_of(scale);
        for ((integer, weight), difference) in integers.iter_mut().zip(weights).zip(differences) {
            let rounded = cut::<LARGEST>(weight * inverse) + ROUNDING;
            // The sum's lowest bits are the integer's.
            *integer = rounded.to_bits() as i8;
            *difference = weight - (rounded - ROUNDING) * scale;
        }
    }
    QuantizationError { differences: square_sum(differences).into(), weights: square_sum(weights).into() }
}

/// `Σ x²`
#[inline(always)]
pub(crate) fn square_sum(values: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for values in whole {
        for lane in 0..LANES {
            sums[lane] += values[lane] * values[lane];
        }
    }
    for (lane, value) in rest.iter().enumerate() {
        sums[lane] += value * value;
    }
    sum(sums)
}

/// Numbers side by side, so that compilers turn the loops over them into vector code.
const LANES: usize = 8;

/// The weight furthest from zero.
#[inline(always)]
fn extreme_of(weights: &[f32]) -> f32 {
    let (smallest, largest) = range_of(weights, (0.0, 0.0));
    if largest > -smallest { largest } else { smallest }
}

/// The smallest and the largest weight, of these and of `start`.
#[inline(always)]
pub(crate) fn range_of(weights: &[f32], start: (f32, f32)) -> (f32, f32) {
    let (mut smallest, mut largest) = ([start.0; LANES], [start.1; LANES]);
    let (whole, rest) = weights.as_chunks::<LANES>();
    for weights in whole {
        for lane in 0..LANES {
            smallest[lane] = lesser(smallest[lane], weights[lane]);
            largest[lane] = greater(largest[lane], weights[lane]);
        }
    }
    for weight in rest {
        smallest[0] = lesser(smallest[0], *weight);
        largest[0] = greater(largest[0], *weight);
    }
    for lane in 1..LANES {
        smallest[0] = lesser(smallest[0], smallest[lane]);
        largest[0] = greater(largest[0], largest[lane]);
    }
    (smallest[0], largest[0])
}

/// The smaller of two numbers; unlike `f32::min` this spends nothing on NaN.
#[inline(always)]
fn lesser(a: f32, b: f32) -> f32 {
    if b < a { b } else { a }
}

/// The larger of two numbers.
#[inline(always)]
fn greater(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// The reciprocal, or zero of a scale that an f16 cannot hold.
#[inline(always)]
pub(crate) fn inverse_of(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// The nearest value between the smallest and the largest integer; the smallest is one further from zero.
#[inline(always)]
fn cut<const LARGEST: i16>(value: f32) -> f32 {
    value.max(f32::from(-LARGEST - 1)).min(f32::from(LARGEST))
}

/// The nearest of the integers.
#[inline(always)]
fn round<const LARGEST: i16>(value: f32) -> f32 {
    (cut::<LARGEST>(value) + ROUNDING) - ROUNDING
}

/// `Σ m·w·q` and `Σ m·q²` of one group for each candidate.
#[derive(Clone, Copy)]
struct CandidateSums {
    products: [f32; CANDIDATES],
    squares: [f32; CANDIDATES],
}

impl CandidateSums {
    const ZERO: Self = Self { products: [0.0; CANDIDATES], squares: [0.0; CANDIDATES] };

    /// Candidates lie side by side: the sums need no reduction at the end.
    #[inline(always)]
    fn of<const LARGEST: i16>(weights: &[f32], first: f32, usual: f32) -> Self {
        let candidates = if LARGEST == 7 { CANDIDATES_OF_4_BITS } else { CANDIDATES_OF_8_BITS };
        let inverses = candidates.map(|candidate| inverse_of(first * candidate));
        let mut sums = Self::ZERO;
        for weight in weights {
            let importance = weight.abs() + usual;
            let candidates = inverses.iter().zip(&mut sums.products).zip(&mut sums.squares);
            for ((inverse, products), squares) in candidates {
                let integer = round::<LARGEST>(weight * inverse);
                *products += importance * weight * integer;
                *squares += importance * integer * integer;
            }
        }
        sums
    }

    /// The best scale for the integers of the best candidate; none where all integers are zero.
    #[inline(always)]
    fn best_scale(&self) -> Option<f32> {
        // Positive floats order as their bits do; of equals the first candidate wins. Nothing branches.
        let mut best = 0;
        for candidate in 0..CANDIDATES {
            let explained = self.products[candidate] * self.products[candidate] / self.squares[candidate];
            let explained = if explained > 0.0 { explained } else { 0.0 };
            best = best.max((u64::from(explained.to_bits()) << 32) | (CANDIDATES - candidate) as u64);
        }
        let candidate = CANDIDATES - (best & 15) as usize;
        (best >> 32 != 0).then(|| self.products[candidate] / self.squares[candidate])
    }
}

/// The sum, first lane first.
#[inline(always)]
fn sum(lanes: [f32; LANES]) -> f32 {
    let mut sum = 0.0;
    for lane in lanes {
        sum += lane;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::round_row;

    const INT4: Quantization = Quantization::signed(4, 32);
    const INT8: Quantization = Quantization::signed(8, 32);

    /// Sums of uniform numbers: nearly normal, reproducible.
    fn normal(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5
        };
        (0..count).map(|_| (0..12).map(|_| uniform()).sum::<f32>() * 0.02).collect()
    }

    fn relative_error(quantization: Quantization, weights: &[f32]) -> f32 {
        let mut rounded = weights.to_vec();
        round_row(quantization, &mut rounded);
        let difference: f32 = weights.iter().zip(&rounded).map(|(w, r)| (w - r) * (w - r)).sum();
        (difference / weights.iter().map(|w| w * w).sum::<f32>()).sqrt()
    }

    /// The plain rule: the extreme decides the scale.
    fn extreme_rule_error(largest: f32, weights: &[f32]) -> f32 {
        let mut difference = 0.0;
        for group in weights.chunks(32) {
            let extreme = group.iter().fold(0.0_f32, |e, w| if w.abs() > e.abs() { *w } else { e });
            let scale = extreme / (-1.0 - largest);
            let rounded = |w: f32| (w / scale).round().clamp(-1.0 - largest, largest) * scale;
            difference += group.iter().map(|w| (w - rounded(*w)).powi(2)).sum::<f32>();
        }
        (difference / weights.iter().map(|w| w * w).sum::<f32>()).sqrt()
    }

    #[test]
    fn errors_are_those_of_the_number_of_bits() {
        let weights = normal(32 * 512, 1);
        let (int8, int4) = (relative_error(INT8, &weights), relative_error(INT4, &weights));
        assert!((0.004..0.007).contains(&int8), "{int8}");
        assert!((0.05..0.085).contains(&int4), "{int4}");
        for (found, largest, at_most) in [(int4, 7.0, 0.98), (int8, 127.0, 0.93)] {
            let plain = extreme_rule_error(largest, &weights);
            assert!(found < at_most * plain, "{found} against {plain} of the plain rule");
        }
    }

    #[test]
    fn the_largest_weights_are_not_cut_off() {
        for quantization in [INT4, INT8] {
            let weights = normal(32 * 512, 9);
            let (mut integers, mut scales) = (vec![0; weights.len()], vec![0; 512]);
            quantize_groups(quantization, &weights, &mut integers, &mut scales);
            for (group, (integers, bits)) in weights.chunks(32).zip(integers.chunks(32).zip(&scales)) {
                let scale = f16_to_f32(*bits);
                let extreme = (0..32).max_by(|&a, &b| group[a].abs().total_cmp(&group[b].abs()));
                let extreme = extreme.expect("a group has weights");
                let steps = group[extreme] / scale - f32::from(integers[extreme]);
                assert!(steps.abs() < 0.7, "{quantization}: off by {steps} steps");
            }
        }
    }

    #[test]
    fn every_width_of_vectors_and_every_neighbourhood_gives_the_same_bits() {
        for quantization in [INT4, INT8, Quantization::signed(4, 64)] {
            let group = quantization.group as usize;
            let weights = normal(group * 37 + 13, 5);
            let (mut integers, mut scales) = (vec![0; weights.len()], vec![0; 38]);
            quantize_groups(quantization, &weights, &mut integers, &mut scales);
            for (index, weights) in weights.chunks(group).enumerate() {
                let (mut alone, mut scale) = (vec![0; weights.len()], [0]);
                quantize_block(quantization, weights, &mut alone, &mut scale);
                assert_eq!(alone, integers[index * group..][..alone.len()], "{quantization}, group {index}");
                assert_eq!(scale, scales[index..=index], "{quantization}, group {index}");
            }
        }
    }

    #[test]
    fn what_is_lost_is_told() {
        for (quantization, count) in [(INT4, 32 * 40), (INT8, 32 * 40), (INT4, 45), (INT8, 7)] {
            let weights = normal(count, 3);
            let (mut integers, mut scales) = (vec![0; count], vec![0; count.div_ceil(32)]);
            let told = quantize_groups(quantization, &weights, &mut integers, &mut scales).relative();
            let expected = f64::from(relative_error(quantization, &weights));
            assert!((told / expected - 1.0).abs() < 1e-4, "{quantization}: {told} against {expected}");
        }
    }

    #[test]
    fn what_is_on_the_grid_stays() {
        let scale = 0.125;
        for (quantization, smallest, largest) in [(INT4, -8, 7), (INT8, -128, 127)] {
            let mut row: Vec<f32> = (smallest..=largest).map(|integer| integer as f32 * scale).collect();
            row.resize(row.len().next_multiple_of(32), 0.0);
            let before = row.clone();
            // Each group holds the smallest integer, which fixes its scale.
            for group in row.chunks_mut(32) {
                group[0] = smallest as f32 * scale;
            }
            let expected = row.clone();
            round_row(quantization, &mut row);
            assert_eq!(row, expected);
            assert_eq!(row.len(), before.len());
        }
    }

    #[test]
    fn zeros_and_tiny_weights_stay_finite() {
        for mut row in [vec![0.0; 32], vec![1e-30; 32], vec![-1e-12; 7], vec![6e4; 32], vec![1e12; 3]] {
            round_row(INT4, &mut row);
            assert!(row.iter().all(|weight| weight.is_finite()), "{row:?}");
        }
    }
}

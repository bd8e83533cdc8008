//! Rounds groups of weights to small integers with a common scale. The packer, the interpreter and the
//! tests use this one function, so that "the dequantized weights" are the same everywhere.

use crate::{Quantization, f16_to_f32, f32_to_f16};

/// Relative corrections of the first scale that are tried for 4-bit integers. A scale that lets the
/// largest weight fall a little outside often serves the others better.
const SCALE_CANDIDATES: [f32; 8] = [1.0, 0.88, 0.92, 0.96, 1.04, 1.08, 1.12, 1.16];

/// The largest finite f16.
const LARGEST_F16: f32 = 65504.0;

/// Adding and subtracting this rounds a small float to the nearest integer, ties to even, in a way that
/// compilers turn into vector code.
const ROUNDING: f32 = 12_582_912.0;

/// Quantizes one group: writes an integer for each weight and returns the bits of the scale, an f16.
///
/// The scale minimizes the group's squared error. For integers `q` the best scale is `Σ w·q / Σ q²` (least
/// squares) and leaves the error `Σ w² − (Σ w·q)² / Σ q²`; the integers of several candidates are tried
/// and those with the largest `(Σ w·q)² / Σ q²` win. 8-bit integers take the first candidate, whose error
/// is near the smallest.
pub fn quantize_group(quantization: Quantization, weights: &[f32], integers: &mut [i8]) -> u16 {
    let extreme = weights
        .iter()
        .fold(0.0_f32, |extreme, weight| if weight.abs() > extreme.abs() { *weight } else { extreme });
    if extreme == 0.0 {
        integers.fill(0);
        return 0;
    }
    // The smallest integer is one further from zero than the largest: the extreme goes there.
    let first = extreme / -((quantization.largest() + 1) as f32);
    let candidates = if quantization.bits == 4 { &SCALE_CANDIDATES[..] } else { &SCALE_CANDIDATES[..1] };
    let mut best = (0.0, first);
    for candidate in candidates {
        let (products, squares) = products_and_squares(quantization, weights, first * candidate);
        let explained = products * products / squares;
        if explained > best.0 {
            best = (explained, products / squares);
        }
    }
    // Weights beyond what an f16 scale can reach are cut off instead of becoming infinite.
    let scale_bits = f32_to_f16(best.1.clamp(-LARGEST_F16, LARGEST_F16));
    let inverse = inverse_of(f16_to_f32(scale_bits));
    for (integer, weight) in integers.iter_mut().zip(weights) {
        *integer = round(quantization, weight * inverse) as i8;
    }
    scale_bits
}

/// Replaces each weight of a row by its quantized value, group by group.
pub fn round_row(quantization: Quantization, row: &mut [f32]) {
    let mut integers = vec![0; quantization.group as usize];
    for group in row.chunks_mut(quantization.group as usize) {
        let integers = &mut integers[..group.len()];
        let scale = f16_to_f32(quantize_group(quantization, group, integers));
        for (weight, integer) in group.iter_mut().zip(integers) {
            *weight = f32::from(*integer) * scale;
        }
    }
}

/// The largest integer of an activation: the smallest is its negative, so that a sign may be moved from a
/// weight to an activation.
pub const LARGEST_ACTIVATION: f32 = 127.0;

/// Groups whose largest magnitude is below this become zero: its reciprocal would overflow.
pub const SMALLEST_ACTIVATION: f32 = 1e-30;

/// Replaces each element of a row by its 8-bit integer times the scale of its group, which is the largest
/// magnitude of the group over 127.
pub fn quantize_activations(group: u32, row: &mut [f32]) {
    for group in row.chunks_mut(group as usize) {
        let largest = group.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        let inverse = if largest > SMALLEST_ACTIVATION { LARGEST_ACTIVATION / largest } else { 0.0 };
        let scale = largest * (1.0 / LARGEST_ACTIVATION);
        for x in group {
            *x = ((*x * inverse + ROUNDING) - ROUNDING) * scale;
        }
    }
}

/// The reciprocal, or zero of a scale that an f16 cannot hold.
fn inverse_of(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

fn round(quantization: Quantization, value: f32) -> f32 {
    let largest = quantization.largest() as f32;
    ((value + ROUNDING) - ROUNDING).clamp(-largest - 1.0, largest)
}

/// Weights summed side by side, so that compilers turn the sums into vector code.
const LANES: usize = 8;

/// `Σ w·q` and `Σ q²` of the integers that `scale` leads to.
fn products_and_squares(quantization: Quantization, weights: &[f32], scale: f32) -> (f32, f32) {
    let inverse = inverse_of(scale);
    let (mut products, mut squares) = ([0.0; LANES], [0.0; LANES]);
    let mut add = |lane: usize, weight: f32| {
        let integer = round(quantization, weight * inverse);
        products[lane] += weight * integer;
        squares[lane] += integer * integer;
    };
    let whole = weights.chunks_exact(LANES);
    whole.remainder().iter().enumerate().for_each(|(lane, weight)| add(lane, *weight));
    for weights in whole {
        (0..LANES).for_each(|lane| add(lane, weights[lane]));
    }
    (products.iter().sum(), squares.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    const INT4: Quantization = Quantization { bits: 4, group: 32 };
    const INT8: Quantization = Quantization { bits: 8, group: 32 };

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
    fn extreme_rule_error(weights: &[f32]) -> f32 {
        let mut difference = 0.0;
        for group in weights.chunks(32) {
            let extreme = group.iter().fold(0.0_f32, |e, w| if w.abs() > e.abs() { *w } else { e });
            let scale = extreme / -8.0;
            difference +=
                group.iter().map(|w| (w - (w / scale).round().clamp(-8.0, 7.0) * scale).powi(2)).sum::<f32>();
        }
        (difference / weights.iter().map(|w| w * w).sum::<f32>()).sqrt()
    }

    #[test]
    fn errors_are_those_of_the_number_of_bits() {
        let weights = normal(32 * 512, 1);
        let (int8, int4) = (relative_error(INT8, &weights), relative_error(INT4, &weights));
        assert!((0.004..0.007).contains(&int8), "{int8}");
        assert!((0.05..0.085).contains(&int4), "{int4}");
        let plain = extreme_rule_error(&weights);
        assert!(int4 < 0.95 * plain, "{int4} against {plain} of the plain rule");
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

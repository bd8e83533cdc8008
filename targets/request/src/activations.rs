//! Rounds activations to 8-bit integers: what the interpreter computes and every kernel must.

use crate::quantize::ROUNDING;

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

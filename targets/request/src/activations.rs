//! Activations as integers: how they lie in memory, and their rounding, which the interpreter computes and
//! every kernel must.

use crate::Element;
use crate::quantize::ROUNDING;

/// A row of [`Element::I8`] or [`Element::I16`] in memory: the integers in planes of bytes
/// `i8[planes][groups · group]`, zero behind the last element; the scales `f32[groups]`; the negated sums of
/// each group's integers `i32[groups]`, with which products with unsigned weights are set right.
///
/// An integer of 16 bits is 256 · its byte in the first plane + its byte in the second, both signed: what
/// multiplies bytes multiplies each plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantizedRow {
    /// Elements of the row.
    pub elements: u64,
    /// Elements of a group.
    pub group: u64,
    /// Bytes of an integer.
    pub planes: u64,
}

impl QuantizedRow {
    /// A row of `elements`; none where `element` is not integers with scales.
    pub const fn new(element: Element, elements: u64) -> Option<Self> {
        match element.integer_group() {
            Some(group) => Some(Self { elements, group: group as u64, planes: element.bytes() }),
            None => None,
        }
    }

    /// The largest integer; the smallest is its negative, so that a sign may be moved from a weight to an
    /// activation. Of 16 bits both have a second byte of zero.
    pub const fn largest(self) -> f32 {
        if self.planes == 1 { 127.0 } else { 127.0 * 256.0 }
    }

    /// Groups of the row, the last of which may be partly empty.
    pub const fn groups(self) -> u64 {
        self.elements.div_ceil(self.group)
    }

    /// Bytes of a plane.
    pub const fn plane_bytes(self) -> u64 {
        self.groups() * self.group
    }

    /// Byte at which the scales start.
    pub const fn scales_at_bytes(self) -> u64 {
        self.planes * self.plane_bytes()
    }

    /// Byte at which the negated sums start.
    pub const fn negated_sums_at_bytes(self) -> u64 {
        self.scales_at_bytes() + self.groups() * 4
    }

    /// Bytes of the row.
    pub const fn bytes(self) -> u64 {
        self.negated_sums_at_bytes() + self.groups() * 4
    }
}

/// Groups whose largest magnitude is below this become zero: its reciprocal would overflow.
pub const SMALLEST_ACTIVATION: f32 = 1e-30;

/// Replaces each element of a row by its integer times the scale of its group, which is the largest
/// magnitude of the group over the [largest integer](QuantizedRow::largest). Other types than integers with
/// scales leave the row as it is.
pub fn quantize_activations(element: Element, row: &mut [f32]) {
    let Some(extents) = QuantizedRow::new(element, row.len() as u64) else { return };
    for group in row.chunks_mut(extents.group as usize) {
        let largest = group.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        let inverse = if largest > SMALLEST_ACTIVATION { extents.largest() / largest } else { 0.0 };
        let scale = largest * (1.0 / extents.largest());
        for x in group {
            *x = ((*x * inverse + ROUNDING) - ROUNDING) * scale;
        }
    }
}

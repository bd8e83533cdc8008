//! `quantize_rows`: rounds each group of a row to integers of 8 or 16 bits with a scale.
//!
//! ```text
//! for group:  largest = max |x|;  scale = largest / 127, or 127 · 256;  integers = round(x / scale), to even
//!             store integers, scale, −sum(integers)
//! 16 bits:    a plane of high bytes, a plane of low bytes, both signed: 256 · high + low
//! ```

use qwen2c_request::{Element, QuantizedRow, SMALLEST_ACTIVATION};

use super::Kernel;
use crate::builder::{Buffer, Compare, Reduction, Scalar, Val};

/// A row of integers with scales in memory.
#[derive(Clone, Copy)]
pub(super) struct QuantizedBuffer<'k> {
    /// Start of the row.
    pub(super) row: Buffer<'k>,
    /// Extents.
    pub(super) extents: QuantizedRow,
}

impl<'k> QuantizedBuffer<'k> {
    /// Row number `row` of `buffer`.
    pub(super) fn new(buffer: Buffer<'k>, extents: QuantizedRow, row: Val<'k>) -> Self {
        Self { row: buffer.at_bytes(row * row.builder().int(extents.bytes())), extents }
    }

    /// The integers' bytes from group number `group` on, plane by plane, the highest first.
    pub(super) fn planes(self, group: Val<'k>) -> Vec<Buffer<'k>> {
        let first = group * group.builder().int(self.extents.group);
        let plane = |plane: u64| {
            let start = group.builder().int(plane * self.extents.plane_bytes());
            self.row.at_bytes(start + first)
        };
        (0..self.extents.planes).map(plane).collect()
    }

    /// The scales, `f32[groups]`.
    pub(super) fn scales(self) -> Buffer<'k> {
        let builder = self.row.pointer.builder();
        self.row.at_bytes(builder.int(self.extents.scales_at_bytes())).seen_as(Element::F32)
    }

    /// The negated sums, `i32[groups]`.
    pub(super) fn negated_sums(self) -> Buffer<'k> {
        let builder = self.row.pointer.builder();
        self.row.at_bytes(builder.int(self.extents.negated_sums_at_bytes())).seen_as(Element::I32)
    }

    /// Quantizes and stores group number `group`; `load(offset)` gives `lanes` elements of the group.
    pub(super) fn store_group(self, lanes: u32, group: Val<'k>, load: impl Fn(u64) -> Val<'k>) {
        let k = group.builder();
        let elements: Vec<Val<'k>> =
            (0..self.extents.group / u64::from(lanes)).map(|index| load(index * u64::from(lanes))).collect();
        let largest = elements
            .iter()
            .map(|x| x.absolute())
            .reduce(|largest, x| largest.maximum(x))
            .map_or_else(|| k.float(0.0, 1), |largest| largest.reduce(Reduction::Maximum));
        let is_above = largest.compare(Compare::Greater, k.float(SMALLEST_ACTIVATION, 1));
        let most = self.extents.largest();
        let inverse = is_above.select(k.float(most, 1) / largest, k.float(0.0, 1)).splat(lanes);
        let mut sum = k.int_vector(Scalar::I32, 0, lanes);
        let planes = self.planes(group);
        for (index, x) in (0_i64..).zip(&elements) {
            let integers = (*x * inverse).round_to_even().to_integer();
            let place = k.int(index * i64::from(lanes));
            if let [high, _] = planes[..] {
                // What the low byte lacks as a signed one.
                let rounded = integers + k.int_vector(Scalar::I32, 128, lanes);
                high.store(place, rounded.shift_right_signed(8).truncate(Scalar::I8));
            }
            planes[planes.len() - 1].store(place, integers.truncate(Scalar::I8));
            sum = sum + integers;
        }
        self.scales().store(group, largest * k.float(1.0 / most, 1));
        self.negated_sums().store(group, k.int_of(Scalar::I32, 0) - sum.reduce(Reduction::Sum));
    }

    /// Quantizes and stores the whole row; `load(offset, mask)` gives elements from `offset` on, those
    /// that the mask selects where there is one.
    pub(super) fn store_row(
        self,
        kernel: &Kernel<'k, '_>,
        load: impl Fn(Val<'k>, Option<Val<'k>>) -> Val<'k>,
    ) {
        let (k, lanes, group_elements) = (kernel.k, kernel.lanes, self.extents.group);
        let whole = self.extents.elements / group_elements;
        k.repeat(k.int(0), k.int(whole), 1, |group| {
            let first = group * k.int(group_elements);
            self.store_group(lanes, group, |offset| load(first + k.int(offset), None));
        });
        let rest = self.extents.elements % group_elements;
        if rest > 0 {
            self.store_group(lanes, k.int(whole), |offset| {
                let present = k.int_vector(Scalar::I32, rest as i64 - offset as i64, lanes);
                let mask = k.iota(lanes).compare(Compare::Less, present);
                load(k.int(whole * group_elements + offset), Some(mask))
            });
        }
    }
}

/// One row of the last dimension.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, row: Val<'k>) {
    let columns = kernel.output_type(0).columns();
    let Some(extents) = QuantizedRow::new(kernel.output_type(0).element, columns) else { return };
    let source = kernel.input(0).at(row * kernel.k.int(columns));
    let out = QuantizedBuffer::new(kernel.output(0), extents, row);
    out.store_row(kernel, |offset, mask| match mask {
        Some(mask) => source.load_masked(offset, mask),
        None => source.load(offset, kernel.lanes),
    });
}

/// Rows of the last dimension.
pub(super) fn tiles<'k>(kernel: &Kernel<'k, '_>) -> Val<'k> {
    let ty = kernel.output_type(0);
    kernel.rows * kernel.k.int(ty.row_elements() / ty.columns())
}

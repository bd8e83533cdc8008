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
}

/// Elements of a tile where there is one row: some hundred nanoseconds of work. Half of the row or more was
/// computed by other workers, and one worker alone would wait for all of its lines.
const TILE_ELEMENTS: u64 = 1024;

/// Groups of a tile; of a prompt's rows, all.
fn groups_of_tile(kernel: &Kernel<'_, '_>, extents: QuantizedRow) -> u64 {
    let groups = extents.groups();
    let tiles = if kernel.request.max_rows == 1 { extents.elements.div_ceil(TILE_ELEMENTS) } else { 1 };
    groups.div_ceil(tiles)
}

fn extents(kernel: &Kernel<'_, '_>) -> Option<QuantizedRow> {
    let ty = kernel.output_type(0);
    QuantizedRow::new(ty.element, ty.columns())
}

/// Rows of the last dimension, times the tiles of a row.
pub(super) fn tiles<'k>(kernel: &Kernel<'k, '_>) -> Val<'k> {
    let ty = kernel.output_type(0);
    let tiles_of_row = extents(kernel).map_or(1, |row| row.groups().div_ceil(groups_of_tile(kernel, row)));
    kernel.rows * kernel.k.int(ty.row_elements() / ty.columns() * tiles_of_row)
}

/// Some groups of a row of the last dimension.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, tile: Val<'k>) {
    let Some(extents) = extents(kernel) else { return };
    let (k, lanes, columns) = (kernel.k, kernel.lanes, extents.elements);
    let groups_of_tile = groups_of_tile(kernel, extents);
    let tiles_of_row = k.int(extents.groups().div_ceil(groups_of_tile));
    let row = tile / tiles_of_row;
    let first = tile % tiles_of_row * k.int(groups_of_tile);
    let source = kernel.input(0).at(row * k.int(columns));
    let out = QuantizedBuffer::new(kernel.output(0), extents, row);

    let whole = k.int(columns / extents.group);
    k.repeat(first, (first + k.int(groups_of_tile)).minimum(whole), 1, |group| {
        let first = group * k.int(extents.group);
        out.store_group(lanes, group, |offset| source.load(first + k.int(offset), lanes));
    });
    let rest = columns % extents.group;
    if rest > 0 {
        k.when((first + k.int(groups_of_tile)).compare(Compare::Greater, whole), || {
            out.store_group(lanes, whole, |offset| {
                let present = k.int_vector(Scalar::I32, rest as i64 - offset as i64, lanes);
                let mask = k.iota(lanes).compare(Compare::Less, present);
                source.load_masked(whole * k.int(extents.group) + k.int(offset), mask)
            });
        });
    }
}

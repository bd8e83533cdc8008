//! Products of integers on the matrix unit: exact sums of each group, scaled one group at a time.
//!
//! ```text
//! for pair of panels:
//!   widen the block's weights to signed bytes, [panel, group, dword, lane], and its scales to f32     once
//!   for block of 16 rows:
//!     for some groups, 128 inputs:
//!       for group, panel:  totals = rows · weights of the group             exact, in 32 bits; stored
//!       for 8 rows:        sums[row, panel] in 16 registers
//!         for group, row, panel:
//!           sums[row, panel] += totals[row] · (scale of w[panel, lanes] · scale of a[row])
//! ```
//!
//! These are the sums of `integer_product`, with the same additions in the same order: a row gets the same
//! bits there and here.
//!
//! Is that worth it against widening to bf16, which needs no work between two groups? A group of 32 fills
//! half a register's rows, so that a product of 16 cycles does 8192 multiplications, as many as in bf16.
//! Beside it stand for 16 rows
//!
//! - 16 conversions, 16 multiplications and 16 multiply-adds on two ports: 24 cycles;
//! - loads, two a cycle: 8 half lines of rows, which two panels share, 8 lines of weights, 16 totals, 8 scales
//!   of rows, which two panels share, 2 of weights and 4 sums: 23 cycles (28 with one panel at a time);
//! - stores, one a cycle: 16 totals and 4 sums: 20 cycles.
//!
//! So the bound is 16 / 24 = 67 % of the rate of bf16, and in groups of 64 twice that; products in bf16 were
//! seen to reach 41 to 49 % with widening. VNNI has a quarter of that rate at best. Half the activations' bytes
//! come with it, and the same results as in decode.
//!
//! Activations of 16 bits take a product for each plane of bytes.

use qwen2c_request::{Element, Quantization, QuantizedRow};

use super::Kernel;
use super::integer_product::{join_planes, nibbles};
use super::matrix_product::{
    BLOCK_BYTES, BLOCK_LANES, BLOCK_ROWS, BlockRows, LINE_BYTES, MatrixProduct, Place, WHOLE,
};
use super::quantize_rows::QuantizedBuffer;
use crate::builder::{Buffer, MatrixShape, Scalar, Val};
use crate::cpu::layout::{CHUNK_GROUPS, ChunkGeometry, GroupPlace};

/// Inputs of a block: weights of two panels, 16 KB, scales, 2 KB, totals, 8 KB, and 16 rows, 8 KB, stay in the
/// first-level cache.
const BLOCK_INPUTS: u64 = 512;

/// Inputs of the groups whose totals are made before they are scaled.
const ROUND_INPUTS: u64 = 128;

/// Panels side by side.
const PANELS: u64 = 2;

/// Rows whose sums are in registers: 16 sums with two panels.
const SCALED_ROWS: u64 = 8;

/// Rows whose totals are loaded together: beside 16 sums, registers for more are not there.
const ROWS_AT_A_TIME: u64 = 2;

/// The widened weights of one block of inputs of a pair of panels.
pub(super) struct Integers<'k> {
    quantization: Quantization,
    chunks: ChunkGeometry,
    /// `[panel, group, dword, lane]`, four bytes each.
    bytes: Buffer<'k>,
    /// `[panel, group, lane]`.
    scales: Buffer<'k>,
    /// `[panel, group, lane]`, where there are any.
    minima: Option<Buffer<'k>>,
    /// `[group of a round, panel, plane of activations]`, 16 by 16 sums each.
    totals: Buffer<'k>,
    /// Rows of activations.
    extents: QuantizedRow,
}

impl<'k> Integers<'k> {
    /// Makes arrays on the stack.
    pub(super) fn new(kernel: &Kernel<'k, '_>, quantization: Quantization, extents: QuantizedRow) -> Self {
        let k = kernel.k;
        let lanes = u64::from(BLOCK_LANES);
        let groups = |inputs: u64| (inputs / u64::from(quantization.group)).max(1);
        let scalings = || k.stack_array(Element::F32, PANELS * groups(BLOCK_INPUTS) * lanes);
        let totals = groups(ROUND_INPUTS) * PANELS * extents.planes * BLOCK_BYTES;
        Self {
            quantization,
            chunks: ChunkGeometry { lanes, quantization },
            bytes: k.stack_array(Element::I32, PANELS * BLOCK_INPUTS / 4 * lanes),
            scales: scalings(),
            minima: quantization.has_minimum.then(scalings),
            totals: k.stack_array(Element::I32, totals / 4),
            extents,
        }
    }

    /// Blocks of the inputs of a row.
    pub(super) fn blocks_of_inputs(&self, columns: u64) -> u64 {
        columns.div_ceil(BLOCK_INPUTS)
    }

    /// Chunks of a block.
    fn block_chunks(&self) -> u64 {
        BLOCK_INPUTS / self.chunks.inputs()
    }

    /// Bytes of a block in a panel.
    fn block_bytes(&self) -> u64 {
        self.chunks.bytes(BLOCK_INPUTS)
    }

    /// Groups of a block.
    fn block_groups(&self) -> u64 {
        BLOCK_INPUTS / u64::from(self.quantization.group)
    }

    /// Groups of a round.
    fn round_groups(&self) -> u64 {
        (ROUND_INPUTS / u64::from(self.quantization.group)).max(1)
    }

    /// Widened bytes of a group.
    fn group_bytes(&self) -> u64 {
        u64::from(self.quantization.group) * u64::from(BLOCK_LANES)
    }

    /// The totals of one group of a round, one panel and one plane of activations.
    fn totals_of(&self, group: Val<'k>, panel: u64, plane: u64) -> Buffer<'k> {
        let k = group.builder();
        let of_group = group * k.int(PANELS * self.extents.planes);
        self.totals.at_bytes((of_group + k.int(panel * self.extents.planes + plane)) * k.int(BLOCK_BYTES))
    }

    /// The place of a group of the block among those of both panels.
    fn place_of(&self, panel: u64, group: Val<'k>) -> Val<'k> {
        group + group.builder().int(panel * self.block_groups())
    }

    /// Widens block number `inputs` of panel number `panel` of the pair, `from`, which has `columns` inputs.
    fn widen(&self, panel: u64, from: Buffer<'k>, inputs: Val<'k>, columns: u64) {
        let k = inputs.builder();
        let widen_chunk = |chunk: Val<'k>, inputs: u64| {
            let start = from.at_bytes(chunk * k.int(self.chunks.bytes(self.chunks.inputs())));
            for (index, place) in (0_u64..).zip(self.chunks.groups(inputs)) {
                let group = chunk * k.int(CHUNK_GROUPS) + k.int(index);
                self.widen_group(start, &place, self.place_of(panel, group));
            }
        };
        let whole = k.int(columns / self.chunks.inputs()) - inputs * k.int(self.block_chunks());
        let in_block = whole.minimum(k.int(self.block_chunks()));
        k.repeat(k.int(0), in_block, 1, |chunk| widen_chunk(chunk, self.chunks.inputs()));
        let rest = columns % self.chunks.inputs();
        if rest > 0 {
            // The chunk that is not full is the next one of the last block.
            k.repeat(in_block, (in_block + k.int(1)).minimum(k.int(self.block_chunks())), 1, |chunk| {
                widen_chunk(chunk, rest);
            });
        }
    }

    /// Widens one group of `chunk` to place number `group`. Inputs that do not exist are not written: they
    /// meet zeros.
    fn widen_group(&self, chunk: Buffer<'k>, place: &GroupPlace, group: Val<'k>) {
        let (k, lanes) = (group.builder(), BLOCK_LANES);
        let parts = self.quantization.per_dword() / 4;
        let out = self.bytes.at_bytes(group * k.int(self.group_bytes()));
        let dwords = chunk.at_bytes(k.int(place.dwords_at_bytes));
        for dword in 0..place.inputs.div_ceil(self.quantization.per_dword()) {
            let packed = dwords.load_as(Scalar::I32, k.int(dword * lanes), lanes);
            for part in 0..parts {
                let unsigned = if parts == 2 { nibbles(packed, part) } else { packed };
                let integers = if self.quantization.has_minimum {
                    unsigned
                } else {
                    let bytes = unsigned.as_lanes_of(Scalar::I8);
                    // As a signed byte, which −128 and 128 are alike.
                    let bias = i64::from(self.quantization.bias() as u8 as i8);
                    (bytes - k.int_vector(Scalar::I8, bias, bytes.ty.lanes)).as_lanes_of(Scalar::I32)
                };
                out.store(k.int((dword * parts + part) * lanes), integers);
            }
        }
        let widen = |from: u64, to: Buffer<'k>| {
            let scalings = chunk.at_bytes(k.int(from)).seen_as(self.quantization.scale);
            to.store(group * k.int(lanes), scalings.load(k.int(0), lanes));
        };
        widen(place.scales_at_bytes, self.scales);
        if let (Some(from), Some(to)) = (place.minima_at_bytes, self.minima) {
            widen(from, to);
        }
    }

    /// Sums of all 16 rows and both panels, exact, in the totals of place `of_round`.
    fn multiply_group(
        &self,
        kernel: &Kernel<'k, '_>,
        rows: &Rows<'k>,
        first_group: Val<'k>,
        (group, of_round): (Val<'k>, Val<'k>),
    ) {
        let k = kernel.k;
        let Some(instructions) = kernel.instructions.matrix else { return };
        let name = if self.quantization.has_minimum {
            instructions.unsigned_bytes
        } else {
            instructions.signed_bytes
        };
        let row_bytes = self.quantization.group.min(WHOLE.row_bytes);
        let steps = self.quantization.group / row_bytes;
        let rows_shape = MatrixShape { rows: WHOLE.rows, row_bytes };
        let weights_shape = MatrixShape { rows: row_bytes / 4, row_bytes: WHOLE.row_bytes };
        let of_rows = QuantizedBuffer { row: rows.first, extents: self.extents };
        for (plane, inputs) in (0_u64..).zip(of_rows.planes(first_group + group)) {
            let x: Vec<Val<'k>> = (0..steps)
                .map(|step| inputs.at_bytes(k.int(step * row_bytes)))
                .map(|inputs| inputs.load_matrix(rows_shape, k.int(rows.stride_bytes)))
                .collect();
            for panel in 0..PANELS {
                let weights = self.bytes.at_bytes(self.place_of(panel, group) * k.int(self.group_bytes()));
                let mut totals = k.zero_matrix(WHOLE);
                for (step, x) in (0..steps).zip(&x) {
                    let weights = weights.at_bytes(k.int(step * row_bytes * BLOCK_LANES));
                    let weights = weights.load_matrix(weights_shape, k.int(WHOLE.row_bytes));
                    totals = totals.add_matrix_product(name, (*x, rows_shape), (weights, weights_shape));
                }
                let place = self.totals_of(of_round, panel, plane);
                place.store_matrix(WHOLE, k.int(WHOLE.row_bytes), totals);
            }
        }
    }

    /// `sums[row][panel]` and the totals of a group, scaled, of the rows from `first_row` on.
    fn scale_group(
        &self,
        rows: &Rows<'k>,
        first_row: Val<'k>,
        first_group: Val<'k>,
        (group, of_round): (Val<'k>, Val<'k>),
        sums: &[Val<'k>],
    ) -> Vec<Val<'k>> {
        let k = group.builder();
        let number = first_group + group;
        let of_panel = |scalings: Buffer<'k>, panel: u64| {
            scalings.load(self.place_of(panel, group) * k.int(BLOCK_LANES), BLOCK_LANES)
        };
        let of_panels = |scalings: Buffer<'k>| (0..PANELS).map(|panel| of_panel(scalings, panel)).collect();
        let scales: Vec<Val<'k>> = of_panels(self.scales);
        let minima: Option<Vec<Val<'k>>> = self.minima.map(of_panels);
        let mut results: Vec<Val<'k>> = Vec::with_capacity(sums.len());
        for (row, sums) in (0_u64..).zip(sums.chunks(PANELS as usize)) {
            let row = first_row + k.int(row);
            let x = rows.first.at_bytes(row * k.int(rows.stride_bytes));
            let x = QuantizedBuffer { row: x, extents: self.extents };
            let scale = x.scales().load(number, 1);
            for (panel, sum) in (0_u64..).zip(sums) {
                let place = row * k.int(BLOCK_LANES);
                let of_plane = |plane| self.totals_of(of_round, panel, plane).load(place, BLOCK_LANES);
                let totals: Vec<Val<'k>> = (0..self.extents.planes).map(of_plane).collect();
                let scaling = scales[panel as usize] * scale.splat(BLOCK_LANES);
                let sum = join_planes(&totals).to_float().multiply_add(scaling, *sum);
                results.push(minima.as_ref().map_or(sum, |minima| {
                    let negated = x.negated_sums().load(number, 1).to_float() * scale;
                    sum - negated.splat(BLOCK_LANES) * minima[panel as usize]
                }));
            }
            let together = (ROWS_AT_A_TIME * PANELS) as usize;
            if results.len().is_multiple_of(together) {
                k.compute_first(&results[results.len() - together..]);
            }
        }
        results
    }
}

impl<'k> MatrixProduct<'k> {
    /// Adds the products of one block of inputs and one pair of panels.
    pub(super) fn add_integers(
        &self,
        kernel: &Kernel<'k, '_>,
        integers: &Integers<'k>,
        panels: Buffer<'k>,
        place: Place<'k>,
        rows: &BlockRows<'k, impl Fn(Val<'k>) -> Buffer<'k>>,
    ) {
        let k = kernel.k;
        let panel_at = |pair: Val<'k>, half: u64, inputs: Val<'k>| {
            let inside = inputs * k.int(integers.block_bytes());
            let panel = self.pairs.panel(pair, k.int(half));
            panels.at_bytes(panel * k.int(self.geometry.panel_bytes()) + inside)
        };
        for half in 0..PANELS {
            let from = panel_at(place.pair, half, place.inputs);
            integers.widen(half, from, place.inputs, self.geometry.columns);
        }
        let (next_inputs, next_pair) = place.next();
        let next = [0, 1].map(|half| panel_at(next_pair, half, next_inputs));
        k.repeat(k.int(0), rows.blocks, 1, |block| {
            let rows = Rows { first: (rows.first)(block), stride_bytes: rows.stride_bytes, block, next };
            self.add_block(kernel, integers, place, &rows);
        });
    }

    /// Adds the products of one block of rows, some groups at a time.
    fn add_block(&self, kernel: &Kernel<'k, '_>, integers: &Integers<'k>, place: Place<'k>, rows: &Rows<'k>) {
        let k = kernel.k;
        let block_groups = k.int(integers.block_groups());
        let first_group = place.inputs * block_groups;
        let all_groups = k.int(self.geometry.columns.div_ceil(integers.quantization.group.into()));
        let groups = (all_groups - first_group).minimum(block_groups);
        let round = integers.round_groups();
        let add_round = |first: Val<'k>, count: u64| {
            k.repeat(k.int(0), k.int(count), 1, |of_round| {
                let group = first + of_round;
                integers.multiply_group(kernel, rows, first_group, (group, of_round));
                let line = (rows.block * groups + group) * k.int(LINE_BYTES);
                for next in rows.next {
                    next.at_bytes(line.minimum(k.int(integers.block_bytes()))).prefetch();
                }
            });
            k.repeat(k.int(0), k.int(BLOCK_ROWS), SCALED_ROWS as i64, |first_row| {
                self.scale_round(integers, place, rows, first_row, (first_group, first, count));
            });
        };
        let whole = k.whole_chunks(groups, round as u32);
        k.repeat(k.int(0), whole, round as i64, |first| add_round(first, round));
        if round > 1 {
            k.repeat(whole, groups, 1, |first| add_round(first, 1));
        }
    }

    /// Adds the totals of a round, `count` groups from `first` of the block on, to the sums of some rows.
    fn scale_round(
        &self,
        integers: &Integers<'k>,
        place: Place<'k>,
        rows: &Rows<'k>,
        first_row: Val<'k>,
        (first_group, first, count): (Val<'k>, Val<'k>, u64),
    ) {
        let k = first.builder();
        let sums = [0, 1].map(|half| self.sums_of(place, k.int(half), rows.block));
        let starts = sums.map(|sums| self.start_of(first_group + first, sums));
        let row_place = |row: u64| (first_row + k.int(row)) * k.int(BLOCK_LANES);
        let place_of = |index: usize| (row_place(index as u64 / PANELS), index % PANELS as usize);
        let count_of_sums = (SCALED_ROWS * PANELS) as usize;
        let starts: Vec<Val<'k>> = (0..count_of_sums)
            .map(place_of)
            .map(|(place, panel)| starts[panel].load(place, BLOCK_LANES))
            .collect();
        let finished = k.for_each(k.int(0), k.int(count), 1, &starts, |of_round, sums| {
            integers.scale_group(rows, first_row, first_group, (first + of_round, of_round), sums)
        });
        for (index, sum) in finished.into_iter().enumerate() {
            let (place, panel) = place_of(index);
            sums[panel].store(place, sum);
        }
    }
}

/// A block of 16 rows of integers.
struct Rows<'k> {
    /// Its first row.
    first: Buffer<'k>,
    /// Bytes from one row to the next.
    stride_bytes: u64,
    /// Number of the block.
    block: Val<'k>,
    /// The two panels that come next.
    next: [Buffer<'k>; 2],
}

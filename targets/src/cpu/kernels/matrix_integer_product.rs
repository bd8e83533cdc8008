//! Products of integers on the matrix unit: exact sums of each group, scaled one group at a time.
//!
//! ```text
//! for panel:
//!   widen the block's weights to signed bytes, [group, dword, lane], and its scales to f32   once
//!   for block of 16 rows:  sums[row] in 16 registers
//!     for group:
//!       totals = rows · weights of the group             1 product, exact, in 32 bits; stored
//!       for row:  sums[row] += totals[row] · (scale of w[lanes] · scale of a[row])
//! ```
//!
//! These are the sums of `integer_product`, with the same additions in the same order: a row gets the same
//! bits there and here.
//!
//! Is that worth it against widening to bf16, which needs no work between two groups? A group of 32 fills
//! half a register's rows, so that a product of 16 cycles does 8192 multiplications, as many as in bf16.
//! Beside it stand for 16 rows 16 conversions, 16 multiplications and 16 multiply-adds on two ports: 24
//! cycles, 16 stores of totals, and 56 loads (16 half lines of rows, 8 lines of weights, 16 totals, 16
//! scales) at two a cycle: 28 cycles. So the bound is 16 / 28 = 57 % of the rate of bf16, 114 % in groups
//! of 64; against what products in bf16 were seen to reach with widening, 41 to 49 %. VNNI has a quarter of
//! that rate at best. Half the activations' bytes come with it, and the same results as in decode.
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

/// Inputs of a block: their weights, 16 KB, scales, 2 KB, and 16 rows stay in the first-level cache.
const BLOCK_INPUTS: u64 = 1024;

/// Rows whose totals are loaded together: beside 16 sums, registers for more are not there.
const ROWS_AT_A_TIME: usize = 4;

/// The widened weights of one block of inputs of one panel.
pub(super) struct Integers<'k> {
    quantization: Quantization,
    chunks: ChunkGeometry,
    /// `[group, dword, lane]`, four bytes each.
    bytes: Buffer<'k>,
    /// `[group, lane]`.
    scales: Buffer<'k>,
    /// `[group, lane]`, where there are any.
    minima: Option<Buffer<'k>>,
    /// 16 by 16 sums of a group, for each plane of activations.
    totals: Buffer<'k>,
    /// Rows of activations.
    extents: QuantizedRow,
}

impl<'k> Integers<'k> {
    /// Makes arrays on the stack.
    pub(super) fn new(kernel: &Kernel<'k, '_>, quantization: Quantization, extents: QuantizedRow) -> Self {
        let k = kernel.k;
        let groups = BLOCK_INPUTS / u64::from(quantization.group);
        let lanes = u64::from(BLOCK_LANES);
        Self {
            quantization,
            chunks: ChunkGeometry { lanes, quantization },
            bytes: k.stack_array(Element::I32, BLOCK_INPUTS / 4 * lanes),
            scales: k.stack_array(Element::F32, groups * lanes),
            minima: quantization.has_minimum.then(|| k.stack_array(Element::F32, groups * lanes)),
            totals: k.stack_array(Element::I32, extents.planes * BLOCK_BYTES / 4),
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

    /// Widened bytes of a group.
    fn group_bytes(&self) -> u64 {
        u64::from(self.quantization.group) * u64::from(BLOCK_LANES)
    }

    /// The sums of one plane of activations.
    fn totals_of(&self, plane: u64) -> Buffer<'k> {
        self.totals.at_bytes(self.totals.pointer.builder().int(plane * BLOCK_BYTES))
    }

    /// Widens block number `inputs` of `panel`, which has `columns` inputs.
    fn widen(&self, panel: Buffer<'k>, inputs: Val<'k>, columns: u64) {
        let k = inputs.builder();
        let widen_chunk = |chunk: Val<'k>, inputs: u64| {
            let start = panel.at_bytes(chunk * k.int(self.chunks.bytes(self.chunks.inputs())));
            for (index, place) in (0_u64..).zip(self.chunks.groups(inputs)) {
                self.widen_group(start, &place, chunk * k.int(CHUNK_GROUPS) + k.int(index));
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

    /// Sums of a group of one plane of all 16 rows, exact, in `totals`.
    fn multiply_group(
        &self,
        kernel: &Kernel<'k, '_>,
        rows: Buffer<'k>,
        stride: Val<'k>,
        group: Val<'k>,
        totals_of_plane: Buffer<'k>,
    ) {
        let k = kernel.k;
        let Some(instructions) = kernel.instructions.matrix else { return };
        let name = if self.quantization.has_minimum {
            instructions.unsigned_bytes
        } else {
            instructions.signed_bytes
        };
        let row_bytes = self.quantization.group.min(WHOLE.row_bytes);
        let rows_shape = MatrixShape { rows: WHOLE.rows, row_bytes };
        let weights_shape = MatrixShape { rows: row_bytes / 4, row_bytes: WHOLE.row_bytes };
        let weights = self.bytes.at_bytes(group * k.int(self.group_bytes()));
        let mut totals = k.zero_matrix(WHOLE);
        for step in 0..self.quantization.group / row_bytes {
            let x = rows.at_bytes(k.int(step * row_bytes)).load_matrix(rows_shape, stride);
            let weights = weights.at_bytes(k.int(step * row_bytes * BLOCK_LANES));
            let weights = weights.load_matrix(weights_shape, k.int(WHOLE.row_bytes));
            totals = totals.add_matrix_product(name, (x, rows_shape), (weights, weights_shape));
        }
        totals_of_plane.store_matrix(WHOLE, k.int(WHOLE.row_bytes), totals);
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
        let panel_at = |pair: Val<'k>, half: Val<'k>, inputs: Val<'k>| {
            let inside = inputs * k.int(integers.block_bytes());
            panels.at_bytes(self.pairs.panel(pair, half) * k.int(self.geometry.panel_bytes()) + inside)
        };
        let (next_inputs, next_pair) = place.next();
        k.repeat(k.int(0), self.pairs.panels_in(place.pair), 1, |half| {
            integers.widen(panel_at(place.pair, half, place.inputs), place.inputs, self.geometry.columns);
            let next = panel_at(next_pair, half, next_inputs);
            k.repeat(k.int(0), rows.blocks, 1, |block| {
                let rows = Rows { first: (rows.first)(block), stride_bytes: rows.stride_bytes, block, next };
                self.add_block(kernel, integers, place, half, &rows);
            });
        });
    }

    /// Adds the products of one block of rows and one panel.
    fn add_block(
        &self,
        kernel: &Kernel<'k, '_>,
        integers: &Integers<'k>,
        place: Place<'k>,
        half: Val<'k>,
        rows: &Rows<'k>,
    ) {
        let k = kernel.k;
        let group_inputs = u64::from(integers.quantization.group);
        let block_groups = k.int(BLOCK_INPUTS / group_inputs);
        let first_group = place.inputs * block_groups;
        let all_groups = k.int(self.geometry.columns.div_ceil(group_inputs));
        let groups = (all_groups - first_group).minimum(block_groups);
        let sums = self.sums_of(place, half, rows.block);
        let start = self.start_of(place, sums);
        let row_place = |row: u64| k.int(row * u64::from(BLOCK_LANES));
        let starts: Vec<Val<'k>> =
            (0..BLOCK_ROWS).map(|row| start.load(row_place(row), BLOCK_LANES)).collect();
        let asked = rows.block * groups;
        let finished = k.for_each(k.int(0), groups, 1, &starts, |group, sums| {
            let number = first_group + group;
            let first = QuantizedBuffer { row: rows.first, extents: integers.extents };
            for (plane, inputs) in (0_u64..).zip(first.planes(number)) {
                let totals = integers.totals_of(plane);
                integers.multiply_group(kernel, inputs, k.int(rows.stride_bytes), group, totals);
            }
            let line = ((asked + group) * k.int(LINE_BYTES)).minimum(k.int(integers.block_bytes()));
            rows.next.at_bytes(line).prefetch();
            let of_group = |scalings: Buffer<'k>| scalings.load(group * k.int(BLOCK_LANES), BLOCK_LANES);
            let scales = of_group(integers.scales);
            let minima = integers.minima.map(of_group);
            let mut results: Vec<Val<'k>> = Vec::with_capacity(sums.len());
            for (row, sum) in (0_u64..).zip(sums) {
                let x = QuantizedBuffer { row: rows.first.at_bytes(k.int(row * rows.stride_bytes)), ..first };
                let scale = x.scales().load(number, 1);
                let of_plane = |plane| integers.totals_of(plane).load(row_place(row), BLOCK_LANES);
                let totals: Vec<Val<'k>> = (0..integers.extents.planes).map(of_plane).collect();
                let sum =
                    join_planes(&totals).to_float().multiply_add(scales * scale.splat(BLOCK_LANES), *sum);
                results.push(minima.map_or(sum, |minima| {
                    let negated = x.negated_sums().load(number, 1).to_float() * scale;
                    sum - negated.splat(BLOCK_LANES) * minima
                }));
                if results.len().is_multiple_of(ROWS_AT_A_TIME) {
                    k.compute_first(&results[results.len() - ROWS_AT_A_TIME..]);
                }
            }
            results
        });
        for (row, sum) in (0..BLOCK_ROWS).zip(finished) {
            sums.store(row_place(row), sum);
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
    /// Weights that come next.
    next: Buffer<'k>,
}

//! What up to 16 queries of one kv head make of one block of the cache on the matrix unit: the queries are
//! rows of a register, and the cache's pairs lie as the unit wants its right operand.
//!
//! ```text
//! for 32 positions:                       scores[rows, 32] = queries · keys             stored
//! for row:                                scores · scale · log₂ e, hidden ones out; weights; two totals
//! for 64 columns:  for 32 positions:      sums[rows, columns] += weights · values       in 4 registers
//! ```
//!
//! For 16 queries with heads of 64, a block of 256 positions is 64 products of 16 cycles. `vdpbf16ps` would
//! take 16 384 cycles for the same. Weights take about 16 instructions for 16 of them, 4096 in all, so that
//! the vector units and no longer the products are what bounds it: 2 to 3 thousand cycles. Keys and values,
//! 64 KB, come from the second level in less.
//!
//! Registers: of heads of up to 128, 4 of queries, 2 of scores and 2 of keys; then 4 of sums, 1 of weights and
//! 1 of values. A row gets the same bits whatever rows stand beside it, so that a token alone and a prompt do.

use std::f32::consts::LOG2_E;

use qwen2c_request::{CACHE_BLOCK_POSITIONS, Element, KernelRequest};

use super::Kernel;
use super::attention_block::{BlockQuery, block_weights, visible};
use super::cache::{key_stride, keys_at, lies_in_pairs, values_at};
use super::matrix_product::{BLOCK_BYTES, BLOCK_LANES, BLOCK_ROWS, WHOLE};
use crate::builder::{Buffer, Compare, MatrixShape, Reduction, Scalar, Val};
use crate::cpu::instructions::Instructions;

/// Positions of a step: pairs in 16 rows of a register of values, two registers of scores.
const STEP_POSITIONS: u64 = 32;

/// Elements of a head in a register of queries.
const STEP_ELEMENTS: u64 = 32;

/// Elements of the widest head: its queries are 4 registers, beside which scores and keys find theirs. With 8 of
/// queries LLVM sends registers through memory, in code that the tests' unit refuses.
const MOST_ELEMENTS: u64 = 128;

/// Registers of sums that stay while all positions go by.
const SUM_REGISTERS: u64 = 4;

/// Elements from one row of scores to the next: a line more than a block, so that rows do not meet in the
/// cache.
const ROW_SCORES: u64 = CACHE_BLOCK_POSITIONS + 16;

/// Whether the matrix unit serves an attention: queries, weights and the cache are bf16, and heads fill
/// registers, and not too many.
pub(super) fn has_matrix_attention(
    instructions: Instructions,
    request: &KernelRequest,
    rounded: bool,
) -> bool {
    let cache = &request.caches[0];
    instructions.matrix.is_some()
        && rounded
        && lies_in_pairs(instructions, cache)
        && cache.head_dim.is_multiple_of(STEP_ELEMENTS)
        && cache.head_dim <= MOST_ELEMENTS
}

/// What a block contributes.
#[derive(Clone, Copy)]
pub(super) struct MatrixBlock<'k> {
    /// Queries: 1 to 16.
    rows: u64,
    /// `f32[rows, 272]`; as bf16, in the same memory, the weights.
    scores: Buffer<'k>,
    /// `bf16[16, head_dim, 2]`: the values of a step that is not whole, and zeros.
    last_values: Buffer<'k>,
    /// `f32[16, 16]`, what sums start from. Registers that are cleared are taken for one by the compiler, which
    /// then copies it through memory.
    zeros: Buffer<'k>,
}

/// Keys and values of a block, and how far they are looked at.
pub(super) struct CacheBlock<'k> {
    pub(super) keys: Buffer<'k>,
    pub(super) values: Buffer<'k>,
    /// Positions that any of the queries sees: 1 to 256.
    pub(super) end: Val<'k>,
}

impl<'k> MatrixBlock<'k> {
    /// For `rows` queries; makes arrays on the stack, and so must stand at the start of a function.
    pub(super) fn new(kernel: &Kernel<'k, '_>, rows: u64) -> Self {
        let (k, head_dim) = (kernel.k, kernel.cache_type(0).head_dim);
        let zeros = k.stack_array(Element::F32, BLOCK_BYTES / 4);
        for row in 0..BLOCK_ROWS {
            zeros.store(k.int(row * u64::from(BLOCK_LANES)), k.float(0.0, BLOCK_LANES));
        }
        Self {
            zeros,
            rows,
            scores: k.stack_array(Element::F32, rows * ROW_SCORES),
            last_values: k.stack_array(Element::Bf16, STEP_POSITIONS * head_dim),
        }
    }

    /// Sums of weighted values of `queries`, `bf16[rows, head_dim]`, into `sums`, `f32[rows, head_dim]`; the
    /// largest score and the sum of weights of each row go to `use_totals`. `visible` says how many positions of
    /// the block a row sees.
    pub(super) fn attend(
        &self,
        kernel: &Kernel<'k, '_>,
        (queries, sums): (Buffer<'k>, Buffer<'k>),
        block: &CacheBlock<'k>,
        scale: f32,
        visible: impl Fn(Val<'k>) -> Val<'k>,
        use_totals: impl FnOnce(Val<'k>, Val<'k>, Val<'k>),
    ) {
        let k = kernel.k;
        // Whole steps: what lies behind the end is hidden from all rows, and gets a weight of zero.
        let steps = block.end.divide_up(STEP_POSITIONS as i64);
        let end = steps * k.int(STEP_POSITIONS);
        self.multiply_keys(kernel, queries, block.keys, end);
        k.repeat(k.int(0), k.int(self.rows), 1, |row| {
            let scores = self.scores.at(row * k.int(ROW_SCORES));
            let query = BlockQuery {
                query: queries,
                scores,
                weights: scores.seen_as(Element::Bf16),
                visible: visible(row),
            };
            let largest = hide_and_scale(kernel, &query, end, scale);
            use_totals(row, largest, block_weights(kernel, &query, end, largest));
        });
        self.multiply_values(kernel, block, steps, sums);
    }

    /// A register of `rows` rows of the left operand.
    const fn left_shape(&self) -> MatrixShape {
        MatrixShape { rows: self.rows as u32, row_bytes: WHOLE.row_bytes }
    }

    /// Scores of positions 0 to `end`, as they come from the unit.
    fn multiply_keys(&self, kernel: &Kernel<'k, '_>, queries: Buffer<'k>, keys: Buffer<'k>, end: Val<'k>) {
        let k = kernel.k;
        let Some(instructions) = kernel.instructions.matrix else { return };
        let (shape, head_dim) = (self.left_shape(), kernel.cache_type(0).head_dim);
        let load_query = |element: u64| queries.at(k.int(element)).load_matrix(shape, k.int(head_dim * 2));
        let elements = || (0..head_dim).step_by(STEP_ELEMENTS as usize);
        let queries: Vec<Val<'k>> = elements().map(load_query).collect();
        k.repeat(k.int(0), end, STEP_POSITIONS as i64, |position| {
            for first in [0, BLOCK_LANES] {
                let position = position + k.int(first);
                let keys = keys_at(kernel, keys, position);
                let start = k.zero_matrix(shape);
                let scores = elements().zip(&queries).fold(start, |scores, (element, query)| {
                    let keys = keys.at(k.int(element) * key_stride(kernel));
                    let keys = keys.load_matrix(WHOLE, key_stride(kernel) * k.int(4));
                    scores.add_matrix_product(instructions.bf16, (*query, shape), (keys, WHOLE))
                });
                self.scores.at(position).store_matrix(shape, k.int(ROW_SCORES * 4), scores);
            }
        });
    }

    /// `sums[rows, head_dim]` of weighted values of some steps.
    fn multiply_values(
        &self,
        kernel: &Kernel<'k, '_>,
        block: &CacheBlock<'k>,
        steps: Val<'k>,
        sums: Buffer<'k>,
    ) {
        let k = kernel.k;
        let Some(instructions) = kernel.instructions.matrix else { return };
        let (shape, head_dim) = (self.left_shape(), kernel.cache_type(0).head_dim);
        let whole = block.end / k.int(STEP_POSITIONS);
        self.copy_last_values(kernel, block, whole);
        let columns: Vec<u64> = (0..head_dim).step_by(BLOCK_LANES as usize).collect();
        for columns in columns.chunks(SUM_REGISTERS as usize) {
            let add_step = |step: Val<'k>, values: Buffer<'k>, sums: &[Val<'k>]| -> Vec<Val<'k>> {
                let weights = self.scores.seen_as(Element::Bf16).at(step * k.int(STEP_POSITIONS));
                let weights = weights.load_matrix(shape, k.int(ROW_SCORES * 4));
                let sums = columns.iter().zip(sums).map(|(column, sum)| {
                    let values = values.at(k.int(column * 2)).load_matrix(WHOLE, k.int(head_dim * 4));
                    sum.add_matrix_product(instructions.bf16, (weights, shape), (values, WHOLE))
                });
                sums.collect()
            };
            let zeros: Vec<Val<'k>> =
                columns.iter().map(|_| self.zeros.load_matrix(shape, k.int(WHOLE.row_bytes))).collect();
            let found = k.for_each(k.int(0), whole, 1, &zeros, |step, sums| {
                add_step(step, values_at(kernel, block.values, step * k.int(STEP_POSITIONS)), sums)
            });
            let found =
                k.for_each(whole, steps, 1, &found, |step, sums| add_step(step, self.last_values, sums));
            for (column, sum) in columns.iter().zip(found) {
                sums.at(k.int(*column)).store_matrix(shape, k.int(head_dim * 4), sum);
            }
        }
    }

    /// Copies the values of step `step` up to the block's end, and zeros behind it: what lies there was left by
    /// an earlier text, and may not even be a number.
    fn copy_last_values(&self, kernel: &Kernel<'k, '_>, block: &CacheBlock<'k>, step: Val<'k>) {
        let (k, lanes, head_dim) = (kernel.k, kernel.lanes, kernel.cache_type(0).head_dim);
        let first = step * k.int(STEP_POSITIONS);
        let left = block.end - first;
        let columns = || (0..head_dim).step_by(lanes as usize).map(|column| k.int(column));
        let to = |pair: Val<'k>| self.last_values.at(pair * k.int(2 * head_dim)).seen_as(Element::I32);
        k.when(left.compare(Compare::Greater, k.int(0)), || {
            let pairs = left.divide_up(2);
            k.repeat(k.int(0), pairs, 1, |pair| {
                let from = values_at(kernel, block.values, first + pair * k.int(2));
                let has_both = (pair * k.int(2) + k.int(1)).compare(Compare::Less, left);
                let [both, one] = [-1, 0xffff].map(|mask| k.int_of(Scalar::I32, mask));
                let mask = has_both.select(both, one).splat(lanes);
                for column in columns() {
                    to(pair).store(column, from.load_as(Scalar::I32, column, lanes).and(mask));
                }
            });
            k.repeat(pairs, k.int(STEP_POSITIONS / 2), 1, |pair| {
                for column in columns() {
                    to(pair).store(column, k.int_vector(Scalar::I32, 0, lanes));
                }
            });
        });
    }
}

/// Brings a row's scores up to position `end` into units of log₂, hidden ones to the smallest number, and
/// returns the largest.
fn hide_and_scale<'k>(kernel: &Kernel<'k, '_>, query: &BlockQuery<'k>, end: Val<'k>, scale: f32) -> Val<'k> {
    let (k, lanes) = (kernel.k, kernel.lanes);
    let smallest = k.float(f32::MIN, lanes);
    let largest = k.for_each(k.int(0), end, i64::from(lanes), &[smallest], |place, largest| {
        let score = query.scores.load(place, lanes) * k.float(scale * LOG2_E, lanes);
        let score = visible(kernel, place, query.visible).select(score, smallest);
        query.scores.store(place, score);
        vec![largest[0].maximum(score)]
    });
    largest[0].reduce(Reduction::Maximum)
}

/// Most queries side by side.
pub(super) const MOST_QUERIES: u64 = BLOCK_ROWS;

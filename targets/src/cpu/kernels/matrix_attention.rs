//! `attention` on the matrix unit: a tile is 16 queries of one kv head, on a prompt those of several rows.
//!
//! ```text
//! copy the queries side by side
//! for block of 256 positions:
//!   m[rows], s[rows], o[rows, head_dim] of the block                 `matrix_attention_block`
//!   M' = max(M, m); old = 2^(M − M'); new = 2^(m − M')               lanes are rows
//!   sum = sum · old + s · new; out likewise with o; M = M'
//! out / sum
//! ```
//!
//! The blocks and the order are those of `attention` on the vector units. Where there are fewer than 16
//! queries left, the last one fills the register, and is stored once.

use qwen2c_request::{CACHE_BLOCK_POSITIONS, Element};

use super::Kernel;
use super::attention::Queries;
use super::cache::HeadCache;
use super::functions::exp2_of_negative;
use super::matrix_attention_block::{CacheBlock, MOST_QUERIES, MatrixBlock};
use super::matrix_product::BLOCK_LANES;
use crate::builder::{Buffer, Compare, Scalar, Val};

/// Memory of a tile, on the stack.
struct Scratch<'k> {
    block: MatrixBlock<'k>,
    /// `bf16[16, head_dim]`.
    queries: Buffer<'k>,
    /// `f32[16, head_dim]`, of a block.
    sums: Buffer<'k>,
    /// `f32[16, head_dim]`, so far.
    out: Buffer<'k>,
    /// `f32[16]`: the largest score of a block, the sum of its weights, and the factors they lead to.
    totals: [Buffer<'k>; 2],
    factors: [Buffer<'k>; 2],
}

/// Queries from number `first` on to `end`, at most 16: together where all are of one slot, else one by one.
pub(super) fn body<'k>(
    kernel: &Kernel<'k, '_>,
    queries: Queries<'k>,
    (first, end): (Val<'k>, Val<'k>),
    scale: f32,
) {
    let (k, head_dim) = (kernel.k, kernel.cache_type(0).head_dim);
    let matrix = || k.stack_array(Element::F32, MOST_QUERIES * head_dim);
    let row = |_| k.stack_array(Element::F32, MOST_QUERIES);
    let scratch = Scratch {
        block: MatrixBlock::new(kernel, MOST_QUERIES),
        queries: k.stack_array(Element::Bf16, MOST_QUERIES * head_dim),
        sums: matrix(),
        out: matrix(),
        totals: [0, 1].map(row),
        factors: [0, 1].map(row),
    };
    let slot_of = |row: Val<'k>| kernel.input(2).load_index(row);
    let (first_row, last_row) = (queries.row(first), queries.row(end - k.int(1)));
    let slot = slot_of(first_row);
    let others = k.for_each(first_row, last_row + k.int(1), 1, &[k.int(0)], |row, others| {
        let is_same = slot_of(row).compare(Compare::Equal, slot);
        vec![others[0] + is_same.select(k.int(0), k.int(1))]
    });
    // The queries are attended to in one piece of code, which is long.
    let is_together = others[0].compare(Compare::Less, k.int(1));
    let of_round = is_together.select(end - first, k.int(1));
    k.repeat_by(first, end, of_round, |first| {
        let range = (first, first + of_round);
        let slot = slot_of(queries.row(first));
        attend(kernel, queries, &scratch, (slot, range), scale);
    });
}

/// The results of the queries in `range`, which are of one slot.
fn attend<'k>(
    kernel: &Kernel<'k, '_>,
    queries: Queries<'k>,
    scratch: &Scratch<'k>,
    (slot, (first, end)): (Val<'k>, (Val<'k>, Val<'k>)),
    scale: f32,
) {
    let (k, lanes, head_dim) = (kernel.k, kernel.lanes, kernel.cache_type(0).head_dim);
    let cache = [0, 1].map(|index| HeadCache::new(kernel, index, slot, queries.kv_head));
    let number = |row: Val<'k>| (first + row).minimum(end - k.int(1));
    let (all, row_of) = (k.int(MOST_QUERIES), |row: Val<'k>| row * k.int(head_dim));
    let columns = || (0..head_dim).step_by(lanes as usize).map(|column| k.int(column));
    let pairs = || (0..head_dim / 2).step_by(lanes as usize).map(|pair| k.int(pair));
    let count = k.for_each(k.int(0), all, 1, &[k.int(0)], |row, most| {
        let query = kernel.input(0).at(queries.place(kernel, number(row)));
        for pair in pairs() {
            let copy = scratch.queries.at(row_of(row)).seen_as(Element::I32);
            copy.store(pair, query.load_as(Scalar::I32, pair, lanes));
        }
        for column in columns() {
            scratch.out.at(row_of(row)).store(column, k.float(0.0, lanes));
        }
        vec![most[0].maximum(queries.count(kernel, number(row)))]
    })[0];
    let start = [f32::MIN, 0.0].map(|start| k.float(start, BLOCK_LANES));
    let blocks = count.divide_up(CACHE_BLOCK_POSITIONS as i64);
    let finished = k.for_each(k.int(0), blocks, 1, &start, |block, before| {
        let in_block = |count: Val<'k>| {
            let left = count - block * k.int(CACHE_BLOCK_POSITIONS);
            left.minimum(k.int(CACHE_BLOCK_POSITIONS)).maximum(k.int(0))
        };
        let [keys, values] = [0, 1].map(|index| cache[index].block(kernel, block));
        let cache_block = CacheBlock { keys, values, end: in_block(count) };
        let visible = |row: Val<'k>| in_block(queries.count(kernel, number(row)));
        let buffers = (scratch.queries, scratch.sums);
        scratch.block.attend(kernel, buffers, &cache_block, scale, visible, |row, largest, sum| {
            scratch.totals[0].store(row, largest);
            scratch.totals[1].store(row, sum);
        });
        let [block_largest, block_sum] = scratch.totals.map(|total| total.load(k.int(0), BLOCK_LANES));
        let largest = before[0].maximum(block_largest);
        let [old, new] = [before[0], block_largest].map(|before| exp2_of_negative(k, before - largest));
        scratch.factors[0].store(k.int(0), old);
        scratch.factors[1].store(k.int(0), new);
        k.repeat(k.int(0), all, 1, |row| {
            let [old, new] = scratch.factors.map(|factor| factor.load(row, 1).splat(lanes));
            let (out, sums) = (scratch.out.at(row_of(row)), scratch.sums.at(row_of(row)));
            for column in columns() {
                out.store(column, out.load(column, lanes) * old + sums.load(column, lanes) * new);
            }
        });
        vec![largest, before[1] * old + block_sum * new]
    });
    scratch.factors[0].store(k.int(0), k.float(1.0, BLOCK_LANES) / finished[1]);
    k.repeat(k.int(0), end - first, 1, |row| {
        let inverse = scratch.factors[0].load(row, 1).splat(lanes);
        let result = kernel.output(0).at(queries.place(kernel, first + row));
        let out = scratch.out.at(row_of(row));
        for column in columns() {
            result.store(column, out.load(column, lanes) * inverse);
        }
    });
}

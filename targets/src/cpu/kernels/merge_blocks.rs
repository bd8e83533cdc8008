//! `merge_blocks`: what the blocks of an attention are together. A tile is some heads of a row.
//!
//! ```text
//! for block:   M' = max(M, m);  old, new = M − M', m − M';  M = M'
//! old, new = 2^old, 2^new                        lanes are blocks: most of the time would go here one by one
//! for block:   total = total · old + s · new
//! for columns: for block:  out = out · old + sum · new
//! out / total
//! ```
//!
//! The order is that of `attention`, and so are the bits.

use qwen2c_request::{CACHE_BLOCK_POSITIONS, Element};

use super::Kernel;
use super::functions::exp2_of_negative;
use crate::builder::{Buffer, Val};

/// Heads of a tile: some hundred nanoseconds of work.
const TILE_HEADS: i64 = 4;

fn tiles_of_row<'k>(kernel: &Kernel<'k, '_>, heads: u64) -> Val<'k> {
    kernel.k.int(heads).divide_up(TILE_HEADS)
}

/// Rows times tiles of their heads.
pub(super) fn tiles<'k>(kernel: &Kernel<'k, '_>, heads: u64) -> Val<'k> {
    kernel.rows * tiles_of_row(kernel, heads)
}

/// Some heads of a row.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, tile: Val<'k>, heads: u64) {
    let k = kernel.k;
    let tiles = tiles_of_row(kernel, heads);
    let (row, first) = (tile / tiles, tile % tiles * k.int(TILE_HEADS));
    let last = (first + k.int(TILE_HEADS)).minimum(k.int(heads));
    // Arrays on the stack are made once, before the loop.
    let blocks = blocks(kernel).next_multiple_of(kernel.lanes.into());
    let factors = [0, 1].map(|_| k.stack_array(Element::F32, blocks));
    k.repeat(first, last, 1, |head| merge_head(kernel, row, head, heads, factors));
}

/// Blocks of the cache.
fn blocks(kernel: &Kernel<'_, '_>) -> u64 {
    kernel.input_type(0).row_elements() / kernel.output_type(0).row_elements()
}

/// Merges one head; `factors`, `f32[2, blocks]`, are scratch.
fn merge_head<'k>(
    kernel: &Kernel<'k, '_>,
    row: Val<'k>,
    head: Val<'k>,
    heads: u64,
    factors: [Buffer<'k>; 2],
) {
    let k = kernel.k;
    let width = kernel.output_type(0).row_elements();
    let head_dim = width / heads;
    let blocks = blocks(kernel);
    let seen = (kernel.input(2).load_index(row) + k.int(1)).divide_up(CACHE_BLOCK_POSITIONS as i64);
    let first_block = row * k.int(blocks);
    let lanes = kernel.lanes;
    let totals = |block: Val<'k>| kernel.input(1).at((first_block + block) * k.int(2 * heads));
    k.for_each(k.int(0), seen, 1, &[k.float(f32::MIN, 1)], |block, before| {
        let of_block = totals(block).load(head, 1);
        let largest = before[0].maximum(of_block);
        factors[0].store(block, before[0] - largest);
        factors[1].store(block, of_block - largest);
        vec![largest]
    });
    // What lies behind the last block is never read.
    k.repeat(k.int(0), seen, lanes.into(), |block| {
        for factor in factors {
            factor.store(block, exp2_of_negative(k, factor.load(block, lanes)));
        }
    });
    let total = k.for_each(k.int(0), seen, 1, &[k.float(0.0, 1)], |block, total| {
        let [old, new] = factors.map(|factor| factor.load(block, 1));
        vec![total[0] * old + totals(block).load(head + k.int(heads), 1) * new]
    });
    let inverse = k.float(1.0, 1) / total[0];
    let result = kernel.output(0).at(row * k.int(width) + head * k.int(head_dim));
    k.for_each_chunk(k.int(head_dim), kernel.lanes, |column, lanes| {
        let sums = k.for_each(k.int(0), seen, 1, &[k.float(0.0, lanes)], |block, out| {
            let place = (first_block + block) * k.int(width) + head * k.int(head_dim) + column;
            let [old, new] = factors.map(|factor| factor.load(block, 1).splat(lanes));
            vec![out[0] * old + kernel.input(0).load(place, lanes) * new]
        });
        result.store(column, sums[0] * inverse.splat(lanes));
    });
}

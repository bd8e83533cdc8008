//! `attention_values`: sum of values weighted by probabilities. A tile is one query head of one row.
//!
//! ```text
//! for block:
//!   for position in block: sum += p[position] · V[position, ..]
//!   out += sum                                   where weights are rounded: of p / m, and out += m · sum
//! ```
//!
//! `m` is the largest `p` of the block: these ratios are what the fused kernel rounds, which has no others.

use qwen2c_request::{CACHE_BLOCK_POSITIONS, Element};

use super::Kernel;
use super::attention_block::{store_in_head, weighted_values};
use super::cache::HeadCache;
use crate::builder::{Buffer, Reduction, Val};
use crate::cpu::layout;

/// Rows times query heads.
pub(super) fn tiles<'k>(kernel: &Kernel<'k, '_>) -> Val<'k> {
    kernel.rows * kernel.k.int(kernel.output_type(0).row_elements() / kernel.cache_type(0).head_dim)
}

/// One query head of one row.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, tile: Val<'k>, heads: u64, rounded: bool) {
    let (k, lanes) = (kernel.k, kernel.lanes);
    let cache = kernel.cache_type(0);
    let (row, head) = (tile / k.int(heads), tile % k.int(heads));
    let kv_head = head / k.int(heads / cache.kv_heads);
    let values = HeadCache::new(kernel, 0, kernel.input(2).load_index(row), kv_head);
    let count = kernel.input(1).load_index(row) + k.int(1);
    let context = kernel.input_type(0).row_elements() / heads;
    let probabilities = kernel.input(0).at(tile * k.int(context));
    let padded = layout::padded_head_dim(lanes, cache.head_dim);
    let vectors = (padded / u64::from(lanes)) as usize;
    let zeros = vec![k.float(0.0, lanes); vectors];
    let block_size = k.int(CACHE_BLOCK_POSITIONS);
    let blocks = count.divide_up(CACHE_BLOCK_POSITIONS as i64);
    let weights = k.stack_array(if rounded { Element::Bf16 } else { Element::F32 }, CACHE_BLOCK_POSITIONS);
    let sums = k.for_each(k.int(0), blocks, 1, &zeros, |block, out| {
        let first = block * block_size;
        let valid = (count - first).minimum(block_size);
        let probabilities = probabilities.at(first);
        let unit = if rounded { largest(kernel, probabilities, valid) } else { k.float(1.0, 1) };
        store_ratios(kernel, probabilities, unit, valid, weights);
        let sums =
            weighted_values(kernel, &[weights], values.block(kernel, block), valid, (0, vectors), &zeros);
        out.iter().zip(sums).map(|(out, sum)| unit.splat(lanes).multiply_add(sum, *out)).collect()
    });
    let out = kernel.output(0).at(tile * k.int(cache.head_dim));
    for (index, sum) in (0_u64..).zip(sums) {
        store_in_head(kernel, out, cache.head_dim, index * u64::from(lanes), sum);
    }
}

/// The largest of the first `valid` probabilities, which can be divided by.
fn largest<'k>(kernel: &Kernel<'k, '_>, probabilities: Buffer<'k>, valid: Val<'k>) -> Val<'k> {
    let load = |place, lanes| probabilities.load(place, lanes);
    kernel.k.fold_chunks(valid, kernel.lanes, f32::MIN_POSITIVE, Reduction::Maximum, load)
}

/// The first `valid` probabilities of a block divided by `unit`, and a zero behind them.
fn store_ratios<'k>(
    kernel: &Kernel<'k, '_>,
    probabilities: Buffer<'k>,
    unit: Val<'k>,
    valid: Val<'k>,
    weights: Buffer<'k>,
) {
    let k = kernel.k;
    weights.store(valid.minimum(k.int(CACHE_BLOCK_POSITIONS - 1)), k.float(0.0, 1));
    k.for_each_chunk(valid, kernel.lanes, |place, lanes| {
        weights.store(place, probabilities.load(place, lanes) / unit.splat(lanes));
    });
}

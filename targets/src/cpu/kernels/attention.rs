//! `attention`: scores, causal softmax and weighted sum in one pass over the cache. A tile is one query
//! head of one row.
//!
//! ```text
//! for block of 256 positions:
//!   scores[256] = scale · q·K     4 vectors of positions at a time, keys transposed: no reduction
//!   new maximum; earlier sums are scaled by exp(old maximum − new maximum)
//!   p = exp(scores − maximum); sum += p; out += p · V
//! out / sum
//! ```
//!
//! Blocks come in ascending order, so that the result is the same for any number of rows or threads.

use qwen2c_request::{CACHE_BLOCK_POSITIONS, Element};

use super::Kernel;
use super::cache::HeadCache;
use super::functions::exp;
use crate::builder::{Buffer, Compare, Reduction, Scalar, Val};
use crate::cpu::layout;

/// Vectors of positions whose scores are summed side by side: enough chains to hide a multiply-add.
const SCORE_VECTORS: u32 = 4;

/// Rows times query heads.
pub(super) fn tiles<'k>(kernel: &Kernel<'k, '_>) -> Val<'k> {
    kernel.rows * kernel.k.int(query_heads(kernel))
}

fn query_heads(kernel: &Kernel<'_, '_>) -> u64 {
    kernel.input_type(0).row_elements() / kernel.cache_type(0).head_dim
}

/// What a tile works on.
struct Tile<'k> {
    /// `[head_dim]`, the query.
    query: Buffer<'k>,
    keys: HeadCache<'k>,
    values: HeadCache<'k>,
    /// `f32[256]` on the stack: scores, then weights of a block.
    scores: Buffer<'k>,
    /// Positions of the current block that the row sees.
    valid: Val<'k>,
}

/// One query head of one row.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, tile: Val<'k>, heads: u64, scale: f32) {
    let (k, lanes) = (kernel.k, kernel.lanes);
    let cache = kernel.cache_type(0);
    let head_dim = cache.head_dim;
    let (row, head) = (tile / k.int(heads), tile % k.int(heads));
    let kv_head = head / k.int(heads / cache.kv_heads);
    let slot = kernel.input(2).load_index(row);
    let count = kernel.input(1).load_index(row) + k.int(1);
    let query = kernel.input(0).at(tile * k.int(head_dim));
    let scores = k.stack_array(Element::F32, CACHE_BLOCK_POSITIONS);
    let vectors = layout::padded_head_dim(lanes, head_dim) / u64::from(lanes);

    let mut carried = vec![k.float(f32::MIN, 1), k.float(0.0, 1)];
    carried.extend((0..vectors).map(|_| k.float(0.0, lanes)));
    let blocks = count.divide_up(CACHE_BLOCK_POSITIONS as i64);
    let result = k.for_each(k.int(0), blocks, 1, &carried, |block, carried| {
        let valid = (count - block * k.int(CACHE_BLOCK_POSITIONS)).minimum(k.int(CACHE_BLOCK_POSITIONS));
        let tile = Tile {
            query,
            keys: HeadCache::new(kernel, 0, slot, kv_head),
            values: HeadCache::new(kernel, 1, slot, kv_head),
            scores,
            valid,
        };
        let (maximum, sum, out) = (carried[0], carried[1], &carried[2..]);
        let largest = maximum.maximum(block_scores(kernel, &tile, block, scale));
        let correction = exp(k, maximum - largest);
        let block_sum = block_weights(kernel, &tile, largest);
        let mut next = vec![largest, sum * correction + block_sum];
        next.extend(block_values(kernel, &tile, block, correction, out));
        next
    });

    let inverse = k.float(1.0, 1) / result[1];
    let out = kernel.output(0).at(tile * k.int(head_dim));
    store_head(kernel, out, head_dim, result[2..].iter().map(|vector| *vector * inverse.splat(lanes)));
}

/// Stores the vectors of a head, without the padding of the last one.
pub(super) fn store_head<'k>(
    kernel: &Kernel<'k, '_>,
    out: Buffer<'k>,
    head_dim: u64,
    vectors: impl Iterator<Item = Val<'k>>,
) {
    let (k, lanes) = (kernel.k, u64::from(kernel.lanes));
    for (index, vector) in (0_u64..).zip(vectors) {
        let present = head_dim - index * lanes;
        let offset = k.int(index * lanes);
        if present >= lanes {
            out.store(offset, vector);
        } else {
            let mask = k
                .iota(kernel.lanes)
                .compare(Compare::Less, k.int_vector(Scalar::I32, present as i64, kernel.lanes));
            out.store_masked(offset, vector, mask);
        }
    }
}

/// Scores of one group of [`SCORE_VECTORS`] vectors of positions from `first` on in a block of keys.
pub(super) fn score_vectors<'k>(
    kernel: &Kernel<'k, '_>,
    query: Buffer<'k>,
    keys: Buffer<'k>,
    first: Val<'k>,
    scale: f32,
) -> Vec<Val<'k>> {
    let (k, lanes) = (kernel.k, kernel.lanes);
    let head_dim = k.int(kernel.cache_type(0).head_dim);
    let zeros = vec![k.float(0.0, lanes); SCORE_VECTORS as usize];
    let sums = k.for_each(k.int(0), head_dim, 1, &zeros, |column, sums| {
        let q = query.load(column, 1).splat(lanes);
        let place = column * k.int(CACHE_BLOCK_POSITIONS) + first;
        sums.iter()
            .enumerate()
            .map(|(index, sum)| {
                q.multiply_add(keys.load(place + k.int(index as i64 * i64::from(lanes)), lanes), *sum)
            })
            .collect()
    });
    sums.into_iter().map(|sum| sum * k.float(scale, lanes)).collect()
}

/// Positions that one call of [`score_vectors`] covers.
pub(super) const fn score_group(lanes: u32) -> i64 {
    (SCORE_VECTORS * lanes) as i64
}

/// The lanes whose position, `first` and following, is below `valid`.
pub(super) fn visible<'k>(kernel: &Kernel<'k, '_>, first: Val<'k>, valid: Val<'k>) -> Val<'k> {
    let left = (valid - first).truncate(Scalar::I32);
    kernel.k.iota(kernel.lanes).compare(Compare::Less, left.splat(kernel.lanes))
}

/// Writes the scores of a block, hidden ones as the smallest number, and returns the largest.
fn block_scores<'k>(kernel: &Kernel<'k, '_>, tile: &Tile<'k>, block: Val<'k>, scale: f32) -> Val<'k> {
    let (k, lanes) = (kernel.k, kernel.lanes);
    let keys = tile.keys.block(kernel, block);
    let smallest = k.float(f32::MIN, lanes);
    let largest = k.for_each(k.int(0), tile.valid, score_group(lanes), &[smallest], |first, largest| {
        let mut largest = largest[0];
        for (index, score) in score_vectors(kernel, tile.query, keys, first, scale).into_iter().enumerate() {
            let place = first + k.int(index as i64 * i64::from(lanes));
            let score = visible(kernel, place, tile.valid).select(score, smallest);
            tile.scores.store(place, score);
            largest = largest.maximum(score);
        }
        vec![largest]
    });
    largest[0].reduce(Reduction::Maximum)
}

/// Turns scores into weights `exp(score − largest)`, zero where hidden, and returns their sum.
fn block_weights<'k>(kernel: &Kernel<'k, '_>, tile: &Tile<'k>, largest: Val<'k>) -> Val<'k> {
    let (k, lanes) = (kernel.k, kernel.lanes);
    let sum = k.for_each(k.int(0), tile.valid, i64::from(lanes), &[k.float(0.0, lanes)], |place, sum| {
        let weight = exp(k, tile.scores.load(place, lanes) - largest.splat(lanes));
        let weight = visible(kernel, place, tile.valid).select(weight, k.float(0.0, lanes));
        tile.scores.store(place, weight);
        vec![sum[0] + weight]
    });
    sum[0].reduce(Reduction::Sum)
}

/// `out · correction + Σ weight · value` over the block's visible positions.
fn block_values<'k>(
    kernel: &Kernel<'k, '_>,
    tile: &Tile<'k>,
    block: Val<'k>,
    correction: Val<'k>,
    out: &[Val<'k>],
) -> Vec<Val<'k>> {
    let (k, lanes) = (kernel.k, kernel.lanes);
    let values = tile.values.block(kernel, block);
    let scaled: Vec<Val<'k>> = out.iter().map(|vector| *vector * correction.splat(lanes)).collect();
    weighted_values(kernel, values, tile.scores, k.int(0), tile.valid, &scaled)
}

/// `sums + Σ weights[p] · values[p, ..]` over the places `from .. to` of a block of values.
pub(super) fn weighted_values<'k>(
    kernel: &Kernel<'k, '_>,
    values: Buffer<'k>,
    weights: Buffer<'k>,
    from: Val<'k>,
    to: Val<'k>,
    sums: &[Val<'k>],
) -> Vec<Val<'k>> {
    let (k, lanes) = (kernel.k, kernel.lanes);
    let padded = k.int(sums.len() as u64 * u64::from(lanes));
    k.for_each(from, to, 1, sums, |place, sums| {
        let weight = weights.load(place, 1).splat(lanes);
        let row = values.at(place * padded);
        (0_i64..)
            .zip(sums)
            .map(|(index, sum)| weight.multiply_add(row.load(k.int(index * i64::from(lanes)), lanes), *sum))
            .collect()
    })
}

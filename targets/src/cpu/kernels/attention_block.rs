//! What several queries of one kv head make of one block of the cache, side by side: scores, weights and
//! weighted values. A vector of keys is loaded and widened once for all of them, a vector of values once for
//! as many as [`sums_beside`] says.
//!
//! Per vector of 16-bit keys: 1 load and 1 shift, then 1 multiply-add for each query; values the same. Each
//! sum is one chain in ascending order of columns or positions, so that a query gets the same bits whatever
//! others stand beside it.

use super::Kernel;
use super::cache::{key_stride, keys_at};
use super::functions::exp;
use crate::builder::{Buffer, Compare, Reduction, Scalar, Val};

/// Sums of products kept in registers at a time, of 32 registers and of 16.
const fn register_sums(lanes: u32) -> usize {
    if lanes == 16 { 16 } else { 8 }
}

/// Vectors of positions or columns beside `queries`: as many chains as registers hold, at most 4.
pub(super) fn vectors_beside(lanes: u32, queries: usize) -> usize {
    match register_sums(lanes) / queries {
        0 | 1 => 1,
        2 | 3 => 2,
        _ => 4,
    }
}

/// Vectors of a value and queries that are summed together: neighbouring vectors, so that memory is read from
/// front to back for the first of the queries, and the others find it in the cache.
pub(super) fn sums_beside(lanes: u32) -> (usize, usize) {
    (4, register_sums(lanes) / 4)
}

/// A query against one block.
#[derive(Clone, Copy)]
pub(super) struct BlockQuery<'k> {
    /// `f32[head_dim]`.
    pub(super) query: Buffer<'k>,
    /// `f32[256]` scratch: scores, then weights.
    pub(super) scores: Buffer<'k>,
    /// Positions of the block that the query sees: 0 to 256.
    pub(super) visible: Val<'k>,
}

/// The lanes whose position, `first` and following, is below `count`.
pub(super) fn visible<'k>(kernel: &Kernel<'k, '_>, first: Val<'k>, count: Val<'k>) -> Val<'k> {
    let left = (count - first).truncate(Scalar::I32);
    kernel.k.iota(kernel.lanes).compare(Compare::Less, left.splat(kernel.lanes))
}

/// `scale · q·K` of `vectors` vectors of positions from `first` on in a block of keys, `[query][vector]`.
pub(super) fn score_vectors<'k>(
    kernel: &Kernel<'k, '_>,
    queries: &[Buffer<'k>],
    keys: Buffer<'k>,
    (first, vectors): (Val<'k>, usize),
    scale: f32,
) -> Vec<Vec<Val<'k>>> {
    let (k, lanes) = (kernel.k, kernel.lanes);
    let head_dim = k.int(kernel.cache_type(0).head_dim);
    let zeros = vec![k.float(0.0, lanes); queries.len() * vectors];
    let keys: Vec<Buffer<'k>> =
        (0..vectors as u32).map(|index| keys_at(kernel, keys, first + k.int(index * lanes))).collect();
    let sums = k.for_each(k.int(0), head_dim, 1, &zeros, |column, sums| {
        let place = column * key_stride(kernel);
        let keys: Vec<Val<'k>> = keys.iter().map(|keys| keys.load(place, lanes)).collect();
        let mut next = Vec::with_capacity(sums.len());
        for (query, sums) in queries.iter().zip(sums.chunks(vectors)) {
            let q = query.load(column, 1).splat(lanes);
            next.extend(keys.iter().zip(sums).map(|(key, sum)| q.multiply_add(*key, *sum)));
        }
        next
    });
    let scaled: Vec<Val<'k>> = sums.into_iter().map(|sum| sum * k.float(scale, lanes)).collect();
    scaled.chunks(vectors).map(<[Val<'k>]>::to_vec).collect()
}

/// Writes the scores of a block up to position `end`, hidden ones as the smallest number, and returns the
/// largest of each query.
pub(super) fn block_scores<'k>(
    kernel: &Kernel<'k, '_>,
    queries: &[BlockQuery<'k>],
    keys: Buffer<'k>,
    end: Val<'k>,
    scale: f32,
) -> Vec<Val<'k>> {
    let (k, lanes) = (kernel.k, kernel.lanes);
    let smallest = k.float(f32::MIN, lanes);
    let vectors = vectors_beside(lanes, queries.len());
    let step = vectors as i64 * i64::from(lanes);
    let buffers: Vec<Buffer<'k>> = queries.iter().map(|query| query.query).collect();
    let largest = k.for_each(k.int(0), end, step, &vec![smallest; queries.len()], |first, largest| {
        let scores = score_vectors(kernel, &buffers, keys, (first, vectors), scale);
        let mut next = largest.to_vec();
        for ((query, scores), largest) in queries.iter().zip(scores).zip(&mut next) {
            for (index, score) in (0_u32..).zip(scores) {
                let place = first + k.int(index * lanes);
                let score = visible(kernel, place, query.visible).select(score, smallest);
                query.scores.store(place, score);
                *largest = largest.maximum(score);
            }
        }
        next
    });
    largest.into_iter().map(|largest| largest.reduce(Reduction::Maximum)).collect()
}

/// Turns a query's scores up to position `end` into weights `exp(score − largest)`, zero where hidden, and
/// returns their sum.
pub(super) fn block_weights<'k>(
    kernel: &Kernel<'k, '_>,
    query: &BlockQuery<'k>,
    end: Val<'k>,
    largest: Val<'k>,
) -> Val<'k> {
    let (k, lanes) = (kernel.k, kernel.lanes);
    let largest = largest.splat(lanes);
    let sum = k.for_each(k.int(0), end, i64::from(lanes), &[k.float(0.0, lanes)], |place, sum| {
        let weight = exp(k, query.scores.load(place, lanes) - largest);
        let weight = visible(kernel, place, query.visible).select(weight, k.float(0.0, lanes));
        query.scores.store(place, weight);
        vec![sum[0] + weight]
    });
    sum[0].reduce(Reduction::Sum)
}

/// `Σ weight[p] · value[p, columns]` over positions 0 to `end` of a block of values for some vectors of
/// columns from `first_column` on, `[query][vector]`. Rows of values have `padded` elements.
pub(super) fn weighted_values<'k>(
    kernel: &Kernel<'k, '_>,
    weights: &[Buffer<'k>],
    (values, padded): (Buffer<'k>, u64),
    end: Val<'k>,
    (first_column, vectors): (u64, usize),
    sums: &[Val<'k>],
) -> Vec<Val<'k>> {
    let (k, lanes) = (kernel.k, kernel.lanes);
    k.for_each(k.int(0), end, 1, sums, |place, sums| {
        let row = values.at(place * k.int(padded) + k.int(first_column));
        let values: Vec<Val<'k>> =
            (0..vectors as u32).map(|index| row.load(k.int(index * lanes), lanes)).collect();
        let mut next = Vec::with_capacity(sums.len());
        for (weights, sums) in weights.iter().zip(sums.chunks(vectors)) {
            let weight = weights.load(place, 1).splat(lanes);
            next.extend(values.iter().zip(sums).map(|(value, sum)| weight.multiply_add(*value, *sum)));
        }
        next
    })
}

/// Stores a vector of a head at `column`, without the padding of the last one.
pub(super) fn store_in_head<'k>(
    kernel: &Kernel<'k, '_>,
    out: Buffer<'k>,
    head_dim: u64,
    column: u64,
    vector: Val<'k>,
) {
    let (k, lanes) = (kernel.k, kernel.lanes);
    let present = head_dim - column;
    if present >= u64::from(lanes) {
        out.store(k.int(column), vector);
    } else {
        let mask = k.iota(lanes).compare(Compare::Less, k.int_vector(Scalar::I32, present as i64, lanes));
        out.store_masked(k.int(column), vector, mask);
    }
}

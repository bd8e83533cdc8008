//! What several queries of one kv head make of one block of the cache, side by side: scores, weights and
//! weighted values. A vector of keys is loaded and widened once for all of them, a vector of values once for
//! as many as [`sums_beside`] says.
//!
//! Per vector of 16-bit keys: 1 load and 1 shift, then 1 multiply-add for each query; values the same. Each
//! sum is one chain in ascending order of columns or positions, so that a query gets the same bits whatever
//! others stand beside it.
//!
//! Where keys and values lie as pairs, a load brings two. Queries and weights of bf16 are multiplied with both
//! at once by `vdpbf16ps`, 1 load and 1 instruction for each query, a quarter of the instructions for as many
//! products; those of f32 with one after the other.

use std::f32::consts::LOG2_E;

use qwen2c_request::Element;

use super::Kernel;
use super::cache::{key_stride, keys_at, pair_product, side_by_side, values_at};
use super::functions::exp2_of_negative;
use crate::builder::{Buffer, Compare, Reduction, Scalar, Val};
use crate::cpu::layout;

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
fn sums_beside(lanes: u32) -> (usize, usize) {
    (4, register_sums(lanes) / 4)
}

/// A query against one block.
#[derive(Clone, Copy)]
pub(super) struct BlockQuery<'k> {
    /// `[head_dim]`, f32 or bf16.
    pub(super) query: Buffer<'k>,
    /// `f32[256]` scratch of scores.
    pub(super) scores: Buffer<'k>,
    /// `[256]`, where weights go: the same memory, f32, or bf16 where they are rounded.
    pub(super) weights: Buffer<'k>,
    /// Positions of the block that the query sees: 0 to 256.
    pub(super) visible: Val<'k>,
}

/// The lanes whose position, `first` and following, is below `count`.
pub(super) fn visible<'k>(kernel: &Kernel<'k, '_>, first: Val<'k>, count: Val<'k>) -> Val<'k> {
    let left = (count - first).truncate(Scalar::I32);
    kernel.k.iota(kernel.lanes).compare(Compare::Less, left.splat(kernel.lanes))
}

/// A vector of keys or values, of as many pairs where they lie as pairs.
fn load_vector<'k>(kernel: &Kernel<'k, '_>, from: Buffer<'k>, place: Val<'k>) -> Val<'k> {
    match pair_product(kernel) {
        Some(_) => from.at(place).load_as(Scalar::I32, kernel.k.int(0), kernel.lanes),
        None => from.load(place, kernel.lanes),
    }
}

/// `sums[factor][vector]` and the products of some vectors with the element of each factor at `place`; where
/// vectors are of pairs, with that and the next.
fn add_products<'k>(
    kernel: &Kernel<'k, '_>,
    factors: &[Buffer<'k>],
    place: Val<'k>,
    vectors: &[Val<'k>],
    sums: &[Val<'k>],
) -> Vec<Val<'k>> {
    let (k, lanes) = (kernel.k, kernel.lanes);
    let mut next = Vec::with_capacity(sums.len());
    for (factor, sums) in factors.iter().zip(sums.chunks(vectors.len())) {
        let products = vectors.iter().zip(sums);
        match pair_product(kernel) {
            None => {
                let factor = factor.load(place, 1).splat(lanes);
                next.extend(products.map(|(vector, sum)| factor.multiply_add(*vector, *sum)));
            }
            Some(name) if factor.element == Element::Bf16 => {
                let pair = factor.at(place).load_as(Scalar::I32, k.int(0), 1).splat(lanes);
                let pair = pair.as_lanes_of(Scalar::Bf16);
                next.extend(products.map(|(vector, sum)| {
                    sum.instruction(name, &[vector.as_lanes_of(Scalar::Bf16), pair], sum.ty)
                }));
            }
            Some(_) => {
                let factors = [0, 1].map(|index| factor.load(place + k.int(index), 1).splat(lanes));
                next.extend(products.map(|(vector, sum)| {
                    let (first, second) = vector.bf16_pair();
                    factors[1].multiply_add(second, factors[0].multiply_add(first, *sum))
                }));
            }
        }
    }
    next
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
    let sums = k.for_each(k.int(0), head_dim, side_by_side(kernel) as i64, &zeros, |column, sums| {
        let place = column * key_stride(kernel);
        let keys: Vec<Val<'k>> = keys.iter().map(|keys| load_vector(kernel, *keys, place)).collect();
        add_products(kernel, queries, column, &keys, sums)
    });
    let scaled: Vec<Val<'k>> = sums.into_iter().map(|sum| sum * k.float(scale, lanes)).collect();
    scaled.chunks(vectors).map(<[Val<'k>]>::to_vec).collect()
}

/// Writes the scores of a block up to position `end` in units of log₂, hidden ones as the smallest number, and
/// returns the largest of each query.
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
        let scores = score_vectors(kernel, &buffers, keys, (first, vectors), scale * LOG2_E);
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

/// Turns a query's scores up to position `end` into weights `2^(score − largest)`, zero where hidden, and
/// returns their sum, which is of weights that are not rounded.
pub(super) fn block_weights<'k>(
    kernel: &Kernel<'k, '_>,
    query: &BlockQuery<'k>,
    end: Val<'k>,
    largest: Val<'k>,
) -> Val<'k> {
    let (k, lanes) = (kernel.k, kernel.lanes);
    let largest = largest.splat(lanes);
    let sum = k.for_each(k.int(0), end, i64::from(lanes), &[k.float(0.0, lanes)], |place, sum| {
        let weight = exp2_of_negative(k, query.scores.load(place, lanes) - largest);
        let weight = visible(kernel, place, query.visible).select(weight, k.float(0.0, lanes));
        // Rounded weights are narrower, and so stay behind the scores that are still to be read.
        query.weights.store(place, weight);
        vec![sum[0] + weight]
    });
    sum[0].reduce(Reduction::Sum)
}

/// `Σ weight[p] · value[p, columns]` over positions 0 to `end` of a block of values for some vectors of
/// columns from `first_column` on, `[query][vector]`. Of pairs both weights are read: where `end` is odd, any
/// number may lie behind it.
pub(super) fn weighted_values<'k>(
    kernel: &Kernel<'k, '_>,
    weights: &[Buffer<'k>],
    values: Buffer<'k>,
    end: Val<'k>,
    (first_column, vectors): (u64, usize),
    sums: &[Val<'k>],
) -> Vec<Val<'k>> {
    let (k, beside) = (kernel.k, side_by_side(kernel));
    let load = |place: Val<'k>| -> Vec<Val<'k>> {
        let row = values_at(kernel, values, place);
        let columns = (0..vectors as u64).map(|index| first_column + index * u64::from(kernel.lanes));
        columns.map(|column| load_vector(kernel, row, k.int(column * beside))).collect()
    };
    let whole = k.whole_chunks(end, beside as u32);
    let sums = k.for_each(k.int(0), whole, beside as i64, sums, |place, sums| {
        add_products(kernel, weights, place, &load(place), sums)
    });
    if beside == 1 {
        return sums;
    }
    // What lies behind the last position was left by an earlier text, and may not even be a number.
    k.for_each(whole, end, 1, &sums, |place, sums| {
        let alone: Vec<Val<'k>> = load(place).iter().map(|pairs| pairs.and_bits(0xffff)).collect();
        add_products(kernel, weights, place, &alone, sums)
    })
}

/// Hands `use_sums(query, first column, vectors)` the weighted values of each query, given its weights, for all
/// columns.
pub(super) fn for_each_weighted_values<'k>(
    kernel: &Kernel<'k, '_>,
    weights: &[Buffer<'k>],
    values: Buffer<'k>,
    end: Val<'k>,
    use_sums: impl Fn(usize, u64, &[Val<'k>]),
) {
    let (k, lanes) = (kernel.k, kernel.lanes);
    let padded = layout::padded_head_dim(lanes, kernel.cache_type(0).head_dim);
    let vectors = (padded / u64::from(lanes)) as usize;
    let (beside, group) = sums_beside(lanes);
    for first in (0..vectors).step_by(beside) {
        let count = beside.min(vectors - first);
        let first_column = first as u64 * u64::from(lanes);
        for (group_number, weights) in weights.chunks(group).enumerate() {
            let zeros = vec![k.float(0.0, lanes); weights.len() * count];
            let sums = weighted_values(kernel, weights, values, end, (first_column, count), &zeros);
            for (index, sums) in sums.chunks(count).enumerate() {
                use_sums(group_number * group + index, first_column, sums);
            }
        }
    }
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

//! `attention`: scores, causal softmax and weighted sum in one pass over the cache. A tile is several
//! queries of one kv head: on decode the query heads that share it, on a prompt those of several rows.
//!
//! ```text
//! for block of 256 positions:
//!   scores = scale · log₂ e · q·K  keys transposed: lanes are positions, no reduction
//!   m = max(scores); p = 2^(scores − m); s = sum(p); o = p · V
//!   M' = max(M, m); sum = sum · 2^(M − M') + s · 2^(m − M'); out likewise with o; M = M'
//! out / sum
//! ```
//!
//! Where weights are rounded, `p` is for the product with V, and not for the sum.
//!
//! What a block contributes depends on the block alone, and blocks come in ascending order, so that the
//! result is the same for any number of rows or threads. Arithmetic: 2 · head_dim multiply-adds for each
//! query and position; 8 queries keep the units busy with a key loaded once, 4 with a value; keys and values
//! of a head stay in the second-level cache over the tiles of a prompt.

use qwen2c_request::{CACHE_BLOCK_POSITIONS, Element, KernelRequest};

use super::attention_block::{
    BlockQuery, block_scores, block_weights, for_each_weighted_values, store_in_head,
};
use super::cache::HeadCache;
use super::functions::exp2_of_negative;
use super::matrix_attention_block::{MOST_QUERIES, has_matrix_attention};
use super::{Kernel, matrix_attention};
use crate::builder::{Buffer, Compare, Val};
use crate::cpu::instructions::Instructions;
use crate::cpu::layout;

/// Queries side by side on a prompt.
const PROMPT_QUERIES: u64 = 8;

fn query_heads(kernel: &Kernel<'_, '_>) -> u64 {
    kernel.input_type(0).row_elements() / kernel.cache_type(0).head_dim
}

/// Query heads that share a kv head.
fn heads_of_kv_head(kernel: &Kernel<'_, '_>) -> u64 {
    query_heads(kernel) / kernel.cache_type(0).kv_heads
}

/// Queries of a tile.
pub(in crate::cpu) fn queries_of_tile(
    instructions: Instructions,
    request: &KernelRequest,
    rounded: bool,
) -> u64 {
    let most =
        if has_matrix_attention(instructions, request, rounded) { MOST_QUERIES } else { PROMPT_QUERIES };
    if request.max_rows > 1 {
        return most;
    }
    let cache = &request.caches[0];
    (request.inputs[0].row_elements() / cache.head_dim / cache.kv_heads).min(most)
}

/// The kv heads times tiles of each.
pub(super) fn tiles<'k>(kernel: &Kernel<'k, '_>, rounded: bool) -> Val<'k> {
    kernel.k.int(kernel.cache_type(0).kv_heads) * tiles_of_kv_head(kernel, rounded)
}

fn tiles_of_kv_head<'k>(kernel: &Kernel<'k, '_>, rounded: bool) -> Val<'k> {
    let queries = kernel.rows * kernel.k.int(heads_of_kv_head(kernel));
    queries.divide_up(queries_of_tile(kernel.instructions, kernel.request, rounded) as i64)
}

/// Where the queries of a kv head lie.
#[derive(Clone, Copy)]
pub(super) struct Queries<'k> {
    /// The kv head.
    pub(super) kv_head: Val<'k>,
    /// Query heads of a row.
    heads: u64,
    /// Query heads that share the kv head.
    of_kv_head: u64,
}

impl<'k> Queries<'k> {
    /// The row of query number `index`.
    pub(super) fn row(self, index: Val<'k>) -> Val<'k> {
        index / index.builder().int(self.of_kv_head)
    }

    /// The first element of query number `index`, of those of all rows.
    pub(super) fn place(self, kernel: &Kernel<'k, '_>, index: Val<'k>) -> Val<'k> {
        let k = kernel.k;
        let head = self.kv_head * k.int(self.of_kv_head) + index % k.int(self.of_kv_head);
        (self.row(index) * k.int(self.heads) + head) * k.int(kernel.cache_type(0).head_dim)
    }

    /// Positions that query number `index` sees.
    pub(super) fn count(self, kernel: &Kernel<'k, '_>, index: Val<'k>) -> Val<'k> {
        kernel.input(1).load_index(self.row(index)) + kernel.k.int(1)
    }
}

/// Memory of one query on the stack.
#[derive(Clone, Copy)]
struct Scratch<'k> {
    /// `f32[256]`.
    scores: Buffer<'k>,
    /// `[256]`, the same memory: f32, or bf16 where weights are rounded.
    weights: Buffer<'k>,
    /// `f32[padded head_dim]`, the sum of values so far.
    out: Buffer<'k>,
}

/// A query of a tile.
struct Query<'k> {
    row: Val<'k>,
    /// `[head_dim]`.
    query: Buffer<'k>,
    /// Positions it sees.
    count: Val<'k>,
    scratch: Scratch<'k>,
    /// `[head_dim]`, where the result goes.
    result: Buffer<'k>,
}

/// Some queries of one kv head: together where all are there and of one slot, else one by one.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, tile: Val<'k>, scale: f32, rounded: bool) {
    let k = kernel.k;
    let heads = heads_of_kv_head(kernel);
    let side_by_side = queries_of_tile(kernel.instructions, kernel.request, rounded);
    let tiles = tiles_of_kv_head(kernel, rounded);
    let (kv_head, first) = (tile / tiles, tile % tiles * k.int(side_by_side));
    let end = (first + k.int(side_by_side)).minimum(kernel.rows * k.int(heads));
    let queries = Queries { kv_head, heads: query_heads(kernel), of_kv_head: heads };
    if has_matrix_attention(kernel.instructions, kernel.request, rounded) {
        return matrix_attention::body(kernel, queries, (first, end), scale);
    }
    let padded = layout::padded_head_dim(kernel.lanes, kernel.cache_type(0).head_dim);
    let scratch: Vec<Scratch<'k>> = (0..side_by_side)
        .map(|_| {
            let scores = k.stack_array(Element::F32, CACHE_BLOCK_POSITIONS);
            let weights = if rounded { scores.seen_as(Element::Bf16) } else { scores };
            Scratch { scores, weights, out: k.stack_array(Element::F32, padded) }
        })
        .collect();
    let query = |index: Val<'k>, scratch: Scratch<'k>| {
        let place = queries.place(kernel, index);
        Query {
            row: queries.row(index),
            query: kernel.input(0).at(place),
            count: queries.count(kernel, index),
            scratch,
            result: kernel.output(0).at(place),
        }
    };
    let slot_of = |row: Val<'k>| kernel.input(2).load_index(row);
    let one_by_one = || {
        k.repeat(first, end, 1, |index| {
            let query = query(index, scratch[0]);
            let slot = slot_of(query.row);
            attend(kernel, (slot, kv_head), &[query], scale);
        });
    };
    if side_by_side == 1 {
        return one_by_one();
    }
    let is_whole = (first + k.int(side_by_side - 1)).compare(Compare::Less, end);
    k.when_else(
        is_whole,
        || {
            let queries: Vec<Query<'k>> = (0..)
                .zip(&scratch)
                .map(|(index, scratch): (u64, _)| query(first + k.int(index), *scratch))
                .collect();
            let slots: Vec<Val<'k>> = queries.iter().map(|query| slot_of(query.row)).collect();
            let least = slots[1..].iter().fold(slots[0], |least, slot| least.minimum(*slot));
            let most = slots[1..].iter().fold(slots[0], |most, slot| most.maximum(*slot));
            let together = || attend(kernel, (least, kv_head), &queries, scale);
            k.when_else(least.compare(Compare::Less, most), one_by_one, together);
        },
        one_by_one,
    );
}

/// The result of some queries of one slot and kv head.
fn attend<'k>(
    kernel: &Kernel<'k, '_>,
    (slot, kv_head): (Val<'k>, Val<'k>),
    queries: &[Query<'k>],
    scale: f32,
) {
    let (k, lanes) = (kernel.k, kernel.lanes);
    let head_dim = kernel.cache_type(0).head_dim;
    let (keys, values) = (HeadCache::new(kernel, 0, slot, kv_head), HeadCache::new(kernel, 1, slot, kv_head));
    let vectors = layout::padded_head_dim(lanes, head_dim) / u64::from(lanes);
    let columns = || (0..vectors).map(|vector| vector * u64::from(lanes));
    for (query, column) in queries.iter().flat_map(|query| columns().map(move |column| (query, column))) {
        query.scratch.out.store(k.int(column), k.float(0.0, lanes));
    }
    let count = queries[1..].iter().fold(queries[0].count, |most, query| most.maximum(query.count));
    let start: Vec<Val<'k>> = queries.iter().flat_map(|_| [k.float(f32::MIN, 1), k.float(0.0, 1)]).collect();
    let blocks = count.divide_up(CACHE_BLOCK_POSITIONS as i64);
    let totals = k.for_each(k.int(0), blocks, 1, &start, |block, totals| {
        let first = block * k.int(CACHE_BLOCK_POSITIONS);
        let in_block =
            |count: Val<'k>| (count - first).minimum(k.int(CACHE_BLOCK_POSITIONS)).maximum(k.int(0));
        let block_queries: Vec<BlockQuery<'k>> = queries
            .iter()
            .map(|query| BlockQuery {
                query: query.query,
                scores: query.scratch.scores,
                weights: query.scratch.weights,
                visible: in_block(query.count),
            })
            .collect();
        let end = in_block(count);
        let largest = block_scores(kernel, &block_queries, keys.block(kernel, block), end, scale);
        let mut next = Vec::with_capacity(totals.len());
        let mut factors = Vec::with_capacity(queries.len());
        for ((query, block_largest), total) in block_queries.iter().zip(largest).zip(totals.chunks(2)) {
            let block_sum = block_weights(kernel, query, end, block_largest);
            let largest = total[0].maximum(block_largest);
            let [old, new] = [total[0], block_largest].map(|before| exp2_of_negative(k, before - largest));
            next.extend([largest, total[1] * old + block_sum * new]);
            factors.push((old, new));
        }
        add_values(kernel, queries, &factors, values.block(kernel, block), end);
        next
    });
    for (query, total) in queries.iter().zip(totals.chunks(2)) {
        let inverse = (k.float(1.0, 1) / total[1]).splat(lanes);
        for column in columns() {
            let value = query.scratch.out.load(k.int(column), lanes) * inverse;
            store_in_head(kernel, query.result, head_dim, column, value);
        }
    }
}

/// `out · old + (weights · values) · new` of each query, with its factors `(old, new)`.
fn add_values<'k>(
    kernel: &Kernel<'k, '_>,
    queries: &[Query<'k>],
    factors: &[(Val<'k>, Val<'k>)],
    values: Buffer<'k>,
    end: Val<'k>,
) {
    let weights: Vec<Buffer<'k>> = queries.iter().map(|query| query.scratch.weights).collect();
    for_each_weighted_values(kernel, &weights, values, end, |query, first_column, sums| {
        add_to_out(kernel, queries[query].scratch.out, factors[query], first_column, sums);
    });
}

/// `out · old + sums · new` of some vectors from `first_column` on.
fn add_to_out<'k>(
    kernel: &Kernel<'k, '_>,
    out: Buffer<'k>,
    (old, new): (Val<'k>, Val<'k>),
    first_column: u64,
    sums: &[Val<'k>],
) {
    let (k, lanes) = (kernel.k, kernel.lanes);
    for (index, sum) in (0_u64..).zip(sums) {
        let place = k.int(first_column + index * u64::from(lanes));
        let before = out.load(place, lanes);
        out.store(place, before * old.splat(lanes) + *sum * new.splat(lanes));
    }
}

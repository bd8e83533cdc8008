//! `attention_blocks`: what each block of the cache adds to the attention of one row. A tile is an eighth of
//! the blocks, which follow each other in memory, for the query heads that share a kv head: at most 8 of them,
//! or 16 on the matrix unit.
//!
//! ```text
//! for block:  scores = scale · log₂ e · q·K;  m = max(scores);  p = 2^(scores − m);  s = sum(p);  out = p · V
//! ```
//!
//! The bits are those of `attention`, which merges what it has of a block at once.

use qwen2c_request::{CACHE_BLOCK_POSITIONS, Element};

use super::Kernel;
use super::attention_block::{
    BlockQuery, block_scores, block_weights, for_each_weighted_values, store_in_head,
};
use super::cache::HeadCache;
use super::matrix_attention_block::{CacheBlock, MOST_QUERIES, MatrixBlock, has_matrix_attention};
use crate::builder::{Buffer, Compare, Val};

/// Most query heads of a tile.
const MOST_HEADS: u64 = 8;

/// Tiles that the blocks of a kv head are cut into where there are as many: with the fewest heads, two, work
/// for 16 cores.
const TILES_OF_BLOCKS: i64 = 8;

/// How the query heads of a kv head are cut into tiles.
struct Heads {
    of_kv_head: u64,
    of_tile: u64,
}

impl Heads {
    fn new(kernel: &Kernel<'_, '_>, heads: u64, rounded: bool) -> Self {
        let of_kv_head = heads / kernel.cache_type(0).kv_heads;
        let most = if has_matrix_attention(kernel.instructions, kernel.request, rounded) {
            MOST_QUERIES
        } else {
            MOST_HEADS
        };
        Self { of_kv_head, of_tile: of_kv_head.min(most) }
    }

    fn tiles(&self) -> u64 {
        self.of_kv_head.div_ceil(self.of_tile)
    }
}

/// Positions that the row sees.
fn seen_positions<'k>(kernel: &Kernel<'k, '_>) -> Val<'k> {
    kernel.input(1).load_index(kernel.k.int(0)) + kernel.k.int(1)
}

/// Blocks that the row sees, and those of a tile.
fn seen_blocks<'k>(kernel: &Kernel<'k, '_>) -> (Val<'k>, Val<'k>) {
    let seen = seen_positions(kernel).divide_up(CACHE_BLOCK_POSITIONS as i64);
    (seen, seen.divide_up(TILES_OF_BLOCKS))
}

/// Tiles of blocks that are there.
fn tiles_of_blocks<'k>((seen, of_tile): (Val<'k>, Val<'k>)) -> Val<'k> {
    (seen + of_tile - of_tile.builder().int(1)) / of_tile
}

/// Cuts of the query heads times tiles of blocks, none without a row.
pub(super) fn tiles<'k>(kernel: &Kernel<'k, '_>, heads: u64, rounded: bool) -> Val<'k> {
    let cuts = kernel.cache_type(0).kv_heads * Heads::new(kernel, heads, rounded).tiles();
    kernel.rows * kernel.k.int(cuts) * tiles_of_blocks(seen_blocks(kernel))
}

/// Some blocks for some query heads; those of the same heads follow each other.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, tile: Val<'k>, heads: u64, scale: f32, rounded: bool) {
    let k = kernel.k;
    let cut = Heads::new(kernel, heads, rounded);
    let (seen, of_tile) = seen_blocks(kernel);
    let tiles = tiles_of_blocks((seen, of_tile));
    let (first_block, cut_number) = (tile % tiles * of_tile, tile / tiles);
    let cuts = k.int(cut.tiles());
    let (kv_head, of_kv_head) = (cut_number / cuts, cut_number % cuts);
    let first = kv_head * k.int(cut.of_kv_head) + of_kv_head * k.int(cut.of_tile);
    let rest = cut.of_kv_head % cut.of_tile;
    let attend_to_blocks = |count: u64| {
        // Arrays on the stack are made once, before the loop.
        let matrix = has_matrix_attention(kernel.instructions, kernel.request, rounded)
            .then(|| MatrixBlock::new(kernel, count));
        let scores: Vec<Buffer<'k>> = match matrix {
            Some(_) => Vec::new(),
            None => (0..count).map(|_| k.stack_array(Element::F32, CACHE_BLOCK_POSITIONS)).collect(),
        };
        k.repeat(first_block, (first_block + of_tile).minimum(seen), 1, |block| {
            let part = Part { block, kv_head, heads, scale, rounded };
            match matrix {
                Some(matrix) => attend_on_matrix_unit(kernel, &part, first, matrix),
                None => attend(kernel, &part, first, &scores),
            }
        });
    };
    if rest == 0 {
        return attend_to_blocks(cut.of_tile);
    }
    k.when_else(
        of_kv_head.compare(Compare::Less, k.int(cut.tiles() - 1)),
        || attend_to_blocks(cut.of_tile),
        || attend_to_blocks(rest),
    );
}

/// Which part of an attention.
struct Part<'k> {
    block: Val<'k>,
    kv_head: Val<'k>,
    /// Query heads of the row.
    heads: u64,
    scale: f32,
    rounded: bool,
}

impl<'k> Part<'k> {
    /// The block of the cache that it looks at.
    fn cache_block(&self, kernel: &Kernel<'k, '_>) -> CacheBlock<'k> {
        let k = kernel.k;
        let slot = kernel.input(2).load_index(k.int(0));
        let [keys, values] =
            [0, 1].map(|index| HeadCache::new(kernel, index, slot, self.kv_head).block(kernel, self.block));
        let before = self.block * k.int(CACHE_BLOCK_POSITIONS);
        let end = (seen_positions(kernel) - before).minimum(k.int(CACHE_BLOCK_POSITIONS));
        CacheBlock { keys, values, end }
    }

    /// Where its sums go, `f32[heads, head_dim]`, and its largest scores and sums of weights, `f32[2, heads]`.
    fn outputs(&self, kernel: &Kernel<'k, '_>) -> [Buffer<'k>; 2] {
        let (k, head_dim) = (kernel.k, kernel.cache_type(0).head_dim);
        let of_block = |index: usize, elements: u64| kernel.output(index).at(self.block * k.int(elements));
        [of_block(0, self.heads * head_dim), of_block(1, 2 * self.heads)]
    }
}

/// The part for as many query heads from `first` on as `matrix` has rows.
fn attend_on_matrix_unit<'k>(
    kernel: &Kernel<'k, '_>,
    part: &Part<'k>,
    first: Val<'k>,
    matrix: MatrixBlock<'k>,
) {
    let k = kernel.k;
    let block = part.cache_block(kernel);
    let [sums, totals] = part.outputs(kernel);
    let place = first * k.int(kernel.cache_type(0).head_dim);
    let buffers = (kernel.input(0).at(place), sums.at(place));
    matrix.attend(
        kernel,
        buffers,
        &block,
        part.scale,
        |_| block.end,
        |row, largest, sum| {
            totals.store(first + row, largest);
            totals.store(first + row + k.int(part.heads), sum);
        },
    );
}

/// The part for as many query heads from `first` on as there are `scores`, `f32[256]` each.
fn attend<'k>(kernel: &Kernel<'k, '_>, part: &Part<'k>, first: Val<'k>, scores: &[Buffer<'k>]) {
    let k = kernel.k;
    let head_dim = kernel.cache_type(0).head_dim;
    let CacheBlock { keys, values, end: visible } = part.cache_block(kernel);
    let heads: Vec<Val<'k>> = (0..scores.len() as u64).map(|index| first + k.int(index)).collect();
    let queries: Vec<BlockQuery<'k>> = heads
        .iter()
        .zip(scores)
        .map(|(head, scores)| {
            let weights = if part.rounded { scores.seen_as(Element::Bf16) } else { *scores };
            let query = kernel.input(0).at(*head * k.int(head_dim));
            BlockQuery { query, scores: *scores, weights, visible }
        })
        .collect();
    let largest = block_scores(kernel, &queries, keys, visible, part.scale);
    let [sums, totals] = part.outputs(kernel);
    for ((query, head), largest) in queries.iter().zip(&heads).zip(largest) {
        totals.store(*head, largest);
        totals.store(*head + k.int(part.heads), block_weights(kernel, query, visible, largest));
    }
    let weights: Vec<Buffer<'k>> = queries.iter().map(|query| query.weights).collect();
    for_each_weighted_values(kernel, &weights, values, visible, |query, first_column, vectors| {
        let result = sums.at(heads[query] * k.int(head_dim));
        for (index, vector) in (0_u64..).zip(vectors) {
            let column = first_column + index * u64::from(kernel.lanes);
            store_in_head(kernel, result, head_dim, column, *vector);
        }
    });
}

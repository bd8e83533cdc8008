//! `attention`: scores, causal softmax and weighted sum in one pass over the cache (Dao et al. 2022, and the
//! split over positions of Flash-Decoding, 2023).
//!
//! ```text
//! decode:  a block is 256 positions of a kv head; a second launch merges what they found, in order
//! prompt:  a block is a row and a kv head, and goes through all positions; where the types allow it the
//!          matrix unit does the work, see `flash_attention`
//!
//! for block of 256 positions:
//!   for position, some threads side by side on 16 bytes of the key each:    each key is read once for all
//!     score[query head] = scale · q·k                                       query heads of the kv head
//!   for query head, a warp: maximum, exponentials, sum
//!   for position, threads as before on the value: out[query head] += p · v
//! fold `out` over the positions that were side by side, then over the warps
//! ```
//!
//! The position decides how many blocks have work; those behind it end at once.

use qwen2c_request::{CACHE_BLOCK_POSITIONS, Element, KernelRequest};

use super::cache::head_cache;
use super::functions::exp;
use super::{Kernel, REDUCTION_BYTES, Shape, flash_attention};
use crate::builder::{Buffer, Compare, Reduction, Val, WARP_THREADS};
use crate::cuda::layout::{UNIT_BYTES, padded_head_dim};

/// Warps of a block.
const WARPS: u64 = 4;

/// Query heads whose queries and sums a thread holds in registers.
const MOST_HEADS: u64 = 8;

/// Numbers beside the weighted sum that a block of positions leaves: the maximum and the sum.
const STATISTICS: u64 = 2;

/// What the kernel is cut into.
#[derive(Clone, Copy, Debug)]
struct Cut {
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    /// Query heads that a block takes together.
    heads_together: u64,
    /// Blocks of query heads for one kv head.
    head_blocks: u64,
    /// Blocks of positions that run side by side; 1 where a block goes through all.
    position_blocks: u64,
    /// Inputs of 16 bytes of a key.
    unit: u64,
    /// Threads side by side on one position, a power of two.
    threads_together: u64,
}

impl Cut {
    fn new(request: &KernelRequest) -> Self {
        let cache = &request.caches[0];
        let heads = request.outputs[0].row_elements() / cache.head_dim;
        let of_kv_head = heads / cache.kv_heads;
        // As many blocks as needed, all of the same number of heads.
        let head_blocks = (1..=of_kv_head)
            .find(|blocks| of_kv_head.is_multiple_of(*blocks) && of_kv_head / blocks <= MOST_HEADS)
            .unwrap_or(of_kv_head);
        let unit = UNIT_BYTES / cache.element.bytes();
        Self {
            heads,
            kv_heads: cache.kv_heads,
            head_dim: cache.head_dim,
            heads_together: of_kv_head / head_blocks,
            head_blocks,
            position_blocks: if request.max_rows == 1 { cache.blocks() } else { 1 },
            unit,
            threads_together: (padded_head_dim(cache) / unit).next_power_of_two(),
        }
    }

    fn is_split(self) -> bool {
        self.position_blocks > 1
    }

    /// Byte of shared memory at which the scores `[heads_together, 256]` start.
    fn scores_at_bytes(self) -> u64 {
        REDUCTION_BYTES
    }

    /// Byte at which the queries' maximum, sum and factor `[3, heads_together]` start.
    fn statistics_at_bytes(self) -> u64 {
        self.scores_at_bytes() + self.heads_together * CACHE_BLOCK_POSITIONS * 4
    }

    /// Byte at which the sums `[warp, heads_together, head_dim]` start.
    fn sums_at_bytes(self) -> u64 {
        (self.statistics_at_bytes() + 3 * self.heads_together * 4).next_multiple_of(UNIT_BYTES)
    }

    fn shared_bytes(self) -> u64 {
        self.sums_at_bytes() + WARPS * self.heads_together * self.head_dim * 4
    }
}

/// Bytes of partial results, `[row, head, block of positions, head_dim + 2]` in `f32`.
pub(super) fn workspace_bytes(request: &KernelRequest) -> u64 {
    let cut = Cut::new(request);
    let partial = (cut.head_dim + STATISTICS) * 4;
    if cut.is_split() { request.max_rows * cut.heads * cut.position_blocks * partial } else { 0 }
}

/// One launch over positions, and where they are split one that merges.
pub(super) fn launches(request: &KernelRequest) -> Vec<(&'static str, Shape)> {
    if let Some(cut) = flash_attention::Cut::new(request) {
        return vec![("", flash_attention::shape(cut))];
    }
    let cut = Cut::new(request);
    let threads = WARPS * u64::from(WARP_THREADS);
    let blocks = cut.kv_heads * cut.head_blocks * cut.position_blocks;
    let first =
        Shape { blocks, rows_per_block: 1, threads, shared_bytes: cut.shared_bytes(), ..Shape::row(request) };
    if !cut.is_split() {
        return vec![("", first)];
    }
    let merge = Shape { blocks: cut.heads, threads, ..Shape::row(request) };
    vec![("", first), ("_merge", merge)]
}

/// One of the launches.
pub(super) fn body(kernel: &Kernel<'_, '_>, launch: usize, scale: f32) {
    if let Some(cut) = flash_attention::Cut::new(kernel.request) {
        flash_attention::body(kernel, cut, scale);
        return;
    }
    let cut = Cut::new(kernel.request);
    if launch == 0 { attend(kernel, cut, scale) } else { merge(kernel, cut) }
}

/// What a block of threads works on.
struct Work<'k> {
    cut: Cut,
    /// First query head.
    first_head: Val<'k>,
    keys: Buffer<'k>,
    values: Buffer<'k>,
    /// Positions that the row sees.
    count: Val<'k>,
    /// The thread's number in its warp, and its warp's.
    lane: Val<'k>,
    warp: Val<'k>,
    /// First element of the head that the thread reads.
    element: Val<'k>,
    /// Whether the head has that element.
    has_element: Val<'k>,
}

fn attend(kernel: &Kernel<'_, '_>, cut: Cut, scale: f32) {
    let k = kernel.k;
    let row = kernel.row();
    let block = kernel.block();
    let (position_block, head_block) =
        (block % k.int(cut.position_blocks), block / k.int(cut.position_blocks));
    let kv_head = head_block / k.int(cut.head_blocks);
    let slot = kernel.input(2).load_index(row);
    let (thread, threads) = (kernel.thread(), k.int(WARP_THREADS));
    let lane = thread % threads;
    let element = lane % k.int(cut.threads_together) * k.int(cut.unit);
    let work = Work {
        cut,
        first_head: head_block * k.int(cut.heads_together),
        keys: head_cache(kernel, 0, slot, kv_head),
        values: head_cache(kernel, 1, slot, kv_head),
        count: kernel.input(1).load_index(row) + k.int(1),
        lane,
        warp: thread / threads,
        element,
        has_element: element.compare(Compare::Less, k.int(cut.head_dim)),
    };
    let sums = vec![k.float(0.0, 1); (cut.heads_together * cut.unit) as usize];
    if cut.is_split() {
        let first = position_block * k.int(CACHE_BLOCK_POSITIONS);
        k.when(first.compare(Compare::Less, work.count), || {
            let queries = load_queries(kernel, &work, row, scale);
            let sums = work.add_positions(kernel, first, &queries, &sums, true);
            work.store(kernel, row, &sums, Some(position_block));
        });
        return;
    }
    let queries = load_queries(kernel, &work, row, scale);
    let block_positions = CACHE_BLOCK_POSITIONS as i64;
    let zero = k.int(0);
    // The first block has no statistics before it.
    let sums = work.add_positions(kernel, zero, &queries, &sums, true);
    let sums = k.for_each(k.int(block_positions), work.count, block_positions, &sums, |first, sums| {
        work.add_positions(kernel, first, &queries, sums, false)
    });
    work.store(kernel, row, &sums, None);
}

/// The thread's elements of all queries, times the scale.
fn load_queries<'k>(kernel: &Kernel<'k, '_>, work: &Work<'k>, row: Val<'k>, scale: f32) -> Vec<Val<'k>> {
    let (k, cut) = (kernel.k, work.cut);
    let head_dim = k.int(cut.head_dim);
    let first = (row * k.int(cut.heads) + work.first_head) * head_dim;
    let zero = [k.float(0.0, 1)];
    let mut queries = Vec::new();
    for head in 0..cut.heads_together {
        let query = kernel.input(0).at(first + k.int(head * cut.head_dim));
        for index in 0..cut.unit {
            let column = work.element + k.int(index);
            let exists = column.compare(Compare::Less, head_dim);
            let value = k.values_when(exists, &zero, || vec![query.load(column, 1)])[0];
            queries.push(value * k.float(scale, 1));
        }
    }
    queries
}

impl<'k> Work<'k> {
    /// Goes through 256 positions from `first` on; returns the sums with them.
    fn add_positions(
        &self,
        kernel: &Kernel<'k, '_>,
        first: Val<'k>,
        queries: &[Val<'k>],
        sums: &[Val<'k>],
        is_first: bool,
    ) -> Vec<Val<'k>> {
        let (k, cut) = (kernel.k, self.cut);
        let count = (self.count - first).minimum(k.int(CACHE_BLOCK_POSITIONS));
        let scores = k.shared_memory(Element::F32, cut.scores_at_bytes());
        // The block before has been read by now.
        k.barrier();
        self.for_each_position(kernel, count, &[], |position, is_position, _| {
            let key = self.load(kernel, self.keys, first + position);
            for head in 0..cut.heads_together {
                let query = &queries[(head * cut.unit) as usize..][..cut.unit as usize];
                let product = key
                    .iter()
                    .zip(query)
                    .fold(k.float(0.0, 1), |sum, (key, query)| key.multiply_add(*query, sum));
                let score = product.reduce_lanes(Reduction::Sum, cut.threads_together as u32);
                let is_writer = k.both(is_position, k.is_zero(self.element));
                k.when(is_writer, || {
                    scores.store(position + k.int(head * CACHE_BLOCK_POSITIONS), score);
                });
            }
            Vec::new()
        });
        k.barrier();
        self.exponentiate(kernel, count, is_first);
        k.barrier();
        let statistics = k.shared_memory(Element::F32, cut.statistics_at_bytes());
        let sums: Vec<Val<'k>> = if is_first {
            sums.to_vec()
        } else {
            let factor = |head: u64| statistics.load(k.int(2 * cut.heads_together + head), 1);
            let factors: Vec<Val<'k>> = (0..cut.heads_together).map(factor).collect();
            sums.iter().enumerate().map(|(index, sum)| *sum * factors[index / cut.unit as usize]).collect()
        };
        self.for_each_position(kernel, count, &sums, |position, is_position, sums| {
            let value = self.load(kernel, self.values, first + position);
            let mut sums = sums.to_vec();
            for head in 0..cut.heads_together {
                let weight = scores.load(position + k.int(head * CACHE_BLOCK_POSITIONS), 1);
                let weight = is_position.select(weight, k.float(0.0, 1));
                for (index, value) in value.iter().enumerate() {
                    let sum = &mut sums[head as usize * cut.unit as usize + index];
                    *sum = weight.multiply_add(*value, *sum);
                }
            }
            sums
        })
    }

    /// `body(position, whether it exists, carried)` for positions below `count`, shared out to warps and to
    /// the groups of threads in them. Positions that do not exist are the last one again.
    fn for_each_position(
        &self,
        kernel: &Kernel<'k, '_>,
        count: Val<'k>,
        carried: &[Val<'k>],
        body: impl FnOnce(Val<'k>, Val<'k>, &[Val<'k>]) -> Vec<Val<'k>>,
    ) -> Vec<Val<'k>> {
        let (k, cut) = (kernel.k, self.cut);
        let side_by_side = u64::from(WARP_THREADS) / cut.threads_together;
        let step = WARPS * side_by_side;
        let start = self.warp * k.int(side_by_side);
        let last = count - k.int(1);
        k.for_each(start, count, step as i64, carried, |first, carried| {
            let position = first + self.lane / k.int(cut.threads_together);
            let exists = position.compare(Compare::Less, count);
            body(position.minimum(last), exists, carried)
        })
    }

    /// The thread's elements of an entry of a cache.
    fn load(&self, kernel: &Kernel<'k, '_>, cache: Buffer<'k>, position: Val<'k>) -> Vec<Val<'k>> {
        let (k, cut) = (kernel.k, self.cut);
        let padded = padded_head_dim(kernel.cache_type(0));
        let entry = cache.at(position * k.int(padded));
        let zeros = vec![k.float(0.0, 1); cut.unit as usize];
        let read = || {
            // Elements between the head and whole loads were never written.
            if padded != cut.head_dim {
                return (0..cut.unit)
                    .map(|index| {
                        let column = self.element + k.int(index);
                        let exists = column.compare(Compare::Less, k.int(cut.head_dim));
                        k.values_when(exists, &zeros[..1], || vec![entry.load(column, 1)])[0]
                    })
                    .collect();
            }
            let loaded = entry.load_aligned(self.element, cut.unit as u32);
            (0..cut.unit as u32).map(|lane| loaded.lane(lane)).collect::<Vec<_>>()
        };
        if cut.threads_together * cut.unit == cut.head_dim {
            return read();
        }
        k.values_when(self.has_element, &zeros, read)
    }

    /// Turns scores into exponentials; notes maximum, sum, and the factor for what came before.
    fn exponentiate(&self, kernel: &Kernel<'k, '_>, count: Val<'k>, is_first: bool) {
        let (k, cut) = (kernel.k, self.cut);
        let statistics = k.shared_memory(Element::F32, cut.statistics_at_bytes());
        let threads = i64::from(WARP_THREADS);
        let heads = k.int(cut.heads_together);
        k.repeat(self.warp, heads, WARPS as i64, |head| {
            let scores =
                k.shared_memory(Element::F32, cut.scores_at_bytes()).at(head * k.int(CACHE_BLOCK_POSITIONS));
            let largest =
                k.for_each(self.lane, count, threads, &[k.float(f32::MIN, 1)], |position, largest| {
                    vec![largest[0].maximum(scores.load(position, 1))]
                })[0];
            let mut largest = largest.reduce_lanes(Reduction::Maximum, WARP_THREADS);
            let (maximum, sum, factor) =
                (statistics.at(head), statistics.at(heads + head), statistics.at(heads + heads + head));
            let before =
                if is_first { None } else { Some((maximum.load(k.int(0), 1), sum.load(k.int(0), 1))) };
            if let Some((maximum, _)) = before {
                largest = largest.maximum(maximum);
            }
            let total = k.for_each(self.lane, count, threads, &[k.float(0.0, 1)], |position, total| {
                let weight = exp(k, scores.load(position, 1) - largest);
                scores.store(position, weight);
                vec![total[0] + weight]
            })[0];
            let mut total = total.reduce_lanes(Reduction::Sum, WARP_THREADS);
            let shrink = before.map(|(maximum, _)| exp(k, maximum - largest));
            if let (Some((_, sum)), Some(shrink)) = (before, shrink) {
                total = sum.multiply_add(shrink, total);
            }
            k.warp_barrier();
            k.when(k.is_zero(self.lane), || {
                maximum.store(k.int(0), largest);
                sum.store(k.int(0), total);
                if let Some(shrink) = shrink {
                    factor.store(k.int(0), shrink);
                }
            });
        });
    }

    /// Folds the sums over threads and warps, and stores them: as the result, or as a partial one.
    fn store(&self, kernel: &Kernel<'k, '_>, row: Val<'k>, sums: &[Val<'k>], block: Option<Val<'k>>) {
        let (k, cut) = (kernel.k, self.cut);
        let of_warps = k.shared_memory(Element::F32, cut.sums_at_bytes());
        let width = cut.heads_together * cut.head_dim;
        let is_writer = self.lane.compare(Compare::Less, k.int(cut.threads_together));
        for (index, sum) in sums.iter().enumerate() {
            let mut sum = *sum;
            let mut distance = WARP_THREADS / 2;
            while u64::from(distance) >= cut.threads_together {
                sum = sum + sum.of_lane_across(distance);
                distance /= 2;
            }
            let (head, column) = (index as u64 / cut.unit, self.element + k.int(index as u64 % cut.unit));
            let exists = k.both(is_writer, column.compare(Compare::Less, k.int(cut.head_dim)));
            k.when(exists, || {
                of_warps.store(self.warp * k.int(width) + k.int(head * cut.head_dim) + column, sum);
            });
        }
        k.barrier();
        let statistics = k.shared_memory(Element::F32, cut.statistics_at_bytes());
        let heads = k.int(cut.heads_together);
        let first_head = row * k.int(cut.heads) + self.first_head;
        kernel.for_each(k.int(width), |place| {
            let sum = (1..WARPS).fold(of_warps.load(place, 1), |sum, warp| {
                sum + of_warps.load(place + k.int(warp * width), 1)
            });
            let (head, column) = (place / k.int(cut.head_dim), place % k.int(cut.head_dim));
            match block {
                None => {
                    let out = kernel.output(0).at(first_head * k.int(cut.head_dim));
                    out.store(place, sum / statistics.load(heads + head, 1));
                }
                Some(block) => partial(kernel, cut, first_head + head, block).store(column, sum),
            }
        });
        let Some(block) = block else { return };
        kernel.for_each(heads, |head| {
            let partial = partial(kernel, cut, first_head + head, block);
            partial.store(k.int(cut.head_dim), statistics.load(head, 1));
            partial.store(k.int(cut.head_dim + 1), statistics.load(heads + head, 1));
        });
    }
}

/// The partial result of `(row · heads + head, block of positions)`.
fn partial<'k>(kernel: &Kernel<'k, '_>, cut: Cut, head: Val<'k>, block: Val<'k>) -> Buffer<'k> {
    let k = kernel.k;
    let place = head * k.int(cut.position_blocks) + block;
    kernel.workspace().at(place * k.int(cut.head_dim + STATISTICS))
}

/// Merges the partial results of one query head of one row, block by block.
fn merge(kernel: &Kernel<'_, '_>, cut: Cut) {
    let k = kernel.k;
    let row = kernel.row();
    let head = row * k.int(cut.heads) + kernel.block();
    let count = kernel.input(1).load_index(row) + k.int(1);
    let blocks = count.divide_up(CACHE_BLOCK_POSITIONS as i64);
    let (zero, maximum_at, sum_at) = (k.int(0), k.int(cut.head_dim), k.int(cut.head_dim + 1));
    let largest = k.for_each(zero, blocks, 1, &[k.float(f32::MIN, 1)], |block, largest| {
        vec![largest[0].maximum(partial(kernel, cut, head, block).load(maximum_at, 1))]
    })[0];
    let out = kernel.output(0).at(head * k.int(cut.head_dim));
    kernel.for_each(k.int(cut.head_dim), |column| {
        let sums = k.for_each(zero, blocks, 1, &[k.float(0.0, 1), k.float(0.0, 1)], |block, sums| {
            let partial = partial(kernel, cut, head, block);
            let factor = exp(k, partial.load(maximum_at, 1) - largest);
            vec![
                factor.multiply_add(partial.load(column, 1), sums[0]),
                factor.multiply_add(partial.load(sum_at, 1), sums[1]),
            ]
        });
        out.store(column, sums[0] / sums[1]);
    });
}

//! `attention` for prompts on the matrix unit (Dao 2023).
//!
//! ```text
//! a block takes 64 queries of a kv head: (row, query head) pairs, all heads of a row before the next row
//! each of its 4 warps takes 16 of them, in registers as operands of the matrix unit
//!
//! for 64 positions up to that of the block's last row:     the next 64 are on their way to shared memory
//!   scores[16, 64] = queries · keys
//!   positions behind the query's own: −∞
//!   maximum, factor for what came before, exponentials     in f32; four threads share a row
//!   out[16, head_dim] = factor · out + weights · values    weights rounded to the values' type
//! out / sum
//! ```
//!
//! The scores of a product are where the next product wants its left operand, so that weights never leave the
//! registers. Of 64 · 64 · head_dim · 4 operations a block needs 2 · 64 · head_dim · 2 bytes: 64 for each byte.
//! With heads of 128 elements a thread holds 64 sums, 32 dwords of queries and 32 scores; two stages of keys
//! and values take 68 KiB of shared memory. Rows there are 16 bytes longer than a head: `ldmatrix` reads eight
//! of them at a time, and they start in different banks.

use qwen2c_request::{Element, KernelRequest};

use super::cache::head_cache;
use super::{Kernel, Shape};
use crate::builder::{Buffer, Compare, Reduction, Scalar, Val, WARP_THREADS};
use crate::cuda::layout::UNIT_BYTES;

/// Warps of a block.
const WARPS: u64 = 4;

/// Queries of a warp: rows of the matrix unit's left operand.
const WARP_QUERIES: u64 = 16;

/// Queries of a block.
const BLOCK_QUERIES: u64 = WARPS * WARP_QUERIES;

/// Positions whose keys and values are in shared memory together.
const POSITIONS: u64 = 64;

/// Columns of a product of the matrix unit, and inputs that it sums over.
const COLUMNS: u64 = 8;
const DEPTH: u64 = 16;

/// Stages of keys and values.
const STAGES: u64 = 2;

/// Longer heads would not fit the registers.
const LONGEST_HEAD: u64 = 128;

/// What the kernel is cut into.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// Type of keys and values.
    element: Element,
    kv_heads: u64,
    /// Query heads of a kv head.
    group: u64,
    head_dim: u64,
}

impl Cut {
    /// How the kernel is cut; None where its types or sizes are not for the matrix unit.
    pub(super) fn new(request: &KernelRequest) -> Option<Self> {
        let cache = &request.caches[0];
        let output = &request.outputs[0];
        let group = output.row_elements() / cache.head_dim / cache.kv_heads;
        // Rows of one block may then share keys and values.
        let is_one_sequence = cache.slots == 1;
        let fits = cache.element.bytes() == 2
            && output.element == cache.element
            && cache.head_dim.is_multiple_of(DEPTH)
            && cache.head_dim <= LONGEST_HEAD;
        (request.max_rows > 1 && is_one_sequence && fits).then_some(Self {
            element: cache.element,
            kv_heads: cache.kv_heads,
            group,
            head_dim: cache.head_dim,
        })
    }

    /// Bytes between the keys of two positions in shared memory.
    fn row_bytes(self) -> u64 {
        self.head_dim * 2 + UNIT_BYTES
    }

    /// Bytes of the keys, or values, of a stage.
    fn half_stage_bytes(self) -> u64 {
        POSITIONS * self.row_bytes()
    }

    /// Loads of 16 bytes that make a key.
    fn units(self) -> u64 {
        self.head_dim * 2 / UNIT_BYTES
    }
}

/// One block for each kv head and some queries: as many as the queries of 64 rows fill.
pub(super) fn shape(cut: Cut) -> Shape {
    Shape {
        blocks: cut.kv_heads * cut.group,
        rows_per_block: BLOCK_QUERIES,
        threads: WARPS * u64::from(WARP_THREADS),
        shared_bytes: STAGES * 2 * cut.half_stage_bytes(),
        blocks_at_once: Some(2),
    }
}

/// Attention of 64 queries.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, cut: Cut, scale: f32) {
    let k = kernel.k;
    let block = kernel.row() * k.int(cut.kv_heads * cut.group) + kernel.block();
    let kv_head = block % k.int(cut.kv_heads);
    let queries = kernel.rows * k.int(cut.group);
    // The last rows see most positions and begin first. Blocks for more rows than there are come behind them.
    let number = queries.divide_up(BLOCK_QUERIES as i64) - k.int(1) - block / k.int(cut.kv_heads);
    let first_query = number * k.int(BLOCK_QUERIES);
    k.when(k.int(-1).compare(Compare::Less, number), || {
        let threads = k.int(WARP_THREADS);
        let (warp, lane) = (kernel.thread() / threads, kernel.thread() % threads);
        let last_query = queries - k.int(1);
        let own = first_query + warp * k.int(WARP_QUERIES) + lane / k.int(4);
        // Queries that do not exist are the last one again, and are not stored.
        let places = [0, WARP_QUERIES / 2].map(|offset| own + k.int(offset));
        let query = |place: Val<'k>| place.minimum(last_query);
        let position = |query: Val<'k>| kernel.input(1).load(query / k.int(cut.group), 1);
        let block_last = query(first_query + k.int(BLOCK_QUERIES - 1));
        let work = Attention {
            kernel,
            cut,
            kv_head,
            lane,
            quarter: lane % k.int(4),
            queries: places.map(query),
            exists: places.map(|place| place.compare(Compare::Less, queries)),
            positions: places.map(|place| position(query(place))),
            count: position(block_last).extend(Scalar::I64) + k.int(1),
            scale: scale * std::f32::consts::LOG2_E,
        };
        work.run();
    });
}

/// One thread's part in a block.
struct Attention<'k, 'r> {
    kernel: &'r Kernel<'k, 'r>,
    cut: Cut,
    kv_head: Val<'k>,
    /// The thread's number in its warp, and among the four that share two queries.
    lane: Val<'k>,
    quarter: Val<'k>,
    /// The two queries, 8 apart, whether they exist, and their positions in 32 bits.
    queries: [Val<'k>; 2],
    exists: [Val<'k>; 2],
    positions: [Val<'k>; 2],
    /// Positions that the block's last query sees.
    count: Val<'k>,
    /// Of the scores, with the factor that makes `exp` a power of two.
    scale: f32,
}

/// What a thread carries from one stage to the next.
#[derive(Clone)]
struct State<'k> {
    /// `[8 columns of out, 4]`.
    sums: Vec<Val<'k>>,
    /// Largest score of each query, scaled, and its thread's sum of exponentials.
    largest: [Val<'k>; 2],
    totals: [Val<'k>; 2],
}

impl<'k> State<'k> {
    fn values(&self) -> Vec<Val<'k>> {
        self.sums.iter().chain(&self.largest).chain(&self.totals).copied().collect()
    }

    fn from_values(values: &[Val<'k>]) -> Self {
        let (sums, rest) = values.split_at(values.len() - 4);
        Self { sums: sums.to_vec(), largest: [rest[0], rest[1]], totals: [rest[2], rest[3]] }
    }
}

impl<'k> Attention<'k, '_> {
    fn run(&self) {
        let (k, cut) = (self.kernel.k, self.cut);
        let queries = self.load_queries();
        let zero = k.float(0.0, 1);
        let start = State {
            sums: vec![zero; (cut.head_dim / COLUMNS * 4) as usize],
            largest: [k.float(f32::MIN, 1); 2],
            totals: [zero; 2],
        };
        self.begin_copies(k.int(0));
        k.close_copy_group();
        let end = k.for_each(k.int(0), self.count, POSITIONS as i64, &start.values(), |first, carried| {
            k.wait_for_copy_groups(0);
            // All copies of this stage are there, and all threads are done with the stage before.
            k.barrier();
            let next = first + k.int(POSITIONS);
            k.when(next.compare(Compare::Less, self.count), || self.begin_copies(next));
            k.close_copy_group();
            self.add_stage(first, &queries, State::from_values(carried)).values()
        });
        self.store(&State::from_values(&end));
    }

    /// Byte of shared memory at which the stage of positions from `first` on begins.
    fn stage_at_bytes(&self, first: Val<'k>) -> Val<'k> {
        let k = self.kernel.k;
        first / k.int(POSITIONS) % k.int(STAGES) * k.int(2 * self.cut.half_stage_bytes())
    }

    /// Begins to copy keys and values of the positions from `first` on. What nobody wrote is not read.
    fn begin_copies(&self, first: Val<'k>) {
        let (kernel, cut) = (self.kernel, self.cut);
        let (k, thread) = (kernel.k, kernel.thread());
        let stage = self.stage_at_bytes(first);
        for (cache, half) in [(0, 0), (1, cut.half_stage_bytes())] {
            let from = head_cache(kernel, cache, k.int(0), self.kv_head).at(first * k.int(cut.head_dim));
            let from = from.at_bytes(thread * k.int(UNIT_BYTES));
            let copies = POSITIONS * cut.units() / kernel.shape.threads;
            for copy in 0..copies {
                let unit = thread + k.int(copy * kernel.shape.threads);
                let position = unit / k.int(cut.units());
                // A row of shared memory is one unit longer than a key.
                let to = stage + k.int(half) + (unit + position) * k.int(UNIT_BYTES);
                let exists = (first + position).compare(Compare::Less, self.count);
                let bytes = exists.select(k.int_of(Scalar::I32, UNIT_BYTES as i64), k.int_of(Scalar::I32, 0));
                let source = from.at_bytes(k.int(copy * kernel.shape.threads * UNIT_BYTES));
                k.copy_16_bytes_in_background(k.shared_address(to), source, Some(bytes));
            }
        }
    }

    /// `[16 elements of the head]`: the left operands of the scores.
    fn load_queries(&self) -> Vec<[Val<'k>; 4]> {
        let (k, cut) = (self.kernel.k, self.cut);
        let queries = self.queries.map(|query| self.head_of(self.kernel.input(0), query));
        let pair = |half: usize, element: u64| {
            let at = self.quarter * k.int(2) + k.int(element);
            let loaded = queries[half].load_aligned(at, 2);
            loaded.lane(0).pair_with(cut.element, loaded.lane(1))
        };
        (0..cut.head_dim)
            .step_by(DEPTH as usize)
            .map(|first| [pair(0, first), pair(1, first), pair(0, first + 8), pair(1, first + 8)])
            .collect()
    }

    /// The query's head in `[rows, heads, head_dim]`.
    fn head_of(&self, buffer: Buffer<'k>, query: Val<'k>) -> Buffer<'k> {
        let (k, cut) = (self.kernel.k, self.cut);
        let group = k.int(cut.group);
        let head = query / group * k.int(cut.kv_heads * cut.group) + self.kv_head * group + query % group;
        buffer.at(head * k.int(cut.head_dim))
    }

    fn add_stage(&self, first: Val<'k>, queries: &[[Val<'k>; 4]], state: State<'k>) -> State<'k> {
        let stage = self.stage_at_bytes(first);
        let mut scores = self.scores(stage, queries);
        self.hide_later_positions(first, &mut scores);
        let (state, weights) = self.exponentiate(&scores, state);
        let sums = self.add_values(stage, &weights, &state.sums);
        State { sums, ..state }
    }

    /// `[8 positions, 4]`: products of the queries with keys.
    fn scores(&self, stage: Val<'k>, queries: &[[Val<'k>; 4]]) -> Vec<[Val<'k>; 4]> {
        let (k, cut) = (self.kernel.k, self.cut);
        // Tiles of keys: two of positions, each with two of elements.
        let eight = k.int(8);
        let row = self.lane % eight + self.lane / k.int(16) * eight;
        let unit = self.lane / eight % k.int(2);
        let thread_at = stage + row * k.int(cut.row_bytes()) + unit * k.int(UNIT_BYTES);
        let thread_at = k.shared_address(thread_at);
        let mut scores = vec![[k.float(0.0, 1); 4]; (POSITIONS / COLUMNS) as usize];
        for (step, query) in queries.iter().enumerate() {
            for (pair, scores) in scores.chunks_mut(2).enumerate() {
                let at_bytes = pair as u64 * 2 * COLUMNS * cut.row_bytes() + step as u64 * DEPTH * 2;
                let keys = k.load_matrix_tiles(thread_at.offset_by_bytes(at_bytes), false);
                for (scores, keys) in scores.iter_mut().zip(keys.as_chunks::<2>().0) {
                    *scores = k.multiply_tiles(cut.element, *query, *keys, *scores);
                }
            }
        }
        scores
    }

    /// Lowers the scores of positions behind a query's own to nothing.
    fn hide_later_positions(&self, first: Val<'k>, scores: &mut [[Val<'k>; 4]]) {
        let k = self.kernel.k;
        let lowest = k.float(f32::NEG_INFINITY, 1);
        // Number, counted from the thread's first one, of the last position that a query sees.
        let before = (first + self.quarter * k.int(2)).truncate(Scalar::I32);
        let last = self.positions.map(|position| position - before);
        for (tile, scores) in scores.iter_mut().enumerate() {
            for (index, score) in scores.iter_mut().enumerate() {
                let number = tile as i64 * COLUMNS as i64 + index as i64 % 2;
                let is_later = last[index / 2].compare(Compare::Less, k.int_of(Scalar::I32, number));
                *score = is_later.select(lowest, *score);
            }
        }
    }

    /// The weights of the values as left operands, and the state with their totals and with the sums so far
    /// scaled to the largest score.
    fn exponentiate(&self, scores: &[[Val<'k>; 4]], state: State<'k>) -> (State<'k>, Vec<[Val<'k>; 4]>) {
        let k = self.kernel.k;
        let scale = k.float(self.scale, 1);
        let largest = [0, 1].map(|half: usize| {
            let own = scores.iter().flat_map(|tile| &tile[2 * half..][..2]).copied();
            let largest = own.reduce(Val::larger).expect("there are scores");
            (largest.reduce_lanes(Reduction::Maximum, 4) * scale).larger(state.largest[half])
        });
        let zero = k.float(0.0, 1);
        let exponentials: Vec<[Val<'k>; 4]> = scores
            .iter()
            .map(|tile| {
                std::array::from_fn(|index| {
                    tile[index].multiply_add(scale, zero - largest[index / 2]).exp2_approximate()
                })
            })
            .collect();
        let factors = [0, 1].map(|half: usize| (state.largest[half] - largest[half]).exp2_approximate());
        let totals = [0, 1].map(|half: usize| {
            let own = exponentials.iter().flat_map(|tile| &tile[2 * half..][..2]);
            own.fold(state.totals[half] * factors[half], |total, weight| total + *weight)
        });
        let sums = state.sums.iter().enumerate().map(|(index, sum)| *sum * factors[index % 4 / 2]).collect();
        let pair =
            |tile: &[Val<'k>; 4], half: usize| tile[2 * half].pair_with(self.cut.element, tile[2 * half + 1]);
        let weights = exponentials
            .as_chunks::<2>()
            .0
            .iter()
            .map(|[low, high]| [pair(low, 0), pair(low, 1), pair(high, 0), pair(high, 1)])
            .collect();
        (State { sums, largest, totals }, weights)
    }

    /// The sums with the weighted values.
    fn add_values(&self, stage: Val<'k>, weights: &[[Val<'k>; 4]], sums: &[Val<'k>]) -> Vec<Val<'k>> {
        let (k, cut) = (self.kernel.k, self.cut);
        // Tiles of values, turned: two of elements, each with two of positions.
        let row = self.lane % k.int(16);
        let unit = self.lane / k.int(16);
        let thread_at = stage + row * k.int(cut.row_bytes()) + unit * k.int(UNIT_BYTES);
        let thread_at = k.shared_address(thread_at + k.int(cut.half_stage_bytes()));
        let mut sums: Vec<[Val<'k>; 4]> = sums.as_chunks().0.to_vec();
        for (step, weights) in weights.iter().enumerate() {
            for (pair, sums) in sums.chunks_mut(2).enumerate() {
                let at_bytes = step as u64 * DEPTH * cut.row_bytes() + pair as u64 * 2 * UNIT_BYTES;
                let values = k.load_matrix_tiles(thread_at.offset_by_bytes(at_bytes), true);
                for (sums, values) in sums.iter_mut().zip(values.as_chunks::<2>().0) {
                    *sums = k.multiply_tiles(cut.element, *weights, *values, *sums);
                }
            }
        }
        sums.concat()
    }

    /// Divides by the totals and stores.
    fn store(&self, state: &State<'k>) {
        let (k, cut) = (self.kernel.k, self.cut);
        for half in 0..2 {
            let total = state.totals[half].reduce_lanes(Reduction::Sum, 4);
            let inverse = k.float(1.0, 1) / total;
            let out = self.head_of(self.kernel.output(0), self.queries[half]).seen_as(Element::I32);
            k.when(self.exists[half], || {
                for (tile, sums) in state.sums.chunks(4).enumerate() {
                    let (low, high) = (sums[2 * half] * inverse, sums[2 * half + 1] * inverse);
                    // Two elements make a dword.
                    let place = self.quarter + k.int(tile as u64 * COLUMNS / 2);
                    out.store(place, low.pair_with(cut.element, high));
                }
            });
        }
    }
}

//! `top_k` of many numbers: the largest of all logits, largest first, the lower id first where equal.
//!
//! ```text
//! key = the number's bits in the order of numbers, then the index turned round: no two are equal
//!
//! first launch, a block for 2048 numbers of a row:
//!   warp, for 8 runs of 64 keys, two in each thread:     sort (bitonic, Batcher 1968), largest first
//!   merge the runs in pairs                              keep the larger of a[i] and b[63 − i], sort again
//!   merge the warps' 64 in pairs, through shared memory
//! second launch, a block for a row:
//!   warp, for every fourth of the blocks' lists:         merge them in pairs, and into its own
//!   merge the warps' 64 in pairs; the first k become the result
//! ```
//!
//! Every comparison stands at a fixed place: the time does not depend on the numbers, and whatever they are,
//! NaN included, each key goes to exactly one place.
//!
//! Sorting 64 keys takes 21 stages, of which 15 exchange keys between threads, and merging takes 6. For
//! 151936 logits each warp of 75 blocks runs 4100 instructions, on an A100 with a scheduler of its own: 3 µs.
//! Then a warp merges 19 lists, of which 12 wait for one another at 350 cycles each: 3 µs. Copying the logits
//! to the host would take 25 µs on PCI Express 4.0, and searching them there longer.

use qwen2c_request::{Element, KernelRequest, Operation};

use super::{DECODE_THREADS, Kernel, ROW_THREADS, Shape};
use crate::builder::{Buffer, Compare, KernelBuilder, Scalar, Val, WARP_THREADS};

/// Keys that a warp holds, two in each thread; the most that can be asked for.
const LIST: u64 = 2 * WARP_THREADS as u64;

/// Lists that a warp sorts, or reads and merges, side by side: one's comparisons hide the latency of another's
/// exchange. A power of two.
const TOGETHER: u64 = 8;

const WARPS: u64 = DECODE_THREADS / WARP_THREADS as u64;

const KEY_BYTES: u64 = 8;

/// Below the key of any number.
const NOTHING: i64 = i64::MIN;

/// What a row is cut into.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    numbers: u64,
    k: u64,
    /// Blocks of the first launch for a row.
    slices: u64,
}

impl Cut {
    /// None where the row is that of a router: few experts, of which each thread counts how many are larger.
    pub(super) fn new(request: &KernelRequest) -> Option<Self> {
        let Operation::TopK { k, normalize: false } = request.operation else { return None };
        let numbers = request.inputs[0].columns();
        let is_small = numbers <= ROW_THREADS && k < LIST / 4;
        if is_small || k > LIST {
            return None;
        }
        Some(Self { numbers, k, slices: numbers.div_ceil(WARPS * TOGETHER * LIST) })
    }
}

/// Bytes of the lists that the first launch leaves, `[row, slice, 64]` keys.
pub(super) fn workspace_bytes(request: &KernelRequest) -> u64 {
    match Cut::new(request) {
        Some(cut) if cut.slices > 1 => request.max_rows * cut.slices * LIST * KEY_BYTES,
        _ => 0,
    }
}

/// One launch over slices, and where there are several one that merges.
pub(super) fn launches(request: &KernelRequest, cut: Cut) -> Vec<(&'static str, Shape)> {
    let shared_bytes = WARPS * LIST * KEY_BYTES;
    let shape = |blocks| Shape { blocks, threads: DECODE_THREADS, shared_bytes, ..Shape::row(request) };
    if cut.slices == 1 { vec![("", shape(1))] } else { vec![("", shape(cut.slices)), ("_merge", shape(1))] }
}

/// One of the launches.
pub(super) fn body(kernel: &Kernel<'_, '_>, cut: Cut, launch: usize) {
    let k = kernel.k;
    let (thread, threads) = (kernel.thread(), k.int(WARP_THREADS));
    let warp = Warp { k, lane: thread % threads, number: thread / threads };
    let row = kernel.row();
    if launch == 0 {
        let slice = kernel.block();
        let list = warp.merge_with_others(warp.largest_of_runs(kernel, cut, row, slice));
        if cut.slices > 1 {
            let lists = kernel.workspace();
            let first = (row * k.int(cut.slices) + slice) * k.int(LIST);
            warp.when_first(|| warp.write(lists, first, list));
        } else {
            warp.write_result(kernel, cut, row, list);
        }
    } else {
        let list = warp.merge_with_others(warp.largest_of_lists(kernel, cut, row));
        warp.write_result(kernel, cut, row, list);
    }
}

/// Two neighbouring keys of a list of 64 in each thread of a warp.
type Pair<'k> = [Val<'k>; 2];

/// A warp at work; every thread of it calls all of these.
struct Warp<'k> {
    k: &'k KernelBuilder<'k>,
    /// The thread's number in its warp.
    lane: Val<'k>,
    /// The warp's number in its block.
    number: Val<'k>,
}

impl<'k> Warp<'k> {
    /// The largest 64 of the warp's share of a slice.
    fn largest_of_runs(&self, kernel: &Kernel<'k, '_>, cut: Cut, row: Val<'k>, slice: Val<'k>) -> Pair<'k> {
        let k = self.k;
        let source = kernel.input(0).at(row * k.int(cut.numbers));
        let first = (slice * k.int(WARPS) + self.number) * k.int(TOGETHER * LIST) + self.lane;
        // Where a number stands before it is sorted is all one: neighbours in memory are read together.
        let key = |place: u64| self.read_number(source, cut, first + k.int(place * u64::from(WARP_THREADS)));
        let runs: Vec<Pair<'k>> = (0..TOGETHER).map(|run| [key(2 * run), key(2 * run + 1)]).collect();
        self.merge_all(runs.into_iter().map(|run| self.sort(run)).collect())
    }

    /// The largest 64 of several lists, merged in pairs.
    fn merge_all(&self, mut lists: Vec<Pair<'k>>) -> Pair<'k> {
        while lists.len() > 1 {
            lists = lists.chunks_exact(2).map(|pair| self.merge(pair[0], pair[1])).collect();
        }
        lists[0]
    }

    /// The key of a number of the row; the lowest behind the row's end.
    fn read_number(&self, source: Buffer<'k>, cut: Cut, index: Val<'k>) -> Val<'k> {
        let k = self.k;
        let exists = index.compare(Compare::Less, k.int(cut.numbers));
        k.values_when(exists, &[k.int(NOTHING)], || {
            let ordered = source.load_as(Scalar::I32, index, 1).ordered_bits().extend(Scalar::I64);
            let back_to_front = k.int(i64::from(u32::MAX)) - index;
            vec![ordered.shift_left(32).or(back_to_front)]
        })[0]
    }

    /// The largest 64 of the slices' lists that are the warp's: every fourth.
    fn largest_of_lists(&self, kernel: &Kernel<'k, '_>, cut: Cut, row: Val<'k>) -> Pair<'k> {
        let k = self.k;
        let first = row * k.int(cut.slices * LIST);
        let nothing = [k.int(NOTHING); 2];
        let slices = k.int(cut.slices);
        let merged = k.for_each(self.number, slices, (WARPS * TOGETHER) as i64, &nothing, |slice, list| {
            let read = |ahead: u64| {
                let slice = slice + k.int(ahead * WARPS);
                let exists = slice.compare(Compare::Less, slices);
                let at = first + slice * k.int(LIST);
                let keys = k.values_when(exists, &nothing, || self.read(kernel.workspace(), at).to_vec());
                [keys[0], keys[1]]
            };
            let others = self.merge_all((0..TOGETHER).map(read).collect());
            self.merge([list[0], list[1]], others).to_vec()
        });
        [merged[0], merged[1]]
    }

    /// The largest 64 of all warps, in the first one.
    fn merge_with_others(&self, list: Pair<'k>) -> Pair<'k> {
        let k = self.k;
        let shared = k.shared_memory(Element::F32, 0);
        let mut list = list;
        let mut half = WARPS / 2;
        while half > 0 {
            let is_lower = self.number.compare(Compare::Less, k.int(half));
            let is_giver =
                k.both(is_lower.compare(Compare::Equal, k.int_of(Scalar::I1, 0)), self.is_below(2 * half));
            // Only who gives its list away writes, and each warp does so once.
            k.when(is_giver, || self.write(shared, self.number * k.int(LIST), list));
            k.barrier();
            let merged = k.values_when(is_lower, &list, || {
                let other = self.read(shared, (self.number + k.int(half)) * k.int(LIST));
                self.merge(list, other).to_vec()
            });
            list = [merged[0], merged[1]];
            half /= 2;
        }
        list
    }

    fn is_below(&self, warps: u64) -> Val<'k> {
        self.number.compare(Compare::Less, self.k.int(warps))
    }

    fn when_first(&self, body: impl FnOnce()) {
        self.k.when(self.k.is_zero(self.number), body);
    }

    /// Stores a list at key number `first`.
    fn write(&self, lists: Buffer<'k>, first: Val<'k>, list: Pair<'k>) {
        let place = first + self.lane + self.lane;
        lists.store(place, list[0]);
        lists.store(place + self.k.int(1), list[1]);
    }

    /// The list at key number `first`.
    fn read(&self, lists: Buffer<'k>, first: Val<'k>) -> Pair<'k> {
        let keys = lists.load_aligned_as(Scalar::I64, first + self.lane + self.lane, 2);
        [keys.lane(0), keys.lane(1)]
    }

    /// Stores what the first warp found as numbers and their indices.
    fn write_result(&self, kernel: &Kernel<'k, '_>, cut: Cut, row: Val<'k>, list: Pair<'k>) {
        let k = self.k;
        self.when_first(|| {
            let first = row * k.int(cut.k);
            for (index, key) in list.into_iter().enumerate() {
                let place = self.lane + self.lane + k.int(index as u64);
                k.when(place.compare(Compare::Less, k.int(cut.k)), || {
                    let number = key.shift_right(32).truncate(Scalar::I32).ordered_bits();
                    let index = k.int_of(Scalar::I32, -1) - key.truncate(Scalar::I32);
                    kernel.output(0).store(first + place, number.bitcast(Scalar::F32));
                    kernel.output(1).store(first + place, index);
                });
            }
        });
    }

    /// Whether a bit of the lane's number is zero.
    fn lacks_bit(&self, bit: u32) -> Val<'k> {
        self.k.is_zero(self.lane.and_bits(bit.into()))
    }

    /// Sorts 64 keys, largest first: runs of 2, 4, … keys that fall and rise in turns, each from two half as
    /// long. A key's place is twice its lane's number, and one more for the second.
    fn sort(&self, mut list: Pair<'k>) -> Pair<'k> {
        let mut lanes = 1;
        while lanes <= WARP_THREADS {
            // The last run is all of the warp, and falls.
            let falls = (lanes < WARP_THREADS).then(|| self.lacks_bit(lanes));
            let mut distance = lanes / 2;
            while distance > 0 {
                list = self.exchange(list, distance, falls);
                distance /= 2;
            }
            list = self.exchange_neighbours(list, falls);
            lanes *= 2;
        }
        list
    }

    /// The largest 64 of two lists.
    fn merge(&self, list: Pair<'k>, other: Pair<'k>) -> Pair<'k> {
        // The other one's place 63 − i lies in the lane with all bits turned, second for first.
        let reversed = [across(other[1], WARP_THREADS - 1), across(other[0], WARP_THREADS - 1)];
        let mut list = [list[0].maximum(reversed[0]), list[1].maximum(reversed[1])];
        let mut distance = WARP_THREADS / 2;
        while distance > 0 {
            list = self.exchange(list, distance, None);
            distance /= 2;
        }
        self.exchange_neighbours(list, None)
    }

    /// Compares with the lane `distance` away; of both, the lower lane keeps the larger keys where the run
    /// falls.
    fn exchange(&self, list: Pair<'k>, distance: u32, falls: Option<Val<'k>>) -> Pair<'k> {
        let is_lower = self.lacks_bit(distance);
        let keeps_larger = falls.map_or(is_lower, |falls| is_lower.compare(Compare::Equal, falls));
        list.map(|own| {
            let other = across(own, distance);
            let is_larger = own.compare(Compare::Greater, other);
            is_larger.compare(Compare::Equal, keeps_larger).select(own, other)
        })
    }

    /// Compares the two keys of a lane.
    fn exchange_neighbours(&self, [first, second]: Pair<'k>, falls: Option<Val<'k>>) -> Pair<'k> {
        let is_larger = first.compare(Compare::Greater, second);
        let stays = falls.map_or(is_larger, |falls| is_larger.compare(Compare::Equal, falls));
        [stays.select(first, second), stays.select(second, first)]
    }
}

/// A key of the lane whose number differs in the bits of `distance`, exchanged in halves.
fn across(key: Val<'_>, distance: u32) -> Val<'_> {
    let low = key.truncate(Scalar::I32).of_lane_across(distance).extend_unsigned(Scalar::I64);
    let high = key.shift_right(32).truncate(Scalar::I32).of_lane_across(distance);
    high.extend_unsigned(Scalar::I64).shift_left(32).or(low)
}

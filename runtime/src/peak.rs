//! What this machine can do at most, measured: bytes read per second, and `f32` multiply-adds.
//!
//! The measurements are kernels like the compiled ones and run through the same executor on the same
//! workers, so that the peak contains what every kernel pays: claiming tiles and the barrier.

use std::sync::Arc;
use std::time::Instant;

use qwen2c_format::{Diagnostic, KernelInfo, Operand, Region, RowAxis, Step, StepCost, StepList, StepLists};
use serde::Serialize;

use crate::execute::{Executor, Job};
use crate::kernel::{BodyFunction, KernelEntry};
use crate::memory::Mapping;
use crate::processor::Placement;

/// Larger than caches by far where every byte is read once per run.
/// (Tests are built without optimization: they measure nothing but that it works.)
const BUFFER_BYTES: u64 = if cfg!(test) { 4 << 20 } else { 256 << 20 };
/// The same for a thorough measurement, on machines with large caches.
const THOROUGH_BUFFER_BYTES: u64 = 1 << 30;
/// Bytes that one tile reads.
const TILE_BYTES: usize = 1 << 20;
/// Tiles of the multiply-add measurement.
const COMPUTE_TILES: i64 = 64;
/// Rounds of one such tile.
const COMPUTE_ROUNDS: u64 = if cfg!(test) { 1000 } else { 40_000 };
/// Independent accumulators: latency times width of every current core.
const ACCUMULATORS: usize = 12;

/// The machine's peak.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Peak {
    /// Sequential reads from memory by all workers.
    pub(crate) read_bytes_per_s: f64,
    /// `f32` operations by all workers, a multiply-add counted as two.
    pub(crate) operations_per_s: f64,
    /// Workers.
    pub(crate) threads: usize,
    /// Which way of reading was best: `8 streams, 4096 bytes ahead`.
    pub(crate) best_read: &'static str,
}

/// A way of reading.
struct Read {
    name: &'static str,
    body: BodyFunction,
}

const READS: [Read; 6] = [
    Read { name: "4 streams, 2048 bytes ahead", body: read_tile::<4, 2048> },
    Read { name: "4 streams, 4096 bytes ahead", body: read_tile::<4, 4096> },
    Read { name: "4 streams, 8192 bytes ahead", body: read_tile::<4, 8192> },
    Read { name: "8 streams, 2048 bytes ahead", body: read_tile::<8, 2048> },
    Read { name: "8 streams, 4096 bytes ahead", body: read_tile::<8, 4096> },
    Read { name: "8 streams, 8192 bytes ahead", body: read_tile::<8, 8192> },
];

/// Measures; `thorough` takes a second or two instead of a fraction of one.
///
/// # Errors
///
/// Where the system refuses memory or threads.
pub(crate) fn measure(placement: &Placement, thorough: bool) -> Result<Peak, Diagnostic> {
    let available = crate::machine::memory_bytes().unwrap_or(BUFFER_BYTES);
    let wanted = if thorough { THOROUGH_BUFFER_BYTES } else { BUFFER_BYTES };
    let tiles = (wanted.min(available / 8) / TILE_BYTES as u64).max(1);
    let repetitions = if thorough { 5 } else { 2 };
    let (compute, compute_operations) = compute_kernel();
    let mut kernels = vec![
        KernelEntry { tiles: tiles_in_rows, body: fill_tile },
        KernelEntry { tiles: compute_tiles, body: compute },
    ];
    kernels.extend(READS.map(|read| KernelEntry { tiles: tiles_in_rows, body: read.body }));
    let buffer_bytes = tiles * TILE_BYTES as u64;
    let lists = lists(kernels.len(), tiles, buffer_bytes);
    let weights = Arc::new(Mapping::zeroed(0).map_err(|error| Diagnostic::new(error.to_string()))?);
    // Behind the buffer, a line for each tile's result.
    let result_bytes = 64 * (tiles + COMPUTE_TILES as u64);
    let mut executor = Executor::start(&lists, &kernels, weights, buffer_bytes + result_bytes, placement)?;
    let mut seconds = |kernel: usize, repetitions: usize| {
        let job = Job { list: 0, steps: kernel..kernel + 1, rows: tiles as u32, logit_rows: 1 };
        let run = |_| {
            let start = Instant::now();
            executor.run(&job, &mut ());
            start.elapsed().as_secs_f64()
        };
        (0..repetitions).map(run).fold(f64::INFINITY, f64::min)
    };
    // Memory that was never written is one page of zeros: it has to be written before it is read.
    seconds(0, 1);
    let compute_seconds = seconds(1, repetitions);
    let reads = READS.iter().zip(2..).map(|(read, kernel)| (seconds(kernel, repetitions), read.name));
    let (read_seconds, best_read) =
        reads.min_by(|one, other| one.0.total_cmp(&other.0)).expect("there are several ways of reading");
    Ok(Peak {
        read_bytes_per_s: buffer_bytes as f64 / read_seconds,
        operations_per_s: compute_operations * COMPUTE_TILES as f64 / compute_seconds,
        threads: placement.threads,
        best_read,
    })
}

/// One list with one step for each kernel; `rows` is the number of the buffer's tiles.
fn lists(kernels: usize, tiles: u64, buffer_bytes: u64) -> StepLists {
    let buffer = Operand { region: Region::Arena, offset: 0, bytes: buffer_bytes };
    let result_bytes = 64 * (tiles + COMPUTE_TILES as u64);
    let results = Operand { region: Region::Arena, offset: buffer_bytes, bytes: result_bytes };
    let step = |kernel| Step {
        kernel,
        layer: None,
        row_axis: RowAxis::Rows,
        operands: vec![buffer, results],
        cost: StepCost::default(),
    };
    StepLists {
        kernels: (0..kernels).map(|kernel| KernelInfo { name: kernel.to_string() }).collect(),
        lists: vec![StepList {
            name: "peak".to_owned(),
            max_rows: tiles as u32,
            max_logit_rows: 1,
            body: (0..kernels as u32).map(step).collect(),
            head: Vec::new(),
        }],
    }
}

unsafe extern "C" fn tiles_in_rows(_operands: *const *mut u8, rows: i64) -> i64 {
    rows
}

unsafe extern "C" fn compute_tiles(_operands: *const *mut u8, _rows: i64) -> i64 {
    COMPUTE_TILES
}

unsafe extern "C" fn fill_tile(operands: *const *mut u8, _rows: i64, tile: i64) {
    // SAFETY: the first operand is the buffer, which has `rows` tiles; each is written by one worker.
    let bytes =
        unsafe { std::slice::from_raw_parts_mut((*operands).add(tile as usize * TILE_BYTES), TILE_BYTES) };
    bytes.fill(tile as u8 | 1);
}

/// Reads a tile in several streams side by side, each prefetched some way ahead.
unsafe extern "C" fn read_tile<const STREAMS: usize, const AHEAD_BYTES: usize>(
    operands: *const *mut u8,
    _rows: i64,
    tile: i64,
) {
    /// Words of a cache line.
    const WORDS: usize = 8;
    // SAFETY: the first operand is the buffer, which has `rows` tiles and is not written meanwhile.
    let words = unsafe {
        std::slice::from_raw_parts((*operands).add(tile as usize * TILE_BYTES).cast::<u64>(), TILE_BYTES / 8)
    };
    let stream_words = words.len() / STREAMS;
    let mut sums = [0_u64; WORDS];
    for line in (0..stream_words).step_by(WORDS) {
        for stream in words.chunks_exact(stream_words) {
            prefetch(stream.as_ptr().wrapping_add(line).wrapping_byte_add(AHEAD_BYTES));
            for (sum, word) in sums.iter_mut().zip(&stream[line..line + WORDS]) {
                *sum = sum.wrapping_add(*word);
            }
        }
    }
    let sum = sums.iter().fold(0_u64, |one, &other| one.wrapping_add(other));
    // SAFETY: the second operand holds 64 bytes for every tile.
    unsafe { (*operands.add(1)).add(64 * tile as usize).cast::<u64>().write(sum) };
}

#[cfg(target_arch = "x86_64")]
fn prefetch(address: *const u64) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: prefetching reads nothing and may name any address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
}

#[cfg(not(target_arch = "x86_64"))]
fn prefetch(_address: *const u64) {}

/// The widest multiply-add kernel of this processor, and the operations of one of its tiles.
#[cfg(target_arch = "x86_64")]
fn compute_kernel() -> (BodyFunction, f64) {
    let operations = |lanes: u64| (COMPUTE_ROUNDS * ACCUMULATORS as u64 * lanes * 2) as f64;
    if std::arch::is_x86_feature_detected!("avx512f") {
        (multiply_add_avx512, operations(16))
    } else if std::arch::is_x86_feature_detected!("fma") {
        (multiply_add_fma, operations(8))
    } else {
        (multiply_add_plain, operations(1))
    }
}

/// The multiply-add kernel that every processor has, and the operations of one of its tiles.
#[cfg(not(target_arch = "x86_64"))]
fn compute_kernel() -> (BodyFunction, f64) {
    (multiply_add_plain, (COMPUTE_ROUNDS * ACCUMULATORS as u64 * 2) as f64)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe extern "C" fn multiply_add_avx512(operands: *const *mut u8, rows: i64, tile: i64) {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_reduce_add_ps, _mm512_set1_ps};
    let (factor, term) = (_mm512_set1_ps(0.5), _mm512_set1_ps(1.0));
    let mut sums = [_mm512_set1_ps(tile as f32); ACCUMULATORS];
    for _ in 0..COMPUTE_ROUNDS {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, factor, term);
        }
    }
    let total = sums.iter().map(|&sum| _mm512_reduce_add_ps(sum)).sum();
    // SAFETY: the operands are those of this kernel's call.
    unsafe { write_result(operands, rows, tile, total) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx,fma")]
unsafe extern "C" fn multiply_add_fma(operands: *const *mut u8, rows: i64, tile: i64) {
    use std::arch::x86_64::{_mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_set1_ps};
    let (factor, term) = (_mm256_set1_ps(0.5), _mm256_set1_ps(1.0));
    let mut sums = [_mm256_set1_ps(tile as f32); ACCUMULATORS];
    for _ in 0..COMPUTE_ROUNDS {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, factor, term);
        }
    }
    let total = sums.iter().map(|&sum| _mm256_cvtss_f32(sum)).sum();
    // SAFETY: the operands are those of this kernel's call.
    unsafe { write_result(operands, rows, tile, total) };
}

unsafe extern "C" fn multiply_add_plain(operands: *const *mut u8, rows: i64, tile: i64) {
    let mut sums = [tile as f32; ACCUMULATORS];
    for _ in 0..COMPUTE_ROUNDS {
        for sum in &mut sums {
            *sum = *sum * 0.5 + 1.0;
        }
    }
    // SAFETY: the operands are those of this kernel's call.
    unsafe { write_result(operands, rows, tile, sums.iter().sum()) };
}

/// Stores what was computed, so that it had to be.
///
/// # Safety
///
/// The operands are those that [`lists`] gives every kernel.
unsafe fn write_result(operands: *const *mut u8, rows: i64, tile: i64, value: f32) {
    // SAFETY: the second operand holds 64 bytes for each of `rows` tiles and for each compute tile.
    unsafe { (*operands.add(1)).add(64 * (rows + tile) as usize).cast::<f32>().write(value) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_plausible() {
        let peak = measure(&Placement::unpinned(1), false).expect("there is memory for it");
        assert!((1e6..1e13).contains(&peak.read_bytes_per_s), "{peak:?}");
        assert!((1e6..1e13).contains(&peak.operations_per_s), "{peak:?}");
    }
}

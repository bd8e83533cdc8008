//! What this machine can do at most, measured: bytes read per second, and multiply-adds in each type.
//!
//! The measurements are kernels like the compiled ones and run through the same executor on the same
//! workers, so that the peak contains what every kernel pays: claiming tiles and the barrier.

mod beside;
mod multiply;
mod read;
#[cfg(target_arch = "x86_64")]
mod tiles;

use std::sync::Arc;
use std::time::Instant;

use qwen2c_format::{Diagnostic, KernelInfo, Operand, Region, RowAxis, Step, StepCost, StepList, StepLists};
use serde::Serialize;

pub(crate) use self::beside::{Reading, ReadsBeside};
use self::multiply::Multiplication;
use self::read::READS;
use crate::execute::{Job, ProcessorExecutor};
use crate::kernel::KernelEntry;
use crate::memory::Mapping;
use crate::processor::Placement;

/// Larger than caches by far where every byte is read once per run.
/// (Tests are built without optimization: they measure nothing but that it works.)
const BUFFER_BYTES: u64 = if cfg!(test) { 4 << 20 } else { 256 << 20 };
/// The same for a thorough measurement, on machines with large caches.
const THOROUGH_BUFFER_BYTES: u64 = 1 << 30;

/// The machine's peak.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Peak {
    /// Sequential reads from memory by all workers.
    pub(crate) read_bytes_per_s: f64,
    /// `f32` operations by all workers, a multiply-add counted as two.
    pub(crate) operations_per_s: f64,
    /// Products of `bf16` summed in `f32`, where the processor has an instruction for them.
    pub(crate) bf16_operations_per_s: Option<f64>,
    /// Products of 8-bit integers, where the processor has an instruction for them.
    pub(crate) int8_operations_per_s: Option<f64>,
    /// Workers.
    pub(crate) threads: usize,
    /// Which way of reading was best: `8 streams, 4096 bytes ahead`.
    pub(crate) best_read: &'static str,
}

impl Peak {
    /// The rate that kernels are held against: in `bf16` where there is an instruction, else in `f32`.
    pub(crate) fn matrix_operations_per_s(&self) -> f64 {
        self.bf16_operations_per_s.unwrap_or(self.operations_per_s)
    }

    /// The better of two measurements, limit by limit.
    pub(crate) fn best(self, other: Self) -> Self {
        let reads_faster = self.read_bytes_per_s >= other.read_bytes_per_s;
        let faster = |one: Option<f64>, other: Option<f64>| match (one, other) {
            (Some(one), Some(other)) => Some(one.max(other)),
            (one, other) => one.or(other),
        };
        Self {
            read_bytes_per_s: self.read_bytes_per_s.max(other.read_bytes_per_s),
            operations_per_s: self.operations_per_s.max(other.operations_per_s),
            bf16_operations_per_s: faster(self.bf16_operations_per_s, other.bf16_operations_per_s),
            int8_operations_per_s: faster(self.int8_operations_per_s, other.int8_operations_per_s),
            threads: self.threads,
            best_read: if reads_faster { self.best_read } else { other.best_read },
        }
    }
}

#[cfg(test)]
thread_local! {
    static MEASUREMENTS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Measurements that this thread has made.
#[cfg(test)]
pub(crate) fn measurements() -> usize {
    MEASUREMENTS.get()
}

/// Measures; `thorough` takes a second or two instead of a fraction of one.
///
/// # Errors
///
/// Where the system refuses memory or threads.
pub(crate) fn measure(placement: &Placement, thorough: bool) -> Result<Peak, Diagnostic> {
    #[cfg(test)]
    MEASUREMENTS.set(MEASUREMENTS.get() + 1);
    let available = crate::machine::memory_bytes().unwrap_or(BUFFER_BYTES);
    let wanted = if thorough { THOROUGH_BUFFER_BYTES } else { BUFFER_BYTES };
    let tiles = (wanted.min(available / 8) / read::TILE_BYTES as u64).max(1);
    let repetitions = if thorough { 5 } else { 2 };
    let multiplications = [Some(multiply::in_f32()), multiply::in_bf16(), multiply::in_int8()];
    let mut kernels = vec![KernelEntry { tiles: read::tile_count, body: read::fill_tile }];
    kernels.extend(READS.map(|read| KernelEntry { tiles: read::tile_count, body: read.body }));
    let first_multiplication = kernels.len();
    let bodies = multiplications.iter().flatten().map(|multiplication| multiplication.body);
    kernels.extend(bodies.map(|body| KernelEntry { tiles: multiply::tile_count, body }));
    let buffer_bytes = tiles * read::TILE_BYTES as u64;
    let lists = lists(kernels.len(), tiles, buffer_bytes);
    let weights = Arc::new(Mapping::zeroed(0).map_err(|error| Diagnostic::new(error.to_string()))?);
    let arena_bytes = buffer_bytes + result_bytes(tiles);
    let mut executor = ProcessorExecutor::start(&lists, &kernels, weights, arena_bytes, placement)?;
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
    let reads = READS.iter().zip(1..).map(|(read, kernel)| (seconds(kernel, repetitions), read.name));
    let (read_seconds, best_read) =
        reads.min_by(|one, other| one.0.total_cmp(&other.0)).expect("there are several ways of reading");
    let mut kernel = first_multiplication;
    let mut rate = |multiplication: &Multiplication| {
        kernel += 1;
        multiplication.operations * multiply::TILES as f64 / seconds(kernel - 1, repetitions)
    };
    let [in_f32, in_bf16, in_int8] =
        multiplications.map(|multiplication| multiplication.as_ref().map(&mut rate));
    Ok(Peak {
        read_bytes_per_s: buffer_bytes as f64 / read_seconds,
        operations_per_s: in_f32.expect("every processor multiplies in f32"),
        bf16_operations_per_s: in_bf16,
        int8_operations_per_s: in_int8,
        threads: placement.threads,
        best_read,
    })
}

/// A line for each tile's result, behind the buffer.
fn result_bytes(tiles: u64) -> u64 {
    64 * (tiles + multiply::TILES as u64)
}

/// One list with one step for each kernel; `rows` is the number of the buffer's tiles.
fn lists(kernels: usize, tiles: u64, buffer_bytes: u64) -> StepLists {
    let buffer = Operand { region: Region::Arena, offset: 0, bytes: buffer_bytes };
    let results = Operand { region: Region::Arena, offset: buffer_bytes, bytes: result_bytes(tiles) };
    let step = |kernel| Step {
        kernel,
        layer: None,
        row_axis: RowAxis::Rows,
        operands: vec![buffer, results],
        joins_previous: false,
        cost: StepCost::default(),
    };
    StepLists {
        kernels: (0..kernels)
            .map(|kernel| KernelInfo { name: kernel.to_string(), launches: Vec::new() })
            .collect(),
        lists: vec![StepList {
            name: "peak".to_owned(),
            max_rows: tiles as u32,
            max_logit_rows: 1,
            body: (0..kernels as u32).map(step).collect(),
            head: Vec::new(),
        }],
        persistent: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_plausible() {
        let peak = measure(&Placement::unpinned(1), false).expect("there is memory for it");
        let rates = [Some(peak.read_bytes_per_s), Some(peak.operations_per_s)];
        for rate in rates.into_iter().chain([peak.bf16_operations_per_s, peak.int8_operations_per_s]) {
            assert!(rate.is_none_or(|rate| (1e6..1e14).contains(&rate)), "{peak:?}");
        }
    }

    #[test]
    fn the_better_of_two_measurements_counts_limit_by_limit() {
        let peak = |read: f64, operations: f64, bf16: Option<f64>, best_read| Peak {
            read_bytes_per_s: read,
            operations_per_s: operations,
            bf16_operations_per_s: bf16,
            int8_operations_per_s: None,
            threads: 2,
            best_read,
        };
        let best = peak(3.0, 5.0, None, "one").best(peak(4.0, 1.0, Some(7.0), "other"));
        assert_eq!((best.read_bytes_per_s, best.operations_per_s, best.best_read), (4.0, 5.0, "other"));
        assert_eq!(best.matrix_operations_per_s(), 7.0);
    }
}

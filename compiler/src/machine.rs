//! What this machine can do, for predictions: memory, and the rate at which it is read.

use std::hint::black_box;
use std::thread;
use std::time::Instant;

/// Bytes that every thread reads in a measurement: together more than the caches hold.
const SAMPLE_BYTES_PER_THREAD: usize = 96 << 20;

/// Most threads of a measurement: a few saturate any memory, and each costs a sample's bytes.
const MOST_THREADS: usize = 8;

/// Memory of this machine in bytes.
pub(crate) fn memory_bytes() -> u64 {
    let information = rustix::system::sysinfo();
    (information.totalram as u64).saturating_mul(u64::from(information.mem_unit))
}

/// Bytes per second that all cores together read sequentially; takes about a tenth of a second.
pub(crate) fn read_bandwidth_bytes_per_s() -> f64 {
    let threads = thread::available_parallelism().map_or(1, std::num::NonZero::get).min(MOST_THREADS);
    // Not zeros: those would be one page of the kernel's, read from cache.
    let samples: Vec<Vec<u8>> = (0..threads).map(|_| vec![1; SAMPLE_BYTES_PER_THREAD]).collect();
    let best_s = (0..3).map(|_| seconds_to_read(&samples)).fold(f64::INFINITY, f64::min);
    (threads * SAMPLE_BYTES_PER_THREAD) as f64 / best_s
}

/// Reads every sample on a thread of its own. Comparing a sample's halves is the C library's `memcmp`,
/// which keeps up with the memory whatever flags this crate was compiled with.
fn seconds_to_read(samples: &[Vec<u8>]) -> f64 {
    let start = Instant::now();
    thread::scope(|scope| {
        for sample in samples {
            scope.spawn(move || {
                let (front, back) = sample.split_at(sample.len() / 2);
                black_box(front == back)
            });
        }
    });
    start.elapsed().as_secs_f64()
}

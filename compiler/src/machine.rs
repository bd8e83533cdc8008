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
    let samples: Vec<Vec<u64>> = thread::scope(|scope| {
        let makers: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || vec![thread as u64 + 1; SAMPLE_BYTES_PER_THREAD / 8]))
            .collect();
        makers.into_iter().filter_map(|maker| maker.join().ok()).collect()
    });
    let bytes: usize = samples.iter().map(|sample| sample.len() * 8).sum();
    let best_s = (0..3)
        .map(|_| {
            let start = Instant::now();
            thread::scope(|scope| {
                for sample in &samples {
                    scope.spawn(move || {
                        black_box(sample.iter().fold(0_u64, |sum, value| sum.wrapping_add(*value)))
                    });
                }
            });
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min);
    bytes as f64 / best_s
}

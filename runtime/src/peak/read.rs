//! Reading memory in several streams, the way that the fastest kernels read their weights.

use crate::kernel::BodyFunction;

/// Bytes that one tile reads. (Tests have programs of few bytes.)
pub(super) const TILE_BYTES: usize = if cfg!(test) { 512 } else { 1 << 20 };

/// A way of reading.
pub(super) struct Read {
    /// What it is called.
    pub(super) name: &'static str,
    /// One tile of it.
    pub(super) body: BodyFunction,
}

/// The ways that are tried; the best one counts. Some processors fetch ahead so well by themselves that being
/// told only costs them time.
pub(super) const READS: [Read; 8] = [
    Read { name: "4 streams", body: read_tile::<4, 0> },
    Read { name: "8 streams", body: read_tile::<8, 0> },
    Read { name: "4 streams, 2048 bytes ahead", body: read_tile::<4, 2048> },
    Read { name: "4 streams, 4096 bytes ahead", body: read_tile::<4, 4096> },
    Read { name: "4 streams, 8192 bytes ahead", body: read_tile::<4, 8192> },
    Read { name: "8 streams, 2048 bytes ahead", body: read_tile::<8, 2048> },
    Read { name: "8 streams, 4096 bytes ahead", body: read_tile::<8, 4096> },
    Read { name: "8 streams, 8192 bytes ahead", body: read_tile::<8, 8192> },
];

/// The number of tiles of the buffer, which is the number of rows.
pub(super) unsafe extern "C" fn tile_count(_operands: *const *mut u8, rows: i64) -> i64 {
    rows
}

/// Writes a tile, so that it has memory of its own.
pub(super) unsafe extern "C" fn fill_tile(operands: *const *mut u8, _rows: i64, tile: i64) {
    // SAFETY: the first operand is the buffer, which has `rows` tiles; each is written by one worker.
    let bytes =
        unsafe { std::slice::from_raw_parts_mut((*operands).add(tile as usize * TILE_BYTES), TILE_BYTES) };
    bytes.fill(tile as u8 | 1);
}

/// Reads a tile in several streams side by side, each prefetched some way ahead, or not where that is 0.
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
            if AHEAD_BYTES > 0 {
                prefetch(stream.as_ptr().wrapping_add(line).wrapping_byte_add(AHEAD_BYTES));
            }
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

//! Blocks that wait for one another: the driver's functions for the persistent kernel.

use std::ffi::{c_int, c_uint, c_void};

use super::functions::{answer, put};
use super::{FakeLaunch, OPERANDS, Work};
use crate::cuda::driver::functions::{Handle, SUCCESS, Status};

/// Handle of the persistent kernel, and words of a row of its table.
const PERSISTENT: usize = 6;
const ROW_WORDS: usize = 1 + OPERANDS;

/// Walks through the table of a persistent kernel, whose launches are those of the counting program: one for
/// each kernel, and two for the logits.
pub(super) extern "C" fn launch_together(
    function: Handle,
    across: c_uint,
    down: c_uint,
    _deep: c_uint,
    threads: c_uint,
    _: c_uint,
    _: c_uint,
    _shared_bytes: c_uint,
    _stream: Handle,
    parameters: *mut *mut c_void,
) -> Status {
    answer("cuLaunchCooperativeKernel", |fake| {
        assert_eq!((function as usize, across, down, threads), (PERSISTENT, 1, 1, 32));
        // SAFETY: callers give the addresses of two pointers and of the number of rows.
        let (table, word, rows) = unsafe {
            let pointer = |index: usize| parameters.add(index).read().cast::<u64>().read();
            (pointer(0), pointer(1), parameters.add(2).read().cast::<u32>().read())
        };
        // The table is there as soon as what waits has been done.
        fake.work(None);
        // SAFETY: the table has so many rows, and the word comes behind it.
        let (words, before) = unsafe {
            let words = std::slice::from_raw_parts(table as *const u64, rows as usize * ROW_WORDS);
            (words, (word as *const u32).read())
        };
        assert_eq!((word, before), (table + 8 * words.len() as u64, 0));
        for row in words.chunks(ROW_WORDS) {
            let kernel = [0, 1, 2, 3, 3, 4][row[0] as usize];
            let operands = [row[1], row[2], row[3]];
            fake.stream.push_back(Work::Launch(FakeLaunch { kernel, rows_of_blocks: 1, operands, rows: 1 }));
        }
        SUCCESS
    })
}

/// As many blocks as the test says.
pub(super) extern "C" fn blocks_at_once(
    blocks: *mut c_int,
    _function: Handle,
    threads: c_int,
    _shared_bytes: usize,
) -> Status {
    answer("cuOccupancyMaxActiveBlocksPerMultiprocessor", |fake| {
        assert_eq!(threads, 32);
        put(blocks, fake.together.0);
        SUCCESS
    })
}

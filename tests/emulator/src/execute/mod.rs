//! Runs a grid of blocks of warps on device memory.
//!
//! An instruction executes over the 32 lanes of a warp at a time; one file per group of instructions.

mod access;
mod asynchronous;
mod atomic;
mod barrier;
mod bits;
mod block;
mod compare;
mod convert;
mod exchange;
mod float;
mod grid;
mod integer;
mod matrix;
mod motion;
mod numbers;
mod order;
mod random;
mod registers;
mod traffic;
mod trouble;
mod turn;
mod warps;
mod windows;

use crate::{Counts, Entry, Fault, Memory};
use grid::Grid;

/// Threads of the largest block.
const MOST_THREADS: u64 = 1024;
/// Shared memory of the largest block.
const MOST_SHARED_BYTES: u64 = 232_448;

/// Grid, block and dynamic shared memory of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchShape {
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y and z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
}

/// What is left open by the programming model and chosen here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// Decides the order of blocks and warps and how they are interleaved.
    pub seed: u64,
}

/// Runs `entry` to its end.
///
/// # Errors
/// The first thing the kernel did wrong.
pub fn launch(
    entry: &Entry,
    shape: &LaunchShape,
    parameters: &[u8],
    memory: &mut Memory,
    schedule: Schedule,
) -> Result<Counts, Fault> {
    if let Some(what) = refuse(entry, shape, parameters) {
        return Err(Fault {
            kernel: entry.name().to_owned(),
            line: 0,
            instruction: String::new(),
            block: [0; 3],
            thread: [0; 3],
            what,
        });
    }
    Grid::new(entry, shape, parameters, memory, schedule).run()
}

/// Why a launch cannot even begin.
fn refuse(entry: &Entry, shape: &LaunchShape, parameters: &[u8]) -> Option<String> {
    let product =
        |extents: [u32; 3]| extents.iter().try_fold(1u64, |all, extent| all.checked_mul((*extent).into()));
    let threads = product(shape.block).unwrap_or(u64::MAX);
    let blocks = product(shape.grid).unwrap_or(u64::MAX);
    let shared = u64::from(entry.static_shared_bytes()) + u64::from(shape.shared_bytes);
    if threads == 0 || threads > MOST_THREADS {
        return Some(format!("a block of {threads} threads"));
    }
    if blocks == 0 || blocks > 1 << 20 {
        return Some(format!("a grid of {blocks} blocks"));
    }
    if shared > MOST_SHARED_BYTES {
        return Some(format!("a block with {shared} bytes of shared memory"));
    }
    if parameters.len() != entry.parameter_bytes() as usize {
        return Some(format!(
            "{} bytes of parameters where {} are due",
            parameters.len(),
            entry.parameter_bytes()
        ));
    }
    if entry.maximum_threads().is_some_and(|most| threads > u64::from(most)) {
        return Some(format!("a block of {threads} threads, more than `.maxntid` allows"));
    }
    if entry.required_threads().is_some_and(|required| threads != u64::from(required)) {
        return Some(format!("a block of {threads} threads, not those of `.reqntid`"));
    }
    None
}

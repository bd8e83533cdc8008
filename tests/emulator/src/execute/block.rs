//! A resident block: its warps, its shared memory, its barriers.

use super::barrier::{BlockBarrier, Woken};
use super::warps::Warp;
use crate::memory::Allocation;
use crate::races::Variables;

/// Barriers of a block.
pub(crate) const BARRIERS: usize = 16;

/// A block between its first and its last instruction.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) warps: Vec<Warp>,
    pub(crate) state: BlockState,
}

/// What the warps of a block share.
#[derive(Debug)]
pub(crate) struct BlockState {
    /// Number in the grid.
    pub(crate) number: u32,
    /// Threads of a block.
    pub(crate) threads: usize,
    pub(crate) coordinates: [u32; 3],
    pub(crate) shared: Allocation,
    /// Bytes of shared memory that an asynchronous copy is on its way to, as bits like `initialised`.
    pub(crate) in_flight: Vec<u16>,
    pub(crate) barriers: [BlockBarrier; BARRIERS],
    /// Threads that have not exited.
    pub(crate) live_threads: u32,
    /// What is released through shared memory.
    pub(crate) variables: Variables,
    /// Warps that were woken and not yet put in line.
    pub(crate) woken: Vec<Woken>,
}

//! A moment in the life of a thread, in one word.

/// Clock, block and thread of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Epoch(pub(crate) u64);

const THREAD_BITS: u32 = 10;
const BLOCK_BITS: u32 = 20;
const ATOMIC: u64 = 1 << (THREAD_BITS + BLOCK_BITS);

impl Epoch {
    /// Clocks begin at 1, so that no epoch is zero.
    pub(crate) fn new(block: u32, thread: usize, clock: u32, is_atomic: bool) -> Epoch {
        let flag = if is_atomic { ATOMIC } else { 0 };
        Epoch(u64::from(clock) << 32 | flag | u64::from(block) << THREAD_BITS | thread as u64)
    }

    pub(crate) fn block(self) -> u32 {
        (self.0 >> THREAD_BITS) as u32 & ((1 << BLOCK_BITS) - 1)
    }

    pub(crate) fn thread(self) -> usize {
        self.0 as usize & ((1 << THREAD_BITS) - 1)
    }

    pub(crate) fn clock(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Whether it was an access that may meet others of its kind.
    pub(crate) fn is_atomic(self) -> bool {
        self.0 & ATOMIC != 0
    }

    /// Whether both are of the same thread.
    #[inline(always)]
    pub(crate) fn is_of_same_thread(self, other: Epoch) -> bool {
        (self.0 ^ other.0) as u32 & (ATOMIC as u32 - 1) == 0
    }
}

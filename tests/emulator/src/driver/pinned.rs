//! Host memory that asynchronous copies may use: what `cuMemHostAlloc` gave out.
//!
//! It comes from the system page by page and goes back at once, so that a program that uses it after freeing it
//! dies instead of reading old bytes. The program may write to it at any time, from any thread; bytes are
//! therefore copied in and out through raw pointers and never lent.

use std::collections::BTreeMap;
use std::ops::Range;

use super::errors::Refusal;

/// What new pinned memory holds, for no program may count on zeros, and what a copy may leave until it lands.
pub(super) const POISON: u8 = 0xa5;

#[derive(Debug)]
struct Allocation {
    bytes: usize,
    /// The device whose context gave it out.
    device: u32,
}

/// All pinned memory of the process, by address.
#[derive(Debug, Default)]
pub(super) struct PinnedMemory {
    allocations: BTreeMap<usize, Allocation>,
}

impl PinnedMemory {
    /// Address of new memory; none where the system has none.
    pub(super) fn allocate(&mut self, bytes: usize, device: u32) -> Option<usize> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at an address of the system's choice touches no existing memory.
        let place = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if place == libc::MAP_FAILED {
            return None;
        }
        // SAFETY: the mapping has as many bytes and belongs to nobody yet.
        unsafe { place.cast::<u8>().write_bytes(POISON, bytes) };
        self.allocations.insert(place as usize, Allocation { bytes, device });
        Some(place as usize)
    }

    /// Gives back what begins at an address.
    pub(super) fn release(&mut self, address: usize) -> Result<(), Refusal> {
        let Some(allocation) = self.allocations.remove(&address) else {
            let why = format!("{address:#x} is not the beginning of pinned memory, or was freed before");
            return Err(Refusal::invalid_value(why));
        };
        // SAFETY: exactly this range was mapped in `allocate`, and nothing here keeps a reference into it.
        unsafe { libc::munmap(address as *mut libc::c_void, allocation.bytes) };
        Ok(())
    }

    /// Gives back what the context of a device left behind.
    pub(super) fn release_all_of(&mut self, device: u32) {
        let left = self.allocations.iter().filter(|(_, allocation)| allocation.device == device);
        let addresses: Vec<usize> = left.map(|(address, _)| *address).collect();
        for address in addresses {
            self.release(address).expect("the address was found among the allocations");
        }
    }

    /// Number and bytes of what a device's context gave out and did not get back.
    pub(super) fn left_by(&self, device: u32) -> (u64, u64) {
        let left = self.allocations.values().filter(|allocation| allocation.device == device);
        left.fold((0, 0), |(count, bytes), allocation| (count + 1, bytes + allocation.bytes as u64))
    }

    /// The bytes of the allocation that begins at an address.
    pub(super) fn bytes_at(&self, address: usize) -> Option<usize> {
        self.allocations.get(&address).map(|allocation| allocation.bytes)
    }

    /// Whether a range lies in one allocation.
    pub(super) fn holds(&self, address: usize, bytes: usize) -> bool {
        self.allocations.range(..=address).next_back().is_some_and(|(start, allocation)| {
            address.checked_add(bytes).is_some_and(|end| end <= start + allocation.bytes)
        })
    }

    /// A copy of a range; none where it is not pinned.
    pub(super) fn read(&self, address: usize, bytes: usize) -> Option<Vec<u8>> {
        if !self.holds(address, bytes) {
            return None;
        }
        let mut copy = vec![0; bytes];
        // SAFETY: the range lies in a mapping of ours, which is readable, and `copy` is as long.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, copy.as_mut_ptr(), bytes) };
        Some(copy)
    }

    /// The checksum of a range; none where it is not pinned.
    pub(super) fn checksum(&self, range: &Range<usize>) -> Option<u64> {
        self.read(range.start, range.len()).map(|bytes| checksum(&bytes))
    }

    /// Writes to a range; none where it is not pinned.
    pub(super) fn write(&mut self, address: usize, bytes: &[u8]) -> Option<()> {
        if !self.holds(address, bytes.len()) {
            return None;
        }
        // SAFETY: the range lies in a mapping of ours, which is writable and not what `bytes` lies in.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
        Some(())
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        let addresses: Vec<usize> = self.allocations.keys().copied().collect();
        for address in addresses {
            self.release(address).expect("the address was found among the allocations");
        }
    }
}

/// A number that changes when bytes do, to notice that a program wrote to memory that a copy still reads.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    // Multiplying by an odd number loses nothing, so a change in one word always shows.
    let step = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let mut words = bytes.chunks_exact(8);
    let sum = words.by_ref().fold(bytes.len() as u64, |sum, word| {
        step(sum, u64::from_le_bytes(word.try_into().expect("chunks have eight bytes")))
    });
    words.remainder().iter().fold(sum, |sum, byte| step(sum, u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_held_to_the_byte() {
        let mut pinned = PinnedMemory::default();
        let address = pinned.allocate(100, 0).unwrap();
        assert_eq!(pinned.read(address, 100).unwrap(), [POISON; 100]);
        assert!(
            pinned.holds(address + 99, 1) && !pinned.holds(address + 99, 2) && !pinned.holds(address - 1, 2)
        );
        pinned.write(address + 4, b"abc").unwrap();
        assert_eq!(pinned.read(address + 3, 5).unwrap(), b"\xa5abc\xa5");
        assert_eq!(pinned.left_by(0), (1, 100));
        assert_eq!(pinned.left_by(1), (0, 0));
        pinned.release(address).unwrap();
        assert!(pinned.release(address).is_err() && pinned.read(address, 1).is_none());
    }

    #[test]
    fn a_checksum_notices_one_bit_anywhere() {
        let bytes: Vec<u8> = (0..43).collect();
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert_ne!(checksum(&bytes), checksum(&other), "byte {at}");
        }
    }
}

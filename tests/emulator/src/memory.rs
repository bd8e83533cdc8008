//! Device memory: allocations at addresses that are nobody else's.
//!
//! Addresses are invented, never those of the host, and allocations lie apart, so that an access beyond one is
//! always found. Bytes begin uninitialised; reading such a byte in a kernel is a fault.

use std::fmt;

use crate::ptx::resolver::CONSTANT_BASE;
use crate::races::Shadow;

/// Lowest address that is handed out. Its high bits tell it from offsets, sizes and host pointers.
const FIRST_ADDRESS: u64 = 0x0007_1000_0000_0000;
/// Alignment of every allocation, as the driver's.
const ALIGNMENT_BYTES: u64 = 256;
/// Unmapped bytes behind every allocation.
const GAP_BYTES: u64 = 1 << 20;

/// Device memory of one emulated device.
#[derive(Debug)]
pub struct Memory {
    pub(crate) allocations: Vec<Allocation>,
    capacity_bytes: u64,
    used_bytes: u64,
    next_address: u64,
    /// Number of the launch that runs.
    pub(crate) generation: u32,
}

/// One allocation with what is known of its bytes.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) address: u64,
    pub(crate) bytes: Vec<u8>,
    /// One bit per byte, 16 bytes to a word: whether it was ever written.
    pub(crate) initialised: Vec<u16>,
    /// Who accessed its bytes in the launch that runs.
    pub(crate) shadow: Shadow,
}

/// An access from the host that hits no allocation, or more than one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessError {
    /// First address of the access.
    pub address: u64,
    /// Its length.
    pub bytes: u64,
}

impl fmt::Display for AccessError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} bytes at {:#x} do not lie in one allocation", self.bytes, self.address)
    }
}

impl std::error::Error for AccessError {}

impl Memory {
    /// Memory of a device that claims to have `capacity_bytes`; host memory is taken only as it is touched.
    #[must_use]
    pub fn new(capacity_bytes: u64) -> Memory {
        Memory {
            allocations: Vec::new(),
            capacity_bytes,
            used_bytes: 0,
            next_address: FIRST_ADDRESS,
            generation: 0,
        }
    }

    /// Bytes the device claims to have.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    /// Bytes that are allocated.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// How many allocations there are.
    #[must_use]
    pub fn allocation_count(&self) -> usize {
        self.allocations.len()
    }

    /// Whether `bytes` bytes from `address` on lie in one allocation.
    #[must_use]
    pub fn holds(&self, address: u64, bytes: u64) -> bool {
        let behind = self.allocations.partition_point(|allocation| allocation.address <= address);
        let before = behind.checked_sub(1).map(|at| &self.allocations[at]);
        before.is_some_and(|allocation| {
            let end = (address - allocation.address).checked_add(bytes);
            end.is_some_and(|end| end <= allocation.bytes.len() as u64)
        })
    }

    /// Whether an allocation begins at `address`.
    #[must_use]
    pub fn begins_allocation(&self, address: u64) -> bool {
        self.allocations.binary_search_by_key(&address, |allocation| allocation.address).is_ok()
    }

    /// Address of `bytes` new, uninitialised bytes; `None` where they do not fit or are none.
    pub fn allocate(&mut self, bytes: u64) -> Option<u64> {
        let rounded = bytes.checked_next_multiple_of(ALIGNMENT_BYTES)?;
        if bytes == 0 || rounded > self.capacity_bytes - self.used_bytes {
            return None;
        }
        let length = usize::try_from(bytes).ok()?;
        let address = self.next_address;
        self.next_address = (address + rounded + GAP_BYTES).next_multiple_of(GAP_BYTES);
        self.used_bytes += rounded;
        self.allocations.push(Allocation::new(address, length));
        Some(address)
    }

    /// Gives back the allocation that begins at `address`.
    ///
    /// # Errors
    /// Where none begins there.
    pub fn free(&mut self, address: u64) -> Result<(), AccessError> {
        let found = self.allocations.iter().position(|allocation| allocation.address == address);
        let allocation = self.allocations.remove(found.ok_or(AccessError { address, bytes: 0 })?);
        self.used_bytes -= (allocation.bytes.len() as u64).next_multiple_of(ALIGNMENT_BYTES);
        Ok(())
    }

    /// Copies `bytes` from the host to `address`.
    ///
    /// # Errors
    /// Where they do not lie in one allocation.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), AccessError> {
        let (allocation, start) = self.locate(address, bytes.len())?;
        allocation.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        allocation.initialise(start, bytes.len());
        Ok(())
    }

    /// Fills `bytes` bytes from `address` on with `value`.
    ///
    /// # Errors
    /// Where they do not lie in one allocation.
    pub fn fill(&mut self, address: u64, value: u8, bytes: u64) -> Result<(), AccessError> {
        let length = usize::try_from(bytes).map_err(|_| AccessError { address, bytes })?;
        let (allocation, start) = self.locate(address, length)?;
        allocation.bytes[start..start + length].fill(value);
        allocation.initialise(start, length);
        Ok(())
    }

    /// Copies bytes from `address` to the host, initialised or not.
    ///
    /// # Errors
    /// Where they do not lie in one allocation.
    pub fn read(&mut self, address: u64, into: &mut [u8]) -> Result<(), AccessError> {
        let (allocation, start) = self.locate(address, into.len())?;
        into.copy_from_slice(&allocation.bytes[start..start + into.len()]);
        Ok(())
    }

    /// Whether every one of `bytes` bytes from `address` on lies in one allocation and was written.
    #[must_use]
    pub fn is_initialised(&mut self, address: u64, bytes: u64) -> bool {
        let Ok(length) = usize::try_from(bytes) else { return false };
        self.locate(address, length)
            .is_ok_and(|(allocation, start)| (start..start + length).all(|at| allocation.is_initialised(at)))
    }

    /// Puts what a module brings along before everything else, until the launch is over.
    pub(crate) fn lend_constants(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut constants = Allocation::new(CONSTANT_BASE, bytes.len());
        constants.bytes.copy_from_slice(bytes);
        constants.initialise(0, bytes.len());
        self.allocations.insert(0, constants);
    }

    /// Ends that.
    pub(crate) fn take_constants_back(&mut self) {
        self.allocations.retain(|allocation| allocation.address != CONSTANT_BASE);
    }

    /// The allocation that holds all of `bytes` bytes at `address`, and where in it they begin.
    fn locate(&mut self, address: u64, bytes: usize) -> Result<(&mut Allocation, usize), AccessError> {
        let error = AccessError { address, bytes: bytes as u64 };
        let behind = self.allocations.partition_point(|allocation| allocation.address <= address);
        let allocation = behind.checked_sub(1).and_then(|at| self.allocations.get_mut(at)).ok_or(error)?;
        let start = (address - allocation.address) as usize;
        match start.checked_add(bytes) {
            Some(end) if end <= allocation.bytes.len() => Ok((allocation, start)),
            _ => Err(error),
        }
    }
}

impl Allocation {
    /// `length` bytes that nobody wrote.
    pub(crate) fn new(address: u64, length: usize) -> Allocation {
        let initialised = vec![0; length.div_ceil(16)];
        Allocation { address, bytes: vec![0; length], initialised, shadow: Shadow::default() }
    }

    /// Notes that `bytes` bytes from `start` on were written.
    pub(crate) fn initialise(&mut self, start: usize, bytes: usize) {
        let end = start + bytes;
        let mut at = start;
        while at < end {
            let (word, bit) = (at / 16, at % 16);
            let count = (16 - bit).min(end - at);
            self.initialised[word] |= (((1u32 << count) - 1) << bit) as u16;
            at += count;
        }
    }

    /// Whether all of `bytes` bytes from `start` on were ever written.
    #[inline]
    pub(crate) fn are_initialised(&self, start: usize, bytes: usize) -> bool {
        let bit = start % 16;
        if bit + bytes <= 16 {
            let mask = (((1u32 << bytes) - 1) << bit) as u16;
            return self.initialised[start / 16] & mask == mask;
        }
        (start..start + bytes).all(|at| self.is_initialised(at))
    }

    /// Whether the byte at `at` was ever written.
    pub(crate) fn is_initialised(&self, at: usize) -> bool {
        self.initialised[at / 16] >> (at % 16) & 1 == 1
    }
}

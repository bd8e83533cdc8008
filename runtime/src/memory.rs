//! Memory from the operating system: the arena, and the weights mapped from the program's own file.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

/// A range of address space that belongs to this process until it is dropped.
///
/// Compiled kernels read and write it through addresses; Rust code looks into it while no kernel runs.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
    writable: bool,
    /// What the system said to the advice of large pages.
    advice: io::Result<()>,
}

// SAFETY: a mapping is plain memory, valid from any thread until it is dropped.
unsafe impl Send for Mapping {}
// SAFETY: as above; writes through `&Mapping` do not exist.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Zeroed memory that costs nothing before it is touched.
    ///
    /// # Errors
    ///
    /// The system's, where it refuses so much address space.
    pub(crate) fn zeroed(bytes: u64) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        Self::map(bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    }

    /// A range of a file, read-only. The offset is a multiple of the page size.
    ///
    /// # Errors
    ///
    /// The system's, where it refuses.
    pub(crate) fn of_file(file: &File, offset: u64, bytes: u64) -> io::Result<Self> {
        Self::map(bytes, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), offset)
    }

    fn map(bytes: u64, protection: i32, flags: i32, file: i32, offset: u64) -> io::Result<Self> {
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        // An empty range cannot be mapped; one byte stands for it.
        let bytes = usize::try_from(bytes.max(1)).map_err(|_| too_large())?;
        let offset = libc::off_t::try_from(offset).map_err(|_| too_large())?;
        // SAFETY: a new mapping at an address of the system's choice touches no existing memory.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, file, offset) };
        match NonNull::new(address.cast()) {
            Some(start) if address != libc::MAP_FAILED => {
                // Kernels stream through gigabytes: with small pages the processor is short of addresses
                // before it is short of bandwidth. A system that has no large ones keeps to small ones.
                // SAFETY: exactly this range was mapped, and pages of any size have the same content.
                let refused = unsafe { libc::madvise(address, bytes, libc::MADV_HUGEPAGE) } != 0;
                let advice = if refused { Err(io::Error::last_os_error()) } else { Ok(()) };
                Ok(Self { start, bytes, writable: protection & libc::PROT_WRITE != 0, advice })
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// What the system said when it was asked for large pages. That it says yes does not mean that it has some.
    pub(crate) fn advice(&self) -> &io::Result<()> {
        &self.advice
    }

    /// Address of a range, or none where the range lies outside.
    pub(crate) fn address(&self, offset: u64, bytes: u64) -> Option<*mut u8> {
        let offset = self.checked_range(offset, bytes)?.start;
        Some(self.start.as_ptr().wrapping_add(offset))
    }

    /// The bytes of a range.
    ///
    /// No kernel may be running that writes to them: the executor lends its arena only while it is
    /// idle, and nobody writes to weights.
    pub(crate) fn read(&self, offset: u64, bytes: u64) -> Option<&[u8]> {
        let range = self.checked_range(offset, bytes)?;
        // SAFETY: the range lies inside the mapping, which lives as long as `self` and is
        // initialized (zeroed or file contents); nothing writes to it meanwhile.
        Some(unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(range.start), range.len()) })
    }

    /// `count` values of type `f32` from a multiple of 4 on; no kernel may be running.
    pub(crate) fn floats(&self, offset: u64, count: usize) -> Option<&[f32]> {
        let bytes = self.read(offset, count as u64 * 4)?;
        if !bytes.as_ptr().cast::<f32>().is_aligned() {
            return None;
        }
        // SAFETY: length and alignment are right, and any four bytes are an `f32`.
        Some(unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), count) })
    }

    /// Writes `i32` values; no kernel may be running. None where they do not fit, or the mapping is
    /// read-only.
    pub(crate) fn write_integers(
        &self,
        offset: u64,
        values: impl ExactSizeIterator<Item = u32>,
    ) -> Option<()> {
        let range = self.checked_range(offset, values.len() as u64 * 4)?;
        if !self.writable || range.start % 4 != 0 {
            return None;
        }
        for (index, value) in values.enumerate() {
            // SAFETY: the place lies inside the range, is writable and aligned, and no slice of it
            // is lent out: whoever calls this holds the executor exclusively.
            unsafe { self.start.as_ptr().add(range.start + 4 * index).cast::<u32>().write(value) };
        }
        Some(())
    }

    /// Tells the system that a range of a file will be read soon, so that it begins to fetch it. Ranges begin
    /// at multiples of a page from the mapping's first byte; what the system does with the hint is its own.
    pub(crate) fn announce(&self, offset: u64, bytes: u64) {
        self.advise(offset, bytes, libc::MADV_WILLNEED);
    }

    /// Tells the system that a range of a file is not needed in memory for now; reading it brings it back.
    pub(crate) fn release(&self, offset: u64, bytes: u64) {
        self.advise(offset, bytes, libc::MADV_DONTNEED);
    }

    /// Memory without a file behind it would lose its content.
    fn advise(&self, offset: u64, bytes: u64, advice: i32) {
        let Some(range) = self.checked_range(offset, bytes).filter(|_| !self.writable) else { return };
        // SAFETY: the range lies inside the mapping, which is a file's and is never written: its pages
        // can be taken away and come back as they were.
        unsafe { libc::madvise(self.start.as_ptr().add(range.start).cast(), range.len(), advice) };
    }

    fn checked_range(&self, offset: u64, bytes: u64) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(offset).ok()?;
        let end = usize::try_from(offset.checked_add(bytes)?).ok()?;
        (end <= self.bytes).then_some(start..end)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly this range was mapped, and whoever used its addresses is gone.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// Whether somebody has switched large pages off for this process; a system that does not know the question
/// has not.
pub(crate) fn large_pages_are_off_for_this_process() -> bool {
    // SAFETY: the call only reads a flag of this process.
    unsafe { libc::prctl(libc::PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1 }
}

/// Switches them off as a service manager may, or on again.
#[cfg(test)]
pub(crate) fn switch_large_pages_of_this_process(on: bool) {
    // SAFETY: the call changes a flag of this process; pages of any size have the same content.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, libc::c_ulong::from(!on), 0, 0, 0) };
}

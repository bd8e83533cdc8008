//! Memory on the device, memory of the host that the device copies from and to, and the way of the
//! weights from the program's file to the device.

use std::ptr::NonNull;
use std::rc::Rc;

use qwen2c_format::Diagnostic;

use super::driver::{Context, Event};
use crate::memory::Mapping;
use crate::program::bytes_text;

/// Bytes of one of the two buffers that weights go through: large enough for the bus, small enough that
/// the first copy begins at once.
const UPLOAD_CHUNK_BYTES: u64 = if cfg!(test) { 48 } else { 16 << 20 };

/// A range of the device's memory, freed when it is dropped.
pub(crate) struct DeviceMemory {
    context: Rc<Context>,
    address: u64,
    bytes: u64,
}

impl DeviceMemory {
    /// Memory with arbitrary content.
    ///
    /// # Errors
    ///
    /// What the driver says; `purpose` completes "for the …".
    pub(crate) fn reserve(context: &Rc<Context>, bytes: u64, purpose: &str) -> Result<Self, Diagnostic> {
        let mut address = 0;
        // Nothing at all cannot be reserved; one byte stands for it.
        let bytes = bytes.max(1);
        // SAFETY: the driver writes one address.
        let status = unsafe { (context.functions().memory_allocate)(&mut address, bytes as usize) };
        context.check(status, || format!("reserve {} for the {purpose}", bytes_text(bytes)))?;
        Ok(Self { context: Rc::clone(context), address, bytes })
    }

    /// As [`DeviceMemory::reserve`], with zeros.
    ///
    /// # Errors
    ///
    /// As [`DeviceMemory::reserve`].
    pub(crate) fn zeroed(context: &Rc<Context>, bytes: u64, purpose: &str) -> Result<Self, Diagnostic> {
        let memory = Self::reserve(context, bytes, purpose)?;
        let fill = context.functions().fill;
        // SAFETY: the range was just reserved.
        let status = unsafe { fill(memory.address, 0, memory.bytes as usize, context.stream()) };
        context.check(status, || format!("fill the {purpose} with zeros"))?;
        Ok(memory)
    }

    /// Address of a range, or none where the range lies outside.
    pub(crate) fn address(&self, offset: u64, bytes: u64) -> Option<u64> {
        (offset.checked_add(bytes)? <= self.bytes).then(|| self.address + offset)
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: the memory is this one's own; freeing waits for work that uses it.
        unsafe { (self.context.functions().memory_free)(self.address) };
    }
}

/// Memory of the host that the system never moves, so that the device copies from and to it by itself.
pub(crate) struct PinnedMemory {
    context: Rc<Context>,
    start: NonNull<u8>,
    bytes: usize,
}

impl PinnedMemory {
    /// Memory with zeros, at a multiple of a page.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub(crate) fn zeroed(context: &Rc<Context>, bytes: u64) -> Result<Self, Diagnostic> {
        let bytes = bytes.max(1) as usize;
        let mut start = std::ptr::null_mut();
        // SAFETY: the driver writes one address; no flags: memory for this context alone.
        let status = unsafe { (context.functions().host_allocate)(&mut start, bytes, 0) };
        context.check(status, || format!("pin {} of the host's memory", bytes_text(bytes as u64)))?;
        let start = NonNull::new(start.cast::<u8>())
            .ok_or_else(|| Diagnostic::new("the CUDA driver gave memory at no address"))?;
        // SAFETY: the driver gave so many bytes there.
        unsafe { start.as_ptr().write_bytes(0, bytes) };
        Ok(Self { context: Rc::clone(context), start, bytes })
    }

    /// The bytes of a range.
    ///
    /// # Safety
    ///
    /// No copy into the range is under way.
    pub(super) unsafe fn bytes(&self, offset: usize, bytes: usize) -> &[u8] {
        assert!(offset + bytes <= self.bytes, "{bytes} bytes at {offset} of {}", self.bytes);
        // SAFETY: the range lies inside and is initialized; nothing writes to it by this function's
        // contract.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(offset), bytes) }
    }

    /// The bytes of a range, to be written.
    ///
    /// # Safety
    ///
    /// No copy from or into the range is under way.
    pub(super) unsafe fn bytes_mut(&mut self, offset: usize, bytes: usize) -> &mut [u8] {
        assert!(offset + bytes <= self.bytes, "{bytes} bytes at {offset} of {}", self.bytes);
        // SAFETY: as in `bytes`, and nothing reads it either.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(offset), bytes) }
    }

    /// Puts a copy to the device into the stream.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub(super) fn send(
        &self,
        offset: usize,
        bytes: usize,
        to: &DeviceMemory,
        to_offset: u64,
    ) -> Result<(), Diagnostic> {
        assert!(offset + bytes <= self.bytes, "{bytes} bytes at {offset} of {}", self.bytes);
        let address = to.address(to_offset, bytes as u64).expect("the range was checked at load");
        let context = &self.context;
        // SAFETY: both ranges lie inside their memory. Whoever writes to the host's while the copy is under
        // way has promised not to.
        let status = unsafe {
            let from = self.start.as_ptr().add(offset).cast();
            (context.functions().copy_to_device)(address, from, bytes, context.stream())
        };
        context.check(status, || format!("copy {bytes} bytes to the device"))
    }

    /// Puts a copy from the device into the stream.
    ///
    /// # Safety
    ///
    /// Nobody reads the range before the stream was synchronized.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub(super) unsafe fn fetch(
        &mut self,
        offset: usize,
        bytes: usize,
        from: &DeviceMemory,
        from_offset: u64,
    ) -> Result<(), Diagnostic> {
        assert!(offset + bytes <= self.bytes, "{bytes} bytes at {offset} of {}", self.bytes);
        let address = from.address(from_offset, bytes as u64).expect("the range was checked at load");
        let context = &self.context;
        // SAFETY: both ranges lie inside their memory; nobody looks at the host's meanwhile by this
        // function's contract.
        let status = unsafe {
            let to = self.start.as_ptr().add(offset).cast();
            (context.functions().copy_to_host)(to, address, bytes, context.stream())
        };
        context.check(status, || format!("copy {bytes} bytes from the device"))
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        // A copy under way would go on into memory that somebody else gets.
        let _ = self.context.synchronize();
        // SAFETY: the memory is this one's own and nothing uses it any more.
        unsafe { (self.context.functions().host_free)(self.start.as_ptr().cast()) };
    }
}

/// Copies the mapped weights to the device: while one buffer is under way, the next is filled from the
/// file, and the one behind it is fetched from the disk. The host's memory keeps none of them.
///
/// # Errors
///
/// What the driver says, with how many bytes were sent before.
pub(crate) fn upload(context: &Rc<Context>, from: &Mapping, bytes: u64) -> Result<DeviceMemory, Diagnostic> {
    let mut sent_bytes = 0;
    upload_counted(context, from, bytes, &mut sent_bytes).map_err(|error| {
        let (sent, all) = (bytes_text(sent_bytes), bytes_text(bytes));
        error.within(format!("start: weights to the device, {sent} of {all} sent"))
    })
}

fn upload_counted(
    context: &Rc<Context>,
    from: &Mapping,
    bytes: u64,
    sent_bytes: &mut u64,
) -> Result<DeviceMemory, Diagnostic> {
    let memory = DeviceMemory::reserve(context, bytes, "weights")?;
    let chunk_bytes = UPLOAD_CHUNK_BYTES.min(bytes);
    let buffer = || -> Result<(PinnedMemory, Event), Diagnostic> {
        Ok((PinnedMemory::zeroed(context, chunk_bytes)?, Event::new(context)?))
    };
    let mut buffers = [buffer()?, buffer()?];
    let chunks = (0..bytes).step_by(chunk_bytes.max(1) as usize);
    for (index, offset) in chunks.enumerate() {
        let (buffer, sent) = &mut buffers[index % 2];
        if index >= 2 {
            sent.wait()?;
        }
        let count = chunk_bytes.min(bytes - offset);
        let behind = offset + count;
        from.announce(behind, chunk_bytes.min(bytes - behind));
        let chunk =
            from.read(offset, count).expect("the weight region has as many bytes as the manifest says");
        // SAFETY: the copy that used this buffer before has ended.
        unsafe { buffer.bytes_mut(0, chunk.len()) }.copy_from_slice(chunk);
        buffer.send(0, chunk.len(), &memory, offset)?;
        sent.record()?;
        *sent_bytes = behind;
        from.release(offset, count);
    }
    context.synchronize()?;
    Ok(memory)
}

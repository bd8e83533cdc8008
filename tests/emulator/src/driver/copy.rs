//! Copies and fills, which wait in a stream until somebody synchronizes.
//!
//! Host memory in them must be pinned: a driver would take pageable memory too, but then copies through a buffer
//! of its own before it returns, and a program that counts on overlap or on a changed buffer is wrong either way.

use std::ffi::c_void;
use std::ops::Range;

use super::context::Context;
use super::errors::{Answer, Refusal, Status};
use super::handles::Handle;
use super::pinned::{POISON, checksum};
use super::queue::Task;
use super::serve::{self, Shared};

/// Refuses host memory that is not pinned, or that work in another stream touches with no order between them.
fn must_be_usable(
    context: &Context,
    shared: &mut Shared,
    call: &str,
    (stream, host, writes): (Handle, &Range<usize>, bool),
) -> Answer {
    let (address, bytes) = (host.start, host.len());
    if !shared.pinned.holds(address, bytes) {
        let what = format!(
            "the {bytes} bytes at {address:#x} on the host are pageable; asynchronous copies need memory of cuMemHostAlloc"
        );
        return Err(shared.report.program_fault(Status::INVALID_VALUE, call, what));
    }
    if let Some(other) = context.rival(stream, host, writes) {
        let what = format!(
            "the {bytes} bytes at {address:#x} on the host are still used by work in stream {:#x}, \
             which nothing orders before stream {:#x}",
            other.0, stream.0
        );
        return Err(shared.report.program_fault(Status::INVALID_VALUE, call, what));
    }
    Ok(())
}

/// `cuMemcpyHtoDAsync_v2`: reads the host's bytes when the stream comes to it, which is at the earliest when
/// somebody synchronizes. The program may not change them before.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: Handle) -> Status {
    let call = "cuMemcpyHtoDAsync_v2";
    serve::in_context(call, |context, shared| {
        context.stream(stream)?;
        context.must_hold(to, bytes as u64, "the copy's destination")?;
        if bytes == 0 {
            return Ok(());
        }
        let from = from as usize;
        let host = from..from.wrapping_add(bytes);
        must_be_usable(context, shared, call, (stream, &host, false))?;
        // Where a copy before this one fills the buffer, its bytes change by right.
        let seen = match context.writes_host_memory(&host) {
            true => None,
            false => shared.pinned.checksum(&host),
        };
        context.issue(stream, Task::ToDevice { from: host, to, seen })
    })
}

/// `cuMemcpyDtoHAsync_v2`: bytes reach the host when it synchronizes, not before. Until then the host sees what
/// was there, or poison: half of all copies spoil their destination at once, as the seed decides.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: Handle) -> Status {
    let call = "cuMemcpyDtoHAsync_v2";
    serve::in_context(call, |context, shared| {
        context.stream(stream)?;
        context.must_hold(from, bytes as u64, "the copy's source")?;
        if bytes == 0 {
            return Ok(());
        }
        let host = to as usize..(to as usize).wrapping_add(bytes);
        must_be_usable(context, shared, call, (stream, &host, true))?;
        let mut seen = None;
        if !context.uses_host_memory(&host) {
            if shared.choose(2) == 1 {
                shared.pinned.write(host.start, &vec![POISON; bytes]);
            }
            seen = shared.pinned.checksum(&host);
        }
        context.issue(stream, Task::ToHost { from, to: host, seen })
    })
}

/// `cuMemsetD8Async`: fills device memory with one byte.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(to: u64, value: u8, bytes: usize, stream: Handle) -> Status {
    serve::in_context("cuMemsetD8Async", |context, _| {
        context.stream(stream)?;
        context.must_hold(to, bytes as u64, "the memory to fill")?;
        match bytes {
            0 => Ok(()),
            _ => context.issue(stream, Task::Fill { to, value, bytes: bytes as u64 }),
        }
    })
}

/// Bytes per second over the bus, and nanoseconds before the first byte: a plausible PCI Express 4.0.
const BUS_BYTES_PER_SECOND: f64 = 25e9;
const BUS_LATENCY_NS: f64 = 2_000.0;

impl Context {
    fn bus_takes(&mut self, bytes: usize) {
        self.clock_ns += BUS_LATENCY_NS + bytes as f64 / BUS_BYTES_PER_SECOND * 1e9;
    }

    /// Does a copy to the device: reads the host's bytes now.
    pub(super) fn copy_to_device(
        &mut self,
        shared: &mut Shared,
        from: &Range<usize>,
        to: u64,
        seen: Option<u64>,
    ) -> Answer {
        let call = "cuMemcpyHtoDAsync_v2";
        let copied_bytes = shared.report.bytes_to_device;
        if shared.settings.lose_device_after_bytes.is_some_and(|most| copied_bytes >= most) {
            shared.is_lost = true;
            let why =
                format!("the device is lost after {copied_bytes} copied bytes, as the environment asks");
            return Err(Refusal::new(Status::DEVICE_UNAVAILABLE, why));
        }
        if seen.is_none() {
            self.land_for_reading(shared, from)?;
        }
        let Some(bytes) = shared.pinned.read(from.start, from.len()) else {
            let what =
                format!("the {} bytes at {:#x} on the host are no longer pinned", from.len(), from.start);
            return Err(shared.report.program_fault(Status::LAUNCH_FAILED, call, what));
        };
        if seen.is_some_and(|seen| seen != checksum(&bytes)) {
            let what = format!(
                "the program changed the {} bytes at {:#x} before the copy that reads them was synchronized",
                from.len(),
                from.start
            );
            return Err(shared.report.program_fault(Status::LAUNCH_FAILED, call, what));
        }
        if let Err(error) = self.memory.write(to, &bytes) {
            let what = format!("{error}: the destination was freed before the copy");
            return Err(shared.report.program_fault(Status::ILLEGAL_ADDRESS, call, what));
        }
        shared.report.bytes_to_device += bytes.len() as u64;
        self.bus_takes(bytes.len());
        Ok(())
    }

    /// Does a copy from the device as far as its end of the bus.
    pub(super) fn copy_from_device(
        &mut self,
        shared: &mut Shared,
        from: u64,
        length: usize,
    ) -> Result<Vec<u8>, Refusal> {
        let call = "cuMemcpyDtoHAsync_v2";
        let mut bytes = vec![0; length];
        if let Err(error) = self.memory.read(from, &mut bytes) {
            let what = format!("{error}: the source was freed before the copy");
            return Err(shared.report.program_fault(Status::ILLEGAL_ADDRESS, call, what));
        }
        if !self.memory.is_initialised(from, length as u64) {
            let what = format!("of the {length} bytes at {from:#x} on the device some were never written");
            return Err(shared.report.program_fault(Status::LAUNCH_FAILED, call, what));
        }
        shared.report.bytes_to_host += length as u64;
        self.bus_takes(length);
        Ok(bytes)
    }

    /// Does a fill.
    pub(super) fn fill(&mut self, shared: &mut Shared, to: u64, value: u8, bytes: u64) -> Answer {
        if let Err(error) = self.memory.fill(to, value, bytes) {
            let what = format!("{error}: the memory was freed before the fill");
            return Err(shared.report.program_fault(Status::ILLEGAL_ADDRESS, "cuMemsetD8Async", what));
        }
        shared.report.bytes_filled += bytes;
        self.clock_ns += bytes as f64 / shared.settings.model.memory_bytes_per_second() * 1e9;
        Ok(())
    }
}

//! Memory: on the device, and pinned on the host.

use std::ffi::c_void;

use super::errors::{Refusal, Status};
use super::foreign::{Out, required};
use super::serve;

/// `CU_MEMHOSTALLOC_PORTABLE` and `CU_MEMHOSTALLOC_WRITECOMBINED`, which change nothing here.
const KNOWN_HOST_FLAGS: u32 = 0x1 | 0x4;

/// Memory of this machine, beyond which the system grants no allocation even if it stays untouched.
fn machine_memory_bytes() -> u64 {
    // SAFETY: these only ask for figures of the system.
    let (pages, page_bytes) =
        unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    // A system that does not say gets no limit.
    u64::try_from(pages)
        .ok()
        .and_then(|pages| pages.checked_mul(page_bytes.try_into().ok()?))
        .unwrap_or(u64::MAX)
}

/// `cuMemGetInfo_v2`: what is free and what there is.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemGetInfo_v2(free_bytes: Out<'_, usize>, total_bytes: Out<'_, usize>) -> Status {
    serve::in_context("cuMemGetInfo_v2", |context, _| {
        let (free, total) = (required(free_bytes, "free")?, required(total_bytes, "total")?);
        free.write((context.memory.capacity_bytes() - context.memory.used_bytes()) as usize);
        total.write(context.memory.capacity_bytes() as usize);
        Ok(())
    })
}

/// `cuMemAlloc_v2`: device memory, which begins uninitialised.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemAlloc_v2(address: Out<'_, u64>, bytes: usize) -> Status {
    serve::in_context("cuMemAlloc_v2", |context, shared| {
        let place = required(address, "dptr")?;
        if bytes == 0 {
            return Err(Refusal::invalid_value("0 bytes cannot be allocated"));
        }
        let machine_bytes = machine_memory_bytes();
        if bytes as u64 > machine_bytes && bytes as u64 <= context.memory.capacity_bytes() {
            let why = format!("{bytes} bytes are wanted, but the machine that emulates has {machine_bytes}");
            return Err(Refusal::new(Status::OUT_OF_MEMORY, why));
        }
        let free_bytes = context.memory.capacity_bytes() - context.memory.used_bytes();
        place.write(context.memory.allocate(bytes as u64).ok_or_else(|| {
            let why = format!("{bytes} bytes of device memory are wanted, {free_bytes} are free");
            Refusal::new(Status::OUT_OF_MEMORY, why)
        })?);
        let peak = &mut shared.report.peak_device_bytes;
        *peak = (*peak).max(context.memory.used_bytes());
        Ok(())
    })
}

/// `cuMemFree_v2`: gives device memory back once the work before it is done, as drivers do.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(address: u64) -> Status {
    serve::in_context("cuMemFree_v2", |context, shared| {
        if !context.memory.begins_allocation(address) {
            return Err(Refusal::invalid_value(format!(
                "{address:#x} is not the beginning of device memory, or was freed before"
            )));
        }
        context.run_all(shared)?;
        context.memory.free(address).map_err(|error| Refusal::invalid_value(error.to_string()))
    })
}

/// `cuMemHostAlloc`: pinned memory of the host. It is not mapped for kernels: the flag that asks for that
/// (`CU_MEMHOSTALLOC_DEVICEMAP`) is refused.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemHostAlloc(address: Out<'_, *mut c_void>, bytes: usize, flags: u32) -> Status {
    serve::in_context("cuMemHostAlloc", |context, shared| {
        let place = required(address, "pp")?;
        if bytes == 0 || flags & !KNOWN_HOST_FLAGS != 0 {
            let why = format!("{bytes} bytes with flags {flags:#x} cannot be allocated here");
            return Err(Refusal::invalid_value(why));
        }
        let allocated = shared.pinned.allocate(bytes, context.device()).ok_or_else(|| {
            Refusal::new(Status::OUT_OF_MEMORY, format!("the host has no {bytes} bytes to pin"))
        })?;
        place.write(allocated as *mut c_void);
        Ok(())
    })
}

/// `cuMemFreeHost`: gives pinned memory back, which no copy may still need.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeHost(address: *mut c_void) -> Status {
    serve::in_context("cuMemFreeHost", |context, shared| {
        let address = address as usize;
        if let Some(bytes) = shared.pinned.bytes_at(address)
            && context.uses_host_memory(&(address..address + bytes))
        {
            let what = format!("a copy still needs the {bytes} bytes at {address:#x}: synchronize first");
            return Err(shared.report.program_fault(Status::INVALID_VALUE, "cuMemFreeHost", what));
        }
        shared.pinned.release(address)
    })
}

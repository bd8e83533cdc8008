//! Devices and what they say about themselves.

use std::ffi::{c_char, c_int};

use super::errors::{Refusal, Status};
use super::foreign::{Out, required, write_text};
use super::models::{Model, SHARED_BYTES_WITHOUT_CONSENT};
use super::serve::{self, Driver};

/// Most threads of a block, on every architecture.
pub(super) const THREADS_PER_BLOCK: u32 = 1024;
/// Most threads of a block in x, y and z.
pub(super) const BLOCK_EXTENTS: [u32; 3] = [1024, 1024, 64];
/// Most blocks of a grid in x, y and z.
pub(super) const GRID_EXTENTS: [u32; 3] = [0x7fff_ffff, 65535, 65535];

/// The index of a `CUdevice`, which is its number.
pub(super) fn checked_device(driver: &Driver, device: c_int) -> Result<usize, Refusal> {
    let count = driver.contexts.len();
    usize::try_from(device).ok().filter(|index| *index < count).ok_or_else(|| {
        Refusal::new(Status::INVALID_DEVICE, format!("device {device} does not exist; there are {count}"))
    })
}

/// `cuDeviceGetCount`: how many devices there are.
#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetCount(count: Out<'_, c_int>) -> Status {
    serve::initialized("cuDeviceGetCount", |driver| {
        required(count, "count")?.write(driver.contexts.len() as c_int);
        Ok(())
    })
}

/// `cuDeviceGet`: the handle of a device, here its number.
#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGet(device: Out<'_, c_int>, ordinal: c_int) -> Status {
    serve::initialized("cuDeviceGet", |driver| {
        let place = required(device, "device")?;
        checked_device(driver, ordinal)?;
        place.write(ordinal);
        Ok(())
    })
}

/// `cuDeviceGetName`: a device's name, cut to `capacity` bytes with its NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, capacity: c_int, device: c_int) -> Status {
    serve::initialized("cuDeviceGetName", |driver| {
        checked_device(driver, device)?;
        let capacity_bytes = usize::try_from(capacity).unwrap_or(0);
        // SAFETY: the program vouches for as many bytes as it says.
        unsafe { write_text(name, capacity_bytes, driver.shared.settings.model.name, "name") }?;
        Ok(())
    })
}

/// `cuDeviceTotalMem_v2`: bytes of memory that a device has.
#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceTotalMem_v2(bytes: Out<'_, usize>, device: c_int) -> Status {
    serve::initialized("cuDeviceTotalMem_v2", |driver| {
        let place = required(bytes, "bytes")?;
        checked_device(driver, device)?;
        place.write(driver.shared.settings.memory_bytes as usize);
        Ok(())
    })
}

/// `cuDeviceGetAttribute`: a figure of a device. Attributes that are not emulated are refused: a program must
/// not build on an invented one.
#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetAttribute(value: Out<'_, c_int>, attribute: u32, device: c_int) -> Status {
    serve::initialized("cuDeviceGetAttribute", |driver| {
        let place = required(value, "pi")?;
        let index = checked_device(driver, device)?;
        let found = attribute_of(driver.shared.settings.model, index as u32, attribute);
        place.write(
            found.ok_or_else(|| {
                Refusal::invalid_value(format!("device attribute {attribute} is not emulated"))
            })? as c_int,
        );
        Ok(())
    })
}

/// The value of a `CUdevice_attribute`.
fn attribute_of(model: &Model, index: u32, attribute: u32) -> Option<u32> {
    Some(match attribute {
        // Limits of launches.
        1 => THREADS_PER_BLOCK,
        2..=4 => BLOCK_EXTENTS[attribute as usize - 2],
        5..=7 => GRID_EXTENTS[attribute as usize - 5],
        10 => 32,
        // Memories.
        8 => SHARED_BYTES_WITHOUT_CONSENT,
        9 => 64 << 10,
        38 => model.second_level_cache_bytes,
        81 => model.shared_bytes_per_multiprocessor,
        97 => model.shared_bytes_per_block_with_consent,
        // Shared memory that the driver keeps for itself in every block, since sm_80.
        111 => (model.shared_bytes_per_multiprocessor - model.shared_bytes_per_block_with_consent).min(1024),
        // Registers, the same on all architectures we know.
        12 | 82 => 65536,
        // Speed.
        13 => model.clock_khz,
        16 => model.multiprocessors,
        36 => model.memory_clock_khz,
        37 => model.memory_bus_bits,
        39 => model.threads_per_multiprocessor,
        40 => 2,
        106 => model.blocks_per_multiprocessor,
        // The default compute mode, no time limit on kernels, a card of its own.
        17 | 18 | 20 => 0,
        // Pinned memory can be mapped by the driver, kernels run side by side, one address space.
        19 | 31 | 41 => 1,
        // Error correction, and where the card sits.
        32 => u32::from(matches!(model.architecture, 70 | 75 | 80 | 86 | 90 | 100)),
        33 => index + 1,
        34 | 50 => 0,
        75 => model.architecture / 10,
        76 => model.architecture % 10,
        // Cooperative launches, and clusters of blocks since sm_90.
        95 => 1,
        120 => u32::from(model.architecture >= 90),
        _ => return None,
    })
}

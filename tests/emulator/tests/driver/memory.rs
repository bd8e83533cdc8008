//! Memory of the device and pinned memory of the host.

use qwen2c_emulator::driver::*;

use crate::calls::{Device, Pinned, done, get};
use crate::process::alone;

#[test]
fn memory_ends_where_the_device_says() {
    let outcome = alone(&[("QWEN2C_EMULATOR_MEMORY_BYTES", "1048576")], || {
        let device = Device::open();
        let information = || {
            let mut total = std::mem::MaybeUninit::uninit();
            let free = get(|out| cuMemGetInfo_v2(out, Some(&mut total))).unwrap();
            // SAFETY: the call succeeded, so both are written.
            (free, unsafe { total.assume_init() })
        };
        assert_eq!(information(), (1 << 20, 1 << 20));
        let most = get(|out| cuMemAlloc_v2(out, (1 << 20) - 256)).unwrap();
        assert_eq!(information(), (256, 1 << 20));
        assert_eq!(get(|out| cuMemAlloc_v2(out, 257)), Err(Status::OUT_OF_MEMORY));
        let rest = get(|out| cuMemAlloc_v2(out, 1)).unwrap();
        assert_eq!(information(), (0, 1 << 20));
        assert_eq!(get(|out| cuMemAlloc_v2(out, 1)), Err(Status::OUT_OF_MEMORY));
        done(cuMemFree_v2(most));
        done(cuMemFree_v2(rest));
        assert_eq!(information(), (1 << 20, 1 << 20));
        assert_eq!(get(|out| cuMemAlloc_v2(out, usize::MAX)), Err(Status::OUT_OF_MEMORY));
        assert_eq!(get(|out| cuMemAlloc_v2(out, 0)), Err(Status::INVALID_VALUE));
        assert_eq!(cuMemAlloc_v2(None, 4), Status::INVALID_VALUE);
        device.close();
    });
    let Some(outcome) = outcome else { return };
    assert_eq!(outcome.report["peak_device_bytes"], 1 << 20);
    let why = "257 bytes of device memory are wanted, 256 are free";
    outcome.refused("cuMemAlloc_v2", "CUDA_ERROR_OUT_OF_MEMORY", why);
}

#[test]
fn gigabytes_can_be_claimed_without_being_touched() {
    let outcome = alone(&[("QWEN2C_EMULATOR_MEMORY_BYTES", "800000000000")], || {
        let device = Device::open();
        let weights = get(|out| cuMemAlloc_v2(out, 1_000_000_000)).unwrap();
        let end = weights + 1_000_000_000 - 8;
        done(cuMemsetD8Async(end, 1, 8, device.stream));
        assert_eq!(device.download(end, 2), [0x0101_0101; 2]);
        done(cuMemFree_v2(weights));
        // More than this machine has cannot be held, whatever the device claims.
        assert_eq!(get(|out| cuMemAlloc_v2(out, 700_000_000_000)), Err(Status::OUT_OF_MEMORY));
        device.close();
    });
    let Some(outcome) = outcome else { return };
    assert_eq!(outcome.report["faults"], serde_json::json!([]));
    outcome.refused("cuMemAlloc_v2", "CUDA_ERROR_OUT_OF_MEMORY", "the machine that emulates has");
}

#[test]
fn memory_is_freed_once_and_at_its_beginning() {
    let outcome = alone(&[], || {
        let device = Device::open();
        let address = get(|out| cuMemAlloc_v2(out, 1024)).unwrap();
        assert_eq!(cuMemFree_v2(address + 256), Status::INVALID_VALUE);
        done(cuMemFree_v2(address));
        assert_eq!(cuMemFree_v2(address), Status::INVALID_VALUE);
        let pinned = Pinned::new(64).pointer;
        assert_eq!(cuMemFreeHost(pinned.wrapping_byte_add(8)), Status::INVALID_VALUE);
        done(cuMemFreeHost(pinned));
        assert_eq!(cuMemFreeHost(pinned), Status::INVALID_VALUE);
        // Memory that kernels could reach through the host's address is not emulated.
        for flags in [2, 8] {
            assert_eq!(get(|out| cuMemHostAlloc(out, 64, flags)), Err(Status::INVALID_VALUE));
        }
        assert_eq!(get(|out| cuMemHostAlloc(out, 0, 0)), Err(Status::INVALID_VALUE));
        device.close();
    });
    let Some(outcome) = outcome else { return };
    outcome.refused("cuMemHostAlloc", "CUDA_ERROR_INVALID_VALUE", "flags 0x2");
    assert_eq!(outcome.report["leaks"]["device_allocations"], 0);
}

#[test]
fn pinned_memory_cannot_go_while_a_copy_needs_it() {
    let outcome = alone(&[], || {
        let device = Device::open();
        let address = device.upload(&[1, 2, 3, 4]);
        let staging = Pinned::new(16);
        done(cuMemcpyDtoHAsync_v2(staging.pointer, address, 16, device.stream));
        assert_eq!(cuMemFreeHost(staging.pointer), Status::INVALID_VALUE);
        // Freeing device memory does the work before it, but tells the host nothing.
        done(cuMemFree_v2(address));
        device.synchronize();
        assert_eq!(staging.numbers(), [1, 2, 3, 4]);
        staging.free();
        device.close();
    });
    let Some(outcome) = outcome else { return };
    outcome.at_fault("cuMemFreeHost", "synchronize first");
}

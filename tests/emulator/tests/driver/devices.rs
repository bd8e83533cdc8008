//! Beginning, devices, contexts, and what is left at the end.

use std::ffi::{CStr, c_char, c_int};

use qwen2c_emulator::driver::*;

use crate::calls::{Device, Kernel, Pinned, done, function, get, load};
use crate::kernels::KERNELS;
use crate::process::alone;

fn name_of(device: c_int, capacity: usize) -> Result<String, Status> {
    let mut name = [0x7f as c_char; 64];
    // SAFETY: the capacity is no more than there is.
    let status = unsafe { cuDeviceGetName(name.as_mut_ptr(), capacity.min(64) as c_int, device) };
    // SAFETY: a call that succeeds wrote a string.
    let text = || unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
    if status == Status::SUCCESS { Ok(text()) } else { Err(status) }
}

#[test]
fn nothing_but_versions_and_errors_comes_before_the_beginning() {
    let outcome = alone(&[], || {
        assert_eq!(get(|out| cuDeviceGetCount(out)), Err(Status::NOT_INITIALIZED));
        assert_eq!(get(|out| cuDriverGetVersion(out)), Ok(12080));
        assert_eq!(cuInit(1), Status::INVALID_VALUE);
        assert_eq!(get(|out| cuDeviceGetCount(out)), Err(Status::NOT_INITIALIZED));
        done(cuInit(0));
        done(cuInit(0));
        assert_eq!(get(|out| cuDeviceGetCount(out)), Ok(1));
        assert_eq!(cuDeviceGetCount(None), Status::INVALID_VALUE);
    });
    let Some(outcome) = outcome else { return };
    outcome.refused("cuInit", "CUDA_ERROR_INVALID_VALUE", "flags are 0x1");
    outcome.refused("cuDeviceGetCount", "CUDA_ERROR_INVALID_VALUE", "count is null");
}

#[test]
fn errors_have_names_and_texts() {
    alone(&[], || {
        let text = |pointer: *const c_char| {
            // SAFETY: the driver's strings are constants.
            unsafe { CStr::from_ptr(pointer) }.to_str().unwrap()
        };
        let memory = Status::OUT_OF_MEMORY;
        assert_eq!(text(get(|out| cuGetErrorName(memory, out)).unwrap()), "CUDA_ERROR_OUT_OF_MEMORY");
        assert_eq!(text(get(|out| cuGetErrorString(memory, out)).unwrap()), "out of memory");
        assert_eq!(get(|out| cuGetErrorName(Status(4711), out)), Err(Status::INVALID_VALUE));
    });
}

#[test]
fn a_machine_without_devices_says_so() {
    let outcome = alone(&[("QWEN2C_EMULATOR_DEVICES", "0")], || {
        assert_eq!(cuInit(0), Status::NO_DEVICE);
        assert_eq!(get(|out| cuDeviceGet(out, 0)), Err(Status::NOT_INITIALIZED));
    });
    // A process that never began has no report.
    let Some(outcome) = outcome else { return };
    assert!(outcome.said.contains("cuInit: CUDA_ERROR_NO_DEVICE"), "{}", outcome.said);
}

#[test]
fn a_wrong_setting_is_named() {
    let outcome = alone(&[("QWEN2C_EMULATOR_MEMORY_BYTES", "16G")], || {
        assert_eq!(cuInit(0), Status::UNKNOWN);
    });
    let Some(outcome) = outcome else { return };
    assert!(outcome.said.contains("QWEN2C_EMULATOR_MEMORY_BYTES=16G is no whole number"), "{}", outcome.said);
}

#[test]
fn devices_describe_themselves() {
    let environment = [
        ("QWEN2C_EMULATOR_ARCHITECTURE", "90"),
        ("QWEN2C_EMULATOR_DEVICES", "2"),
        ("QWEN2C_EMULATOR_MEMORY_BYTES", "1000000000000"),
        ("QWEN2C_EMULATOR_DRIVER_VERSION", "12020"),
    ];
    let outcome = alone(&environment, || {
        done(cuInit(0));
        assert_eq!(get(|out| cuDriverGetVersion(out)), Ok(12020));
        assert_eq!(get(|out| cuDeviceGetCount(out)), Ok(2));
        assert_eq!(get(|out| cuDeviceGet(out, 1)), Ok(1));
        assert_eq!(get(|out| cuDeviceGet(out, 2)), Err(Status::INVALID_DEVICE));
        assert_eq!(get(|out| cuDeviceGet(out, -1)), Err(Status::INVALID_DEVICE));
        assert_eq!(get(|out| cuDeviceTotalMem_v2(out, 1)), Ok(1_000_000_000_000));
        assert!(name_of(1, 64).unwrap().starts_with("NVIDIA H100"));
        assert_eq!(name_of(1, 7).unwrap(), "NVIDIA");
        assert_eq!(name_of(1, 0), Err(Status::INVALID_VALUE));
        assert_eq!(name_of(7, 64), Err(Status::INVALID_DEVICE));
        let attribute = |number| get(|out| cuDeviceGetAttribute(out, number, 0));
        let known = [(1, 1024), (10, 32), (16, 132), (75, 9), (76, 0), (81, 233_472), (97, 232_448)];
        for (number, value) in known {
            assert_eq!(attribute(number), Ok(value), "attribute {number}");
        }
        for unknown in [0, 21, 999] {
            assert_eq!(attribute(unknown), Err(Status::INVALID_VALUE), "attribute {unknown}");
        }
    });
    let Some(outcome) = outcome else { return };
    outcome.refused("cuDeviceGetAttribute", "CUDA_ERROR_INVALID_VALUE", "attribute 999 is not emulated");
}

#[test]
fn calls_need_a_context_on_their_thread() {
    let outcome = alone(&[], || {
        done(cuInit(0));
        let allocate = || get(|out| cuMemAlloc_v2(out, 64));
        assert_eq!(allocate(), Err(Status::INVALID_CONTEXT));
        let context = get(|out| cuDevicePrimaryCtxRetain(out, 0)).unwrap();
        assert_eq!(allocate(), Err(Status::INVALID_CONTEXT));
        assert_eq!(cuCtxSetCurrent(Handle(17)), Status::INVALID_CONTEXT);
        done(cuCtxSetCurrent(context));
        done(cuMemFree_v2(allocate().unwrap()));
        std::thread::spawn(move || {
            assert_eq!(get(|out| cuMemAlloc_v2(out, 64)), Err(Status::INVALID_CONTEXT));
            done(cuCtxSetCurrent(context));
            done(cuMemFree_v2(get(|out| cuMemAlloc_v2(out, 64)).unwrap()));
        })
        .join()
        .unwrap();
        assert_eq!(get(|out| cuDevicePrimaryCtxRetain(out, 0)), Ok(context), "retained twice");
        done(cuDevicePrimaryCtxRelease_v2(0));
        done(cuMemFree_v2(allocate().unwrap()));
        done(cuDevicePrimaryCtxRelease_v2(0));
        assert_eq!(allocate(), Err(Status::CONTEXT_IS_DESTROYED));
        assert_eq!(cuDevicePrimaryCtxRelease_v2(0), Status::INVALID_CONTEXT);
        done(cuCtxSetCurrent(Handle::NULL));
        assert_eq!(allocate(), Err(Status::INVALID_CONTEXT));
    });
    let Some(outcome) = outcome else { return };
    outcome.refused("cuDevicePrimaryCtxRelease_v2", "CUDA_ERROR_INVALID_CONTEXT", "nobody retains");
}

#[test]
fn handles_of_other_kinds_devices_and_times_are_told_apart() {
    let outcome = alone(&[("QWEN2C_EMULATOR_DEVICES", "2")], || {
        let device = Device::open();
        let event = get(|out| cuEventCreate(out, 0)).unwrap();
        assert_eq!(cuStreamSynchronize(event), Status::INVALID_HANDLE);
        assert_eq!(cuStreamSynchronize(Handle(0x1234)), Status::INVALID_HANDLE);
        let second = get(|out| cuDevicePrimaryCtxRetain(out, 1)).unwrap();
        done(cuCtxSetCurrent(second));
        assert_eq!(cuStreamSynchronize(device.stream), Status::INVALID_HANDLE);
        done(cuDevicePrimaryCtxRelease_v2(1));
        done(cuCtxSetCurrent(device.context));
        done(cuEventDestroy_v2(event));
        assert_eq!(cuEventDestroy_v2(event), Status::INVALID_HANDLE);
        device.close();
    });
    let Some(outcome) = outcome else { return };
    let refused = |call: &str, why: &str| outcome.refused(call, "CUDA_ERROR_INVALID_HANDLE", why);
    refused("cuStreamSynchronize", "is an event, not a stream");
    refused("cuStreamSynchronize", "0x1234 is not a stream");
    refused("cuStreamSynchronize", "a stream of device 0, but the current context is that of device 1");
    refused("cuEventDestroy_v2", "is an event that was released");
}

#[test]
fn what_is_left_is_counted() {
    let outcome = alone(&[], || {
        let device = Device::open();
        get(|out| cuMemAlloc_v2(out, 1000)).unwrap();
        get(|out| cuMemAlloc_v2(out, 2048)).unwrap();
        Pinned::new(4096);
        get(|out| cuEventCreate(out, 0)).unwrap();
        let module = load(KERNELS).unwrap();
        let graph = get(|out| cuGraphCreate(out, 0)).unwrap();
        get(|out| cuGraphInstantiateWithFlags(out, graph, 0)).unwrap();
        done(Kernel::new(function(module, "exact").unwrap(), 32, &[]).launch(device.stream));
    });
    let Some(outcome) = outcome else { return };
    let expected = [
        ("device_allocations", 2),
        ("device_bytes", 1024 + 2048),
        ("pinned_allocations", 1),
        ("pinned_bytes", 4096),
        ("streams", 1),
        ("events", 1),
        ("modules", 1),
        ("graphs", 1),
        ("executable_graphs", 1),
        ("unfinished_works", 1),
    ];
    for (what, count) in expected {
        assert_eq!(outcome.report["leaks"][what], count, "{what}");
    }
    assert_eq!(outcome.report["leaks"]["contexts"], 1);
}

#[test]
fn what_is_left_in_a_released_context_is_counted() {
    let outcome = alone(&[], || {
        let device = Device::open();
        get(|out| cuMemAlloc_v2(out, 1000)).unwrap();
        let pinned = Pinned::new(10);
        device.close();
        // It went with its context.
        let device = Device::open();
        assert_eq!(cuMemFreeHost(pinned.pointer), Status::INVALID_VALUE);
        device.close();
    });
    let Some(outcome) = outcome else { return };
    let leaks = &outcome.report["leaks"];
    assert_eq!((&leaks["contexts"], &leaks["streams"]), (&0.into(), &0.into()));
    assert_eq!((&leaks["device_bytes"], &leaks["pinned_bytes"]), (&1024.into(), &10.into()));
}

#[test]
fn a_lost_device_stays_lost() {
    let outcome = alone(&[("QWEN2C_EMULATOR_LOSE_DEVICE_AFTER", "2")], || {
        let device = Device::open();
        let module = load(KERNELS).unwrap();
        let kernel = Kernel::new(function(module, "exact").unwrap(), 32, &[]);
        for _ in 0..2 {
            done(kernel.launch(device.stream));
        }
        device.synchronize();
        done(kernel.launch(device.stream));
        assert_eq!(cuStreamSynchronize(device.stream), Status::DEVICE_UNAVAILABLE);
        assert_eq!(get(|out| cuDeviceGetCount(out)), Err(Status::DEVICE_UNAVAILABLE));
        assert_eq!(kernel.launch(device.stream), Status::DEVICE_UNAVAILABLE);
        assert_eq!(get(|out| cuMemAlloc_v2(out, 64)), Err(Status::DEVICE_UNAVAILABLE));
        assert_eq!(get(|out| cuDriverGetVersion(out)), Ok(12080));
        done(cuDevicePrimaryCtxRelease_v2(0));
    });
    let Some(outcome) = outcome else { return };
    assert_eq!(outcome.report["kernels"]["exact"]["calls"], 2);
    let why = "lost after 2 kernels";
    outcome.refused("cuStreamSynchronize", "CUDA_ERROR_DEVICE_UNAVAILABLE", why);
}

#[test]
fn a_device_that_is_lost_in_the_middle_of_copies_stays_lost() {
    let outcome = alone(&[("QWEN2C_EMULATOR_LOSE_DEVICE_AFTER_BYTES", "20")], || {
        let device = Device::open();
        let pinned = Pinned::new(10);
        let address = get(|out| cuMemAlloc_v2(out, 64)).unwrap();
        for offset in [0, 16] {
            done(cuMemcpyHtoDAsync_v2(address + offset, pinned.pointer, 10, device.stream));
        }
        device.synchronize();
        done(cuMemcpyHtoDAsync_v2(address, pinned.pointer, 10, device.stream));
        assert_eq!(cuStreamSynchronize(device.stream), Status::DEVICE_UNAVAILABLE);
        assert_eq!(get(|out| cuMemAlloc_v2(out, 64)), Err(Status::DEVICE_UNAVAILABLE));
        done(cuDevicePrimaryCtxRelease_v2(0));
    });
    let Some(outcome) = outcome else { return };
    assert_eq!(outcome.report["bytes_to_device"], 20);
    let why = "lost after 20 copied bytes";
    outcome.refused("cuStreamSynchronize", "CUDA_ERROR_DEVICE_UNAVAILABLE", why);
}

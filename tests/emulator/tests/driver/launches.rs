//! Launches: from the copy in to the copy out, and what hardware refuses.

use qwen2c_emulator::driver::*;

use crate::calls::{Device, Kernel, done, function, get, load};
use crate::kernels::KERNELS;
use crate::process::alone;

#[test]
fn a_kernel_runs_from_end_to_end() {
    let outcome = alone(&[], || {
        let device = Device::open();
        let module = load(KERNELS).unwrap();
        let numbers: Vec<u32> = (0..96).collect();
        let input = device.upload(&numbers);
        let output = get(|out| cuMemAlloc_v2(out, 96 * 4)).unwrap();
        let mut add = Kernel::new(function(module, "add").unwrap(), 32, &[input, output, 1000]);
        add.grid = [3, 1, 1];
        done(add.launch(device.stream));
        // Parameters were copied: what the program does with them now is its own affair.
        add.parameters.fill(0);
        let sums: Vec<u32> = numbers.iter().map(|number| number + 1000).collect();
        assert_eq!(device.download(output, 96), sums);
        done(cuMemFree_v2(input));
        done(cuMemFree_v2(output));
        done(cuModuleUnload(module));
        device.close();
    });
    let Some(outcome) = outcome else { return };
    outcome.clean();
    let report = &outcome.report;
    assert_eq!((&report["launches"], &report["graph_launches"]), (&1.into(), &0.into()));
    let add = &report["kernels"]["add"];
    assert_eq!(add["calls"], 1);
    assert_eq!(add["counts"]["global_read_bytes"], 96 * 4);
    assert_eq!(add["counts"]["global_written_bytes"], 96 * 4);
    assert_eq!(report["bytes_to_device"], 96 * 4);
    assert_eq!(report["bytes_to_host"], 96 * 4);
}

#[test]
fn shapes_that_no_device_takes_are_refused() {
    let outcome = alone(&[], || {
        let device = Device::open();
        let module = load(KERNELS).unwrap();
        let launch = |name: &str, grid: [u32; 3], block: [u32; 3]| {
            let kernel = Kernel { grid, block, ..Kernel::new(function(module, name).unwrap(), 1, &[]) };
            kernel.launch(device.stream)
        };
        let refused = Status::INVALID_VALUE;
        assert_eq!(launch("tile", [0, 1, 1], [32, 1, 1]), refused);
        assert_eq!(launch("tile", [1, 65536, 1], [32, 1, 1]), refused);
        assert_eq!(launch("tile", [1, 1, 1], [0, 1, 1]), refused);
        assert_eq!(launch("tile", [1, 1, 1], [1025, 1, 1]), refused);
        assert_eq!(launch("tile", [1, 1, 1], [1, 1, 65]), refused);
        assert_eq!(launch("tile", [1, 1, 1], [1024, 2, 1]), refused);
        assert_eq!(launch("bounded", [1, 1, 1], [65, 1, 1]), refused);
        assert_eq!(launch("exact", [1, 1, 1], [31, 1, 1]), refused);
        assert_eq!(launch("exact", [1, 1, 1], [64, 1, 1]), refused);
        done(launch("tile", [2, 2, 1], [8, 2, 2]));
        done(launch("bounded", [1, 1, 1], [64, 1, 1]));
        done(launch("exact", [1, 1, 1], [32, 1, 1]));
        device.synchronize();
    });
    let Some(outcome) = outcome else { return };
    let refused = |why: &str| outcome.refused("cuLaunchKernel", "CUDA_ERROR_INVALID_VALUE", why);
    refused("`bounded`: 65 threads are launched, but .maxntid allows 64");
    refused("`exact`: 31 threads are launched, but .reqntid demands 32");
    refused("the grid is [0, 1, 1]");
    refused("the block is [1024, 2, 1]");
    assert_eq!(outcome.report["launches"], 3);
}

#[test]
fn much_shared_memory_needs_consent() {
    let outcome = alone(&[], || {
        let device = Device::open();
        let module = load(KERNELS).unwrap();
        let consent = |function, bytes| cuFuncSetAttribute(function, 8, bytes);
        let launch = |function, shared_bytes| {
            Kernel { shared_bytes, ..Kernel::new(function, 32, &[]) }.launch(device.stream)
        };
        // 48 KiB are everybody's; `tile` has 40 of them itself.
        let (tile, exact) = (function(module, "tile").unwrap(), function(module, "exact").unwrap());
        done(launch(exact, 48 << 10));
        assert_eq!(launch(exact, (48 << 10) + 1), Status::INVALID_VALUE);
        done(launch(tile, 8 << 10));
        assert_eq!(launch(tile, (8 << 10) + 1), Status::INVALID_VALUE);
        done(consent(exact, 163 << 10));
        assert_eq!(consent(exact, (163 << 10) + 1), Status::INVALID_VALUE);
        done(launch(exact, 163 << 10));
        assert_eq!(consent(tile, (123 << 10) + 1), Status::INVALID_VALUE);
        done(consent(tile, 123 << 10));
        done(launch(tile, 123 << 10));
        assert_eq!(consent(tile, -1), Status::INVALID_VALUE);
        done(cuFuncSetAttribute(tile, 9, 100));
        assert_eq!(cuFuncSetAttribute(tile, 9, 101), Status::INVALID_VALUE);
        assert_eq!(cuFuncSetAttribute(tile, 4, 32), Status::INVALID_VALUE);
        device.synchronize();
    });
    let Some(outcome) = outcome else { return };
    let why = "`tile`: 8193 bytes of dynamic shared memory are launched, but 8192 are allowed beside 40960";
    outcome.refused("cuLaunchKernel", "CUDA_ERROR_INVALID_VALUE", why);
    outcome.refused("cuFuncSetAttribute", "CUDA_ERROR_INVALID_VALUE", "function attribute 4 = 32");
}

#[test]
fn blocks_that_wait_for_one_another_must_fit_the_device() {
    let outcome = alone(&[], || {
        let device = Device::open();
        let module = load(KERNELS).unwrap();
        let tile = function(module, "tile").unwrap();
        let held = |threads, bytes| {
            get(|out| cuOccupancyMaxActiveBlocksPerMultiprocessor(out, tile, threads, bytes))
        };
        // Threads of 128 registers, then shared memory: 40 KiB of the kernel's own, and one of the driver's.
        assert_eq!(held(128, 0), Ok(4));
        assert_eq!(held(256, 0), Ok(2));
        assert_eq!(held(32, 0), Ok(4));
        assert_eq!(held(32, 60 << 10), Ok(1));
        assert_eq!(held(0, 0), Err(Status::INVALID_VALUE));
        assert_eq!(held(1025, 0), Err(Status::INVALID_VALUE));
        let launch = |blocks| {
            let (parameters, stream) = (std::ptr::null(), device.stream);
            // SAFETY: the kernel has no parameters.
            unsafe { cuLaunchCooperativeKernel(tile, blocks, 1, 1, 128, 1, 1, 0, stream, parameters) }
        };
        assert_eq!(launch(4 * 108 + 1), Status::COOPERATIVE_LAUNCH_TOO_LARGE);
        done(launch(4 * 108));
        device.synchronize();
    });
    let Some(outcome) = outcome else { return };
    let call = "cuLaunchCooperativeKernel";
    let why = "`tile`: 433 blocks, but the device holds 432";
    outcome.refused(call, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE", why);
}

#[test]
fn parameters_must_be_there() {
    let outcome = alone(&[], || {
        let device = Device::open();
        let twice = function(load(KERNELS).unwrap(), "twice").unwrap();
        let (null, some) = (std::ptr::null(), 7u64);
        let launch = |parameters: *const *const std::ffi::c_void, extra| {
            // SAFETY: the parameters are null, or as many pointers as the kernel has parameters.
            unsafe { cuLaunchKernel(twice, 1, 1, 1, 32, 1, 1, 0, device.stream, parameters, extra) }
        };
        assert_eq!(launch(null, null), Status::INVALID_VALUE);
        let second_missing = [std::ptr::from_ref(&some).cast(), std::ptr::null()];
        assert_eq!(launch(second_missing.as_ptr(), null), Status::INVALID_VALUE);
        let both = [std::ptr::from_ref(&some).cast(); 2];
        assert_eq!(launch(both.as_ptr(), both.as_ptr()), Status::NOT_SUPPORTED);
        assert_eq!(Kernel::new(device.stream, 32, &[]).launch(device.stream), Status::INVALID_HANDLE);
        assert_eq!(Kernel::new(twice, 32, &[0, 0]).launch(twice), Status::INVALID_HANDLE);
    });
    let Some(outcome) = outcome else { return };
    let refused = |why: &str| outcome.refused("cuLaunchKernel", "CUDA_ERROR_INVALID_VALUE", why);
    refused("kernelParams is null");
    refused("kernelParams[1] is null");
}

#[test]
fn a_fault_is_told_once_and_breaks_the_context() {
    let outcome = alone(&[], || {
        let device = Device::open();
        let module = load(KERNELS).unwrap();
        let output = get(|out| cuMemAlloc_v2(out, 1024)).unwrap();
        let stray = Kernel::new(function(module, "stray").unwrap(), 1, &[output]);
        done(stray.launch(device.stream));
        assert_eq!(cuStreamSynchronize(device.stream), Status::ILLEGAL_ADDRESS);
        assert_eq!(stray.launch(device.stream), Status::ILLEGAL_ADDRESS);
        assert_eq!(get(|out| cuMemAlloc_v2(out, 4)), Err(Status::ILLEGAL_ADDRESS));
        assert_eq!(cuModuleUnload(module), Status::ILLEGAL_ADDRESS);
        // Only another context helps.
        done(cuDevicePrimaryCtxRelease_v2(0));
        let device = Device::open();
        assert_eq!(device.download(device.upload(&[7]), 1), [7]);
    });
    let Some(outcome) = outcome else { return };
    let faults = outcome.report["faults"].as_array().unwrap();
    assert_eq!(faults.len(), 1, "{faults:#?}");
    assert_eq!(faults[0]["kernel"], "stray");
    let line = KERNELS.lines().position(|line| line.contains("[%rd2+4096]")).unwrap() + 1;
    assert_eq!(faults[0]["line"], line);
    assert!(faults[0]["instruction"].as_str().unwrap().contains("st.global.u32"), "{faults:#?}");
    assert!(outcome.said.contains("fault in kernel `stray`"), "{}", outcome.said);
    // What could not be given back after the fault is no leak; what was left in the second context is.
    assert_eq!(outcome.report["leaks"]["device_allocations"], 1);
}

//! Loading modules: what a driver refuses, and its log.

use std::ffi::{CStr, c_void};

use qwen2c_emulator::driver::*;

use crate::calls::{Device, Kernel, done, function, load, load_with};
use crate::kernels::KERNELS;
use crate::process::alone;

#[test]
fn ptx_that_the_driver_or_device_does_not_know_is_refused() {
    let outcome = alone(&[("QWEN2C_EMULATOR_ARCHITECTURE", "86")], || {
        let _device = Device::open();
        let changed = |from: &str, to: &str| load(&KERNELS.replace(from, to));
        assert!(changed("sm_80", "sm_86").is_ok(), "the device's own");
        assert_eq!(changed("sm_80", "sm_89"), Err(Status::INVALID_PTX));
        assert_eq!(changed("sm_80", "sm_80a"), Err(Status::INVALID_PTX));
        assert_eq!(changed(".version 8.0", ".version 8.8"), Err(Status::UNSUPPORTED_PTX_VERSION));
        assert_eq!(changed(".version 8.0", ".version 6.5"), Err(Status::INVALID_PTX));
        assert_eq!(changed("shl.b32", "shuffle.b32"), Err(Status::INVALID_PTX));
        assert_eq!(load(""), Err(Status::INVALID_PTX));
        assert_eq!(load("\x7fELF\x02\x01\x01"), Err(Status::NO_BINARY_FOR_GPU));
    });
    let Some(outcome) = outcome else { return };
    let refused = |error: &str, why: &str| outcome.refused("cuModuleLoadDataEx", error, why);
    refused("CUDA_ERROR_INVALID_PTX", ".target sm_89; the device is sm_86");
    refused("CUDA_ERROR_UNSUPPORTED_PTX_VERSION", ".version 8.8; a driver for CUDA 12.8 knows at most 8.7");
    refused("CUDA_ERROR_INVALID_PTX", "shuffle.b32");
    refused("CUDA_ERROR_NO_BINARY_FOR_GPU", "machine code");
}

/// Loads with a log for errors of `capacity` bytes: the status, the log, and how many bytes it says are used.
fn load_with_log(ptx: &str, capacity: usize) -> (Result<Handle, Status>, String, usize) {
    let mut log = vec![0x7fu8; capacity];
    let mut values = [capacity as *mut c_void, log.as_mut_ptr().cast()];
    let loaded = load_with(ptx, &[6, 5], &mut values);
    let text =
        CStr::from_bytes_until_nul(&log).expect("the log ends with NUL").to_string_lossy().into_owned();
    (loaded, text, values[0] as usize)
}

#[test]
fn the_log_says_what_is_wrong() {
    alone(&[], || {
        let _device = Device::open();
        let broken = KERNELS.replace("shl.b32", "shuffle.b32");
        let (loaded, log, used_bytes) = load_with_log(&broken, 4096);
        assert_eq!(loaded, Err(Status::INVALID_PTX));
        assert!(log.contains("shuffle.b32") && log.contains("line "), "{log}");
        assert_eq!(used_bytes, log.len() + 1);
        let (loaded, cut, used_bytes) = load_with_log(&broken, 8);
        assert_eq!((loaded, cut.as_str(), used_bytes), (Err(Status::INVALID_PTX), &log[..7], 8));
        let (loaded, log, used_bytes) = load_with_log(KERNELS, 4096);
        assert!(loaded.is_ok());
        assert_eq!((log.as_str(), used_bytes), ("", 1));
    });
}

#[test]
fn unknown_options_are_refused() {
    let outcome = alone(&[], || {
        let _device = Device::open();
        let with = |option: u32, value: usize| load_with(KERNELS, &[option], &mut [value as *mut c_void]);
        assert!(with(7, 4).is_ok(), "optimization level 4");
        assert_eq!(with(7, 5), Err(Status::INVALID_VALUE));
        assert_eq!(with(9, 80), Err(Status::INVALID_VALUE));
        assert_eq!(with(77, 0), Err(Status::INVALID_VALUE));
    });
    let Some(outcome) = outcome else { return };
    outcome.refused("cuModuleLoadDataEx", "CUDA_ERROR_INVALID_VALUE", "option 77 with value 0");
}

#[test]
fn functions_are_found_by_name_and_go_with_their_module() {
    let outcome = alone(&[], || {
        let device = Device::open();
        let module = load(KERNELS).unwrap();
        let exact = function(module, "exact").unwrap();
        assert_eq!(function(module, "exact"), Ok(exact));
        assert_ne!(function(module, "add"), Ok(exact));
        assert_eq!(function(module, "exactly"), Err(Status::NOT_FOUND));
        assert_eq!(function(exact, "exact"), Err(Status::INVALID_HANDLE));
        let kernel = Kernel::new(exact, 32, &[]);
        done(kernel.launch(device.stream));
        assert_eq!(cuModuleUnload(module), Status::INVALID_VALUE, "a kernel of it still waits");
        device.synchronize();
        done(cuModuleUnload(module));
        assert_eq!(cuModuleUnload(module), Status::INVALID_HANDLE);
        assert_eq!(kernel.launch(device.stream), Status::INVALID_HANDLE);
        assert_eq!(function(module, "exact"), Err(Status::INVALID_HANDLE));
        device.close();
    });
    let Some(outcome) = outcome else { return };
    outcome.at_fault("cuModuleUnload", "synchronize first");
    outcome.refused("cuModuleGetFunction", "CUDA_ERROR_NOT_FOUND", "no entry `exactly`");
}

//! Beginning: `cuInit`, and the driver's version.

use std::ffi::c_int;

use super::errors::{Refusal, Status};
use super::foreign::{Out, required};
use super::serve;

extern "C" fn when_the_process_exits() {
    serve::at_exit();
}

/// `cuInit`: must come first and may come again.
#[unsafe(no_mangle)]
pub extern "C" fn cuInit(flags: u32) -> Status {
    serve::anytime("cuInit", |driver| {
        if let Some(wrong) = &driver.wrong_settings {
            return Err(Refusal::new(Status::UNKNOWN, wrong.clone()));
        }
        if flags != 0 {
            return Err(Refusal::invalid_value(format!("flags are {flags:#x}, but must be 0")));
        }
        if driver.shared.settings.devices == 0 {
            return Err(Refusal::new(Status::NO_DEVICE, "QWEN2C_EMULATOR_DEVICES is 0"));
        }
        if !driver.is_initialized {
            driver.is_initialized = true;
            // SAFETY: the function takes and returns nothing, and does not unwind.
            let refused = unsafe { libc::atexit(when_the_process_exits) };
            if refused != 0 {
                return Err(Refusal::new(Status::UNKNOWN, "the system takes no further exit function"));
            }
        }
        Ok(())
    })
}

/// `cuDriverGetVersion`: the newest CUDA that the driver supports; needs no `cuInit`.
#[unsafe(no_mangle)]
pub extern "C" fn cuDriverGetVersion(version: Out<'_, c_int>) -> Status {
    serve::anytime("cuDriverGetVersion", |driver| {
        required(version, "driverVersion")?.write(driver.shared.settings.driver_version as c_int);
        Ok(())
    })
}

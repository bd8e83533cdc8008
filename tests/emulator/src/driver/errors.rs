//! The driver's error numbers, names and texts, and the refusals this driver answers with.

use std::ffi::{CStr, c_char};

use super::foreign::{Out, required};
use super::serve;

/// `CUresult`: what every function of the driver returns.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u32);

macro_rules! statuses {
    ($($short:ident = $number:literal, $name:literal, $text:literal;)*) => {
        #[allow(missing_docs, reason = "each is the constant of cuda.h that its name says")]
        impl Status {
            $(pub const $short: Self = Self($number);)*
        }

        /// Name and text of an error number.
        fn texts(status: Status) -> Option<(&'static CStr, &'static CStr)> {
            match status {
                $(Status::$short => Some(($name, $text)),)*
                _ => None,
            }
        }
    };
}

statuses! {
    SUCCESS = 0, c"CUDA_SUCCESS", c"no error";
    INVALID_VALUE = 1, c"CUDA_ERROR_INVALID_VALUE", c"invalid argument";
    OUT_OF_MEMORY = 2, c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory";
    NOT_INITIALIZED = 3, c"CUDA_ERROR_NOT_INITIALIZED", c"initialization error";
    DEINITIALIZED = 4, c"CUDA_ERROR_DEINITIALIZED", c"driver shutting down";
    DEVICE_UNAVAILABLE = 46, c"CUDA_ERROR_DEVICE_UNAVAILABLE", c"CUDA-capable device(s) is/are busy or unavailable";
    NO_DEVICE = 100, c"CUDA_ERROR_NO_DEVICE", c"no CUDA-capable device is detected";
    INVALID_DEVICE = 101, c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal";
    INVALID_IMAGE = 200, c"CUDA_ERROR_INVALID_IMAGE", c"device kernel image is invalid";
    INVALID_CONTEXT = 201, c"CUDA_ERROR_INVALID_CONTEXT", c"invalid device context";
    NO_BINARY_FOR_GPU = 209, c"CUDA_ERROR_NO_BINARY_FOR_GPU", c"no kernel image is available for execution on the device";
    INVALID_PTX = 218, c"CUDA_ERROR_INVALID_PTX", c"a PTX JIT compilation failed";
    UNSUPPORTED_PTX_VERSION = 222, c"CUDA_ERROR_UNSUPPORTED_PTX_VERSION", c"the provided PTX was compiled with an unsupported toolchain.";
    INVALID_HANDLE = 400, c"CUDA_ERROR_INVALID_HANDLE", c"invalid resource handle";
    NOT_FOUND = 500, c"CUDA_ERROR_NOT_FOUND", c"named symbol not found";
    NOT_READY = 600, c"CUDA_ERROR_NOT_READY", c"device not ready";
    ILLEGAL_ADDRESS = 700, c"CUDA_ERROR_ILLEGAL_ADDRESS", c"an illegal memory access was encountered";
    LAUNCH_OUT_OF_RESOURCES = 701, c"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", c"too many resources requested for launch";
    CONTEXT_IS_DESTROYED = 709, c"CUDA_ERROR_CONTEXT_IS_DESTROYED", c"context is destroyed";
    ILLEGAL_INSTRUCTION = 715, c"CUDA_ERROR_ILLEGAL_INSTRUCTION", c"an illegal instruction was encountered";
    MISALIGNED_ADDRESS = 716, c"CUDA_ERROR_MISALIGNED_ADDRESS", c"misaligned address";
    LAUNCH_FAILED = 719, c"CUDA_ERROR_LAUNCH_FAILED", c"unspecified launch failure";
    COOPERATIVE_LAUNCH_TOO_LARGE = 720, c"CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE", c"too many blocks in cooperative launch";
    NOT_PERMITTED = 800, c"CUDA_ERROR_NOT_PERMITTED", c"operation not permitted";
    NOT_SUPPORTED = 801, c"CUDA_ERROR_NOT_SUPPORTED", c"operation not supported";
    UNKNOWN = 999, c"CUDA_ERROR_UNKNOWN", c"unknown error";
}

impl Status {
    /// The name of cuda.h.
    pub(super) fn name(self) -> &'static str {
        texts(self).and_then(|(name, _)| name.to_str().ok()).unwrap_or("an unnamed error")
    }
}

/// A call that was not served: what the caller gets, and why, for standard error and the report.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) status: Status,
    /// None where the reason was said before: an error that sticks is explained once.
    pub(super) why: Option<String>,
}

impl Refusal {
    pub(super) fn new(status: Status, why: impl Into<String>) -> Self {
        Self { status, why: Some(why.into()) }
    }

    pub(super) fn silent(status: Status) -> Self {
        Self { status, why: None }
    }

    pub(super) fn invalid_value(why: impl Into<String>) -> Self {
        Self::new(Status::INVALID_VALUE, why)
    }
}

/// What a call comes to.
pub(super) type Answer = Result<(), Refusal>;

fn text_of(status: Status, what: Out<'_, *const c_char>, name: bool) -> Answer {
    let what = required(what, "pStr")?;
    match texts(status) {
        Some((known_name, text)) => {
            what.write(if name { known_name.as_ptr() } else { text.as_ptr() });
            Ok(())
        }
        None => {
            what.write(std::ptr::null());
            Err(Refusal::invalid_value(format!("{} is no error this driver returns", status.0)))
        }
    }
}

/// `cuGetErrorName`: the constant of an error number; needs no `cuInit`.
#[unsafe(no_mangle)]
pub extern "C" fn cuGetErrorName(error: Status, name: Out<'_, *const c_char>) -> Status {
    serve::anytime("cuGetErrorName", |_| text_of(error, name, true))
}

/// `cuGetErrorString`: an error number in words; needs no `cuInit`.
#[unsafe(no_mangle)]
pub extern "C" fn cuGetErrorString(error: Status, text: Out<'_, *const c_char>) -> Status {
    serve::anytime("cuGetErrorString", |_| text_of(error, text, false))
}

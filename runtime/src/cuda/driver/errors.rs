//! What the driver's error codes mean to a person, and what helps.

use std::ffi::CStr;

use qwen2c_format::Diagnostic;

use super::functions::{ERROR_OUT_OF_MEMORY, SUCCESS, Status};
use super::{Driver, LEAST_VERSION};

/// Kinds of failure that differ in what helps.
enum Remedy {
    Memory,
    Driver,
    Kernel,
    Device,
    Report,
}

impl Remedy {
    /// Numbers are those of `CUresult`.
    const fn of(status: Status) -> Self {
        match status {
            ERROR_OUT_OF_MEMORY => Self::Memory,
            // Insufficient driver; image, PTX, JIT compiler not taken; driver and libraries mismatch.
            35 | 200 | 209 | 218 | 220..=223 | 803 | 804 => Self::Driver,
            // Illegal address, hardware stack, illegal instruction, misaligned address, invalid address
            // space, invalid program counter, launch failed.
            700 | 714..=719 => Self::Kernel,
            // Unavailable, no or unusable device, uncorrectable memory error, contained error, timeout,
            // context destroyed, not initialized.
            3 | 4 | 46 | 99..=101 | 201 | 214 | 226 | 702 | 709 | 802 | 805..=810 => Self::Device,
            _ => Self::Report,
        }
    }

    fn add_to(&self, diagnostic: Diagnostic) -> Diagnostic {
        match self {
            Self::Memory => diagnostic
                .help("end other programs that use the GPU: `nvidia-smi` lists them")
                .help("build the program with a smaller `--context`, or with `--quant int4`"),
            Self::Driver => diagnostic.help("update NVIDIA's driver"),
            Self::Kernel => diagnostic
                .help("`CUDA_LAUNCH_BLOCKING=1` makes the program name the step")
                .help("`info --verify` and `self-test` tell whether the program is what was built")
                .help("report this as a bug of `qwen2c`, with the command and `info --json`"),
            Self::Device => diagnostic
                .help("look at `nvidia-smi` and, for `Xid` messages, at the kernel's log: the GPU may be lost or taken")
                .help("start the program again, or name another GPU with `--device`"),
            Self::Report => diagnostic.help("if `nvidia-smi` works, report this as a bug of `qwen2c`"),
        }
    }
}

impl Driver {
    /// Turns a status into a result; `doing` completes "the CUDA driver could not …".
    ///
    /// # Errors
    ///
    /// Every status but success, with CUDA's name and text for it.
    pub(crate) fn check(&self, status: Status, doing: impl FnOnce() -> String) -> Result<(), Diagnostic> {
        if status == SUCCESS { Ok(()) } else { Err(self.failure(status, &doing())) }
    }

    /// The diagnostic of a status that is not success.
    pub(crate) fn failure(&self, status: Status, doing: &str) -> Diagnostic {
        let name =
            self.text(status, self.functions.error_name).unwrap_or_else(|| "an unknown error".to_owned());
        let text = self.text(status, self.functions.error_text);
        let text = text.map(|text| format!(": {text}")).unwrap_or_default();
        let diagnostic = Diagnostic::new(format!("the CUDA driver could not {doing}"))
            .cause(format!("{name} ({status}){text}"));
        Remedy::of(status).add_to(diagnostic)
    }

    fn text(
        &self,
        status: Status,
        ask: unsafe extern "C" fn(Status, *mut *const std::ffi::c_char) -> Status,
    ) -> Option<String> {
        let mut text = std::ptr::null();
        // SAFETY: the driver writes the address of a C string that is never freed, or leaves null.
        unsafe {
            let known = ask(status, &mut text) == SUCCESS && !text.is_null();
            known.then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    }

    /// The driver works, and has nothing to drive.
    pub(super) fn no_device(&self) -> Diagnostic {
        Diagnostic::new("this program runs on an NVIDIA GPU, and the CUDA driver finds none")
            .found(format!("a driver for {}, no device", self.version()))
            .help("`nvidia-smi` lists GPUs; `CUDA_VISIBLE_DEVICES` may hide them, and a container needs `--gpus all`")
            .help(format!("the driver must be for {LEAST_VERSION} or newer and match its kernel module"))
            .help("to run on the processor, build the program with `--target native`")
    }
}

//! `main` of every emitted program.
//!
//! The compiler links this library with the kernels' object, which defines the kernel table, and then
//! fills in the locator. A crate of its own, because an exported `main` would take the place of the test
//! harness's. With a C `main`, std's own start-up is skipped.

use std::ffi::{c_char, c_int};

use qwen2c_format::Locator;
use qwen2c_runtime::KernelEntry;

/// What a bug of ours ends the process with.
const INTERNAL_ERROR: c_int = 3;

/// Where the program's data lies; the compiler writes over it in the linked file.
///
/// In a section of its own, so that no linker merges it with equal bytes.
#[used]
#[unsafe(link_section = ".data.qwen2c_locator")]
static QWEN2C_LOCATOR: Locator = Locator::UNPATCHED;

unsafe extern "C" {
    /// Kernels of the linked object.
    static qwen2c_kernels: [KernelEntry; 0];
    /// How many there are.
    static qwen2c_kernel_count: u64;
}

/// Runs the program and returns its exit code.
#[unsafe(no_mangle)]
pub extern "C" fn main(_argument_count: c_int, _arguments: *const *const c_char) -> c_int {
    std::panic::set_hook(Box::new(|panic| {
        eprintln!(
            "error: {panic}\n  help: this is a bug of `qwen2c`: report it with the command and `info --json`"
        );
        std::process::exit(INTERNAL_ERROR);
    }));
    // SAFETY: the static is initialized; the read is volatile because the compiler must not take the
    // value it was compiled with for the one that the file holds.
    let locator = unsafe { std::ptr::read_volatile(&raw const QWEN2C_LOCATOR) };
    // SAFETY: the object that the compiler links in defines an array of as many entries as the count
    // beside it says.
    let kernels = unsafe {
        std::slice::from_raw_parts((&raw const qwen2c_kernels).cast(), qwen2c_kernel_count as usize)
    };
    qwen2c_runtime::main(&locator, kernels)
}

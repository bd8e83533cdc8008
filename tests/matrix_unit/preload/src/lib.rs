//! Runs programs for `x86-64-amx` on machines without a matrix unit: `LD_PRELOAD` names this library, and the
//! program's own machine code runs.
//!
//! Three things are not the machine's then: `/proc/cpuinfo` lists the unit's features, the system grants its
//! registers, and its instructions, which the processor refuses, are computed by `qwen2c-matrix-unit`. What
//! surrounds them, AVX-512 with VNNI and BF16, the machine must have.

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use std::io::{Seek as _, Write as _};
use std::os::fd::{FromRawFd as _, IntoRawFd as _};

/// Features of the unit, in the names of `/proc/cpuinfo`.
const FEATURES: &str = " amx_tile amx_bf16 amx_int8";

/// `ARCH_REQ_XCOMP_PERM`.
const REQUEST: c_long = 0x1023;

#[used]
// SAFETY: the section holds functions that the loader calls once, without arguments that this one would read.
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

extern "C" fn start() {
    qwen2c_matrix_unit::compute_refused_instructions();
}

/// A call of the system.
///
/// # Safety
///
/// That of the call.
unsafe fn call(number: c_long, arguments: [c_long; 6]) -> c_long {
    let [first, second, third, fourth, fifth, sixth] = arguments;
    let result: c_long;
    // SAFETY: the caller answers for the call; the instruction itself changes these registers.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            in("r10") fourth,
            in("r8") fifth,
            in("r9") sixth,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    if (-4095..0).contains(&result) {
        // SAFETY: the thread's own error number.
        unsafe { *libc::__errno_location() = -result as c_int };
        return -1;
    }
    result
}

/// As the C library's, but that a request for the unit's registers is granted.
///
/// # Safety
///
/// That of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(
    number: c_long,
    first: c_long,
    second: c_long,
    third: c_long,
    fourth: c_long,
    fifth: c_long,
    sixth: c_long,
) -> c_long {
    if number == libc::SYS_arch_prctl && first == REQUEST {
        return 0;
    }
    // SAFETY: the caller answers for the call.
    unsafe { call(number, [first, second, third, fourth, fifth, sixth]) }
}

/// As the C library's, but that `/proc/cpuinfo` lists the unit's features.
///
/// # Safety
///
/// `path` ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the caller's promise.
    if unsafe { CStr::from_ptr(path) } == c"/proc/cpuinfo"
        && let Some(file) = with_features()
    {
        return file.into_raw_fd();
    }
    let path = path.cast::<c_void>() as c_long;
    let arguments = [libc::AT_FDCWD.into(), path, flags.into(), mode.into(), 0, 0];
    // SAFETY: the path is the caller's; the call opens a file and touches no other memory.
    (unsafe { call(libc::SYS_openat, arguments) }) as c_int
}

/// `/proc/cpuinfo` with the unit's features, in memory.
fn with_features() -> Option<std::fs::File> {
    // Another way to write the path, which is not caught.
    let text = std::fs::read_to_string("/proc/./cpuinfo").ok()?;
    // SAFETY: the name ends with a zero; the descriptor that comes back is nobody else's.
    let mut file = unsafe {
        let descriptor = libc::memfd_create(c"cpuinfo".as_ptr(), libc::MFD_CLOEXEC);
        (descriptor >= 0).then(|| std::fs::File::from_raw_fd(descriptor))?
    };
    for line in text.lines() {
        let more = if line.starts_with("flags") { FEATURES } else { "" };
        writeln!(file, "{line}{more}").ok()?;
    }
    file.rewind().ok()?;
    Some(file)
}

//! Kernels and runtime become an executable.
//!
//! The system's `cc` does it: it knows where the C library lies, and the result is a normal ELF file
//! with a symbol per kernel, which perf, gdb and objdump understand. Everything else about an emitted
//! program is appended behind this image, so that no linker ever handles the weights.

use std::fs;
use std::io;
use std::process::Command;

use qwen2c_format::Diagnostic;

use crate::failure::Failure;

/// The runtime with `main`, built by `build.rs`.
static RUNTIME_ARCHIVE: &[u8] = include_bytes!(env!("QWEN2C_RUNTIME_ARCHIVE"));

/// What the linker is told. No build id and no debug information: both would carry traces of where and
/// in what order things were built. Symbols stay, so that a profile shows kernels by name.
const LINKER_ARGUMENTS: [&str; 13] = [
    "-pie",
    "-o",
    "program",
    "kernels.o",
    "libruntime.a",
    "-lgcc_s",
    "-lm",
    "-lpthread",
    "-ldl",
    "-Wl,--gc-sections",
    "-Wl,--build-id=none",
    "-Wl,--strip-debug",
    "-Wl,-z,relro,-z,now",
];

/// Links the kernels' object with the runtime.
///
/// The bytes depend on the object, the runtime and the system's C start-up files only: all names are
/// fixed and relative to a directory of our own.
///
/// # Errors
///
/// When there is no `cc`, or it fails.
pub(crate) fn link(kernels: &[u8]) -> Result<Vec<u8>, Failure> {
    let directory = tempfile::Builder::new()
        .prefix("qwen2c-link-")
        .tempdir()
        .map_err(|error| Failure::file("create a directory to link in", &std::env::temp_dir(), &error))?;
    for (name, bytes) in [("kernels.o", kernels), ("libruntime.a", RUNTIME_ARCHIVE)] {
        let path = directory.path().join(name);
        fs::write(&path, bytes)
            .map_err(|error| Failure::file("write what is to be linked", &path, &error))?;
    }
    let output = Command::new("cc")
        .args(LINKER_ARGUMENTS)
        .current_dir(directory.path())
        .env("LC_ALL", "C")
        .output()
        .map_err(cannot_start)?;
    if !output.status.success() {
        return Err(link_failed(&String::from_utf8_lossy(&output.stderr)));
    }
    let program = directory.path().join("program");
    fs::read(&program).map_err(|error| Failure::file("read the linked program", &program, &error))
}

fn cannot_start(error: io::Error) -> Failure {
    let diagnostic = Diagnostic::new("cannot start `cc`, which links the program").cause(error.to_string());
    Failure::Input(if error.kind() == io::ErrorKind::NotFound {
        diagnostic.help("install a C compiler: apt-get install gcc libc6-dev")
    } else {
        diagnostic
    })
}

fn link_failed(messages: &str) -> Failure {
    let mut diagnostic = Diagnostic::new("`cc` could not link the program");
    for line in messages.lines().take(12) {
        diagnostic = diagnostic.cause(line);
    }
    Failure::Input(
        diagnostic.help("install the C library's development files: apt-get install gcc libc6-dev"),
    )
}

//! The program around the compiled kernels.
//!
//! It knows neither MLIR nor checkpoints: it maps the weights, reserves one arena, and walks the steps
//! that were planned at build.
//!
//! ```text
//! program    header, manifest and tables of the program's own file; the weights, mapped
//! session    one sequence: prompts in chunks, tokens one by one, logits
//! execute    the loop over steps, on the processor or a device
//! cuda       devices: NVIDIA GPUs
//! workers    threads that walk the steps together
//! text       tokens from text and back, the chat template, the choice of the next token
//! commands   what a person can ask of the program
//! ```

#[cfg(test)]
extern crate self as qwen2c_runtime;

mod allocation;
mod arguments;
mod commands;
mod console;
mod cuda;
mod execute;
mod flags;
mod generate;
mod hardware;
mod interrupt;
mod kernel;
mod large_pages;
mod machine;
mod memory;
mod peak;
mod processor;
mod program;
mod safetensors;
mod session;
mod session_error;
mod speech;
#[cfg(test)]
mod testing;
pub mod text;
mod workers;

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::Path;

use console::{Console, Failure};
use qwen2c_format::Locator;

pub use allocation::allocations;
pub use hardware::Hardware;
pub use kernel::{BodyFunction, KernelEntry, TilesFunction};
pub use processor::Placement;
pub use program::Program;
pub use session::Session;
pub use session_error::SessionError;

/// The whole program: reads the command line and returns the exit code (0 done, 1 the input cannot be
/// served, 2 usage, 130 Ctrl-C).
///
/// `locator` says where the program's data lies in its own file, `kernels` are those linked into it.
pub fn main(locator: &Locator, kernels: &[KernelEntry]) -> i32 {
    interrupt::ignore_closed_pipes();
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let name = Path::new(&name).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let arguments: Vec<OsString> = arguments.collect();
    let (input, output, errors) = (io::stdin(), io::stdout(), io::stderr());
    let mut console = Console {
        input_is_terminal: input.is_terminal(),
        input: &mut input.lock(),
        output: &mut output.lock(),
        errors: &mut errors.lock(),
        quiet: false,
    };
    // `/proc/self/exe` is this file whatever it was called and wherever it has been moved.
    let open = || Program::open(Path::new("/proc/self/exe"), locator, kernels);
    let ended = commands::execute(&name, &arguments, &open, &mut console);
    let (code, diagnostic) = match ended {
        Ok(()) | Err(Failure::ClosedPipe) => (0, None),
        Err(Failure::Input(diagnostic)) => (1, Some(diagnostic)),
        Err(Failure::Usage(diagnostic)) => (2, Some(diagnostic)),
        Err(Failure::Interrupted) => (interrupt::EXIT_CODE, None),
    };
    if let Some(diagnostic) = diagnostic {
        // Where standard error is closed, the exit code has to do.
        let _ = writeln!(console.errors, "error: {diagnostic}");
    }
    code
}

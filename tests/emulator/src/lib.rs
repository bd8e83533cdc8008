//! An emulator of a CUDA device that is stricter than hardware.
//!
//! It runs the PTX that the compiler emits, unchanged, so that programs for CUDA can be proven where no GPU is
//! at hand. Lockstep warps and eager copies would hide exactly the bugs that GPUs show; here asynchronous copies
//! land as late as their wait allows, warps and blocks run in varied order, races are found by what happens
//! before what and not by luck, and every unknown instruction is an error.
//!
//! `ptx` reads a module, `execute` runs a grid of it on `memory`, `counts` says what that cost, and `driver`
//! holds the C functions of `libcuda.so.1` in front of it all.

pub mod counts;
pub mod driver;
pub mod execute;
pub mod fault;
pub mod memory;
pub mod ptx;
mod races;

pub use counts::Counts;
pub use execute::{LaunchShape, Schedule, launch};
pub use fault::Fault;
pub use memory::{AccessError, Memory};
pub use ptx::{Entry, Module, ParseError};

//! Targets: what a machine is, which kernel answers a request, how weights lie, and the way from a
//! kernel's loop nest through MLIR and LLVM to an object file.
//!
//! One folder per target family with the same members: `describe`, `choose`, `layout`, `kernels/`,
//! `lower`, `emit`. A target knows no graph, only requests.

mod builder;
pub mod cpu;

pub use cpu::describe::{CpuTarget, TargetError, known_targets, resolve_target};
pub use cpu::emit::{CompileError, CompiledKernels, KeepText, KernelSource, KernelText, compile_kernels};
pub use cpu::pack::{ReadWeight, WriteBytes, pack_weight};

//! Targets: what a machine is, which kernel answers a request, how weights lie, and the way from a
//! kernel's loop nest through MLIR and LLVM to an object file or PTX.
//!
//! One folder per target family with the same members: `describe`, `choose`, `layout`, `pack`, `kernels/`,
//! `lower`, `emit`. A target knows no graph, only requests.

mod any_target;
mod builder;
mod compile;
mod compile_modules;
pub mod cpu;
pub mod cuda;
mod lowering;
mod operands;
mod pack;
#[cfg(test)]
mod tests;

pub use any_target::{AnyTarget, TargetError, compile_kernels, known_targets, resolve_target};
pub use compile::{
    CompileError, CompiledKernels, DeviceImage, KeepText, KernelSource, KernelText, Launch, PersistentKernel,
};
pub use pack::{ReadWeight, WriteBytes, pack_panels, weight_panels};

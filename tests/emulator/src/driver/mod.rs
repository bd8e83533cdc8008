//! The C functions of the CUDA driver in front of the emulator: built as a shared library, it stands in for
//! `libcuda.so.1`, and a program for CUDA runs unchanged.
//!
//! It knows the functions that our runtime uses and no others. Like the interpreter behind it, it is stricter
//! than a driver: work is done as late as a program that synchronizes correctly can allow, streams and
//! independent graph nodes run in an order that a seed chooses, results reach the host at a synchronization and
//! not before, and everything unknown, released, foreign or forgotten is an error that says what is wrong on
//! standard error and in a report.
//!
//! Signatures, constants and structures are those of cuda.h of CUDA 12. `serve` holds the one lock around all
//! state; `context` is what a device holds; `queue` is the work that waits in streams. All other files are one
//! concern of the driver each.
#![allow(non_snake_case, reason = "the C functions bear the names of cuda.h")]
#![allow(
    clippy::missing_safety_doc,
    reason = "what callers of the unsafe functions must keep is what cuda.h asks of C programs"
)]

mod context;
mod cooperative;
mod copy;
mod device;
mod errors;
mod event;
mod foreign;
mod graph;
mod handles;
mod image;
mod initialize;
mod launch;
mod memory;
mod models;
mod module;
mod pinned;
mod queue;
mod report;
mod serve;
mod settings;
mod stream;

pub use context::{cuCtxSetCurrent, cuDevicePrimaryCtxRelease_v2, cuDevicePrimaryCtxRetain};
pub use cooperative::{cuLaunchCooperativeKernel, cuOccupancyMaxActiveBlocksPerMultiprocessor};
pub use copy::{cuMemcpyDtoHAsync_v2, cuMemcpyHtoDAsync_v2, cuMemsetD8Async};
pub use device::{cuDeviceGet, cuDeviceGetAttribute, cuDeviceGetCount, cuDeviceGetName, cuDeviceTotalMem_v2};
pub use errors::{Status, cuGetErrorName, cuGetErrorString};
pub use event::{cuEventCreate, cuEventDestroy_v2, cuEventElapsedTime, cuEventRecord, cuEventSynchronize};
pub use foreign::Out;
pub use graph::{
    KernelNodeParameters, cuGraphAddKernelNode_v2, cuGraphCreate, cuGraphDestroy, cuGraphExecDestroy,
    cuGraphInstantiateWithFlags, cuGraphLaunch,
};
pub use handles::Handle;
pub use initialize::{cuDriverGetVersion, cuInit};
pub use launch::{cuFuncSetAttribute, cuLaunchKernel};
pub use memory::{cuMemAlloc_v2, cuMemFree_v2, cuMemFreeHost, cuMemGetInfo_v2, cuMemHostAlloc};
pub use module::{cuModuleGetFunction, cuModuleLoadDataEx, cuModuleUnload};
pub use stream::{cuStreamCreate, cuStreamDestroy_v2, cuStreamSynchronize};

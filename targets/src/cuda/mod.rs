//! CUDA targets: NVIDIA's architectures from `sm_80` on.

mod choose;
pub mod describe;
pub(crate) mod emit;
mod kernels;
pub(crate) mod layout;
mod lower;
pub(crate) mod pack;
mod persistent;

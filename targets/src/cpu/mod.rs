//! CPU targets: x86-64 at the levels v3 (AVX2), v4 (AVX-512) and v4 with matrix tiles.

mod choose;
pub mod describe;
pub mod emit;
mod instructions;
mod kernels;
pub mod layout;
mod lower;
pub mod pack;

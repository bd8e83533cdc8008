//! What the compiler and the runtime agree on: the layout of an emitted program behind its ELF image.
//!
//! ```text
//! ELF image            runtime + kernels; holds the `Locator`, patched by the compiler
//! header               at a multiple of 4096: fixed size, little endian, hashed
//! manifest             JSON
//! step lists           binary
//! weight table         binary
//! tokenizer tables     binary (may be absent)
//! weight region        at a multiple of 2 MiB
//! ```
//!
//! Everything here parses hostile bytes: no panic, no unbounded allocation.

mod diagnostic;
mod locator;
mod manifest;
mod steps;

pub use diagnostic::Diagnostic;
pub use locator::{LOCATOR_MAGIC, Locator};
pub use manifest::{GenerationDefaults, InputOffsets, Manifest, ModelSummary, PassRecord, SelfTestRecord};
pub use steps::{
    KernelInfo, Operand, Region, RowAxis, Step, StepCost, StepList, StepLists, WeightEntry, WeightTable,
};

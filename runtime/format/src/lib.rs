//! What the compiler and the runtime agree on: the layout of an emitted program behind its ELF image.
//!
//! ```text
//! ELF image            runtime + kernels; holds the `Locator`, patched by the compiler
//! header               at a multiple of 4096: fixed size, little endian, hashed
//! manifest             JSON
//! step lists           binary
//! weight table         binary
//! tokenizer tables     binary (may be absent)
//! device code          binary (absent where the program runs on the processor)
//! weight region        at a multiple of 2 MiB
//! ```
//!
//! Everything here parses hostile bytes: no panic, no unbounded allocation.

mod check;
mod check_device;
mod codec;
mod device_code;
mod diagnostic;
mod elf;
mod error;
mod header;
mod locator;
mod manifest;
mod program;
mod steps;
mod table_codec;
pub mod tokenizer;

pub use check::{OPERAND_ALIGNMENT, check_program};
pub use codec::DecodeError;
pub use device_code::{DeviceCode, DeviceImage, ImageKind};
pub use diagnostic::Diagnostic;
pub use error::ProgramError;
pub use header::{FORMAT_VERSION, Header, Section, SectionRecord};
pub use locator::{HEADER_ALIGNMENT, LOCATOR_MAGIC, Locator, WEIGHTS_ALIGNMENT, patch_locator};
pub use manifest::{
    CandidateOffsets, GenerationDefaults, InputOffsets, Manifest, ModelSummary, PassRecord, SelfTestRecord,
};
pub use program::{ProgramFile, encode_program_head};
pub use steps::{
    KernelInfo, Launch, Operand, PersistentKernel, Region, RowAxis, Step, StepCost, StepList, StepLists,
    WeightEntry, WeightTable, serves_prompts,
};

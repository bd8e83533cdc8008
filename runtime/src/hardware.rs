//! What a program is asked to run on.

use crate::processor::Placement;

/// What a program runs on; which of the two it can is decided when it is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hardware {
    /// The processor: workers and their places.
    Processor(Placement),
    /// A GPU by its number.
    Device(u32),
}

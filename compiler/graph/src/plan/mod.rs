//! From kernels to addresses: the stage `plan`.
//!
//! A plan is a table of buffers in one arena and of weights in one region, and for each step list its
//! steps with the addresses of their operands. It is a pure function of the schedule: the emitted
//! program reserves the arena, maps the weights and walks the steps.
//!
//! Step lists never run at the same time, so their activations lie over each other. What outlives a
//! step (inputs that the runtime writes, caches, logits) lies before them and is shared by all lists.

mod join_steps;
mod order_steps;
mod place_buffers;
mod place_weights;
mod predict;
mod print;
#[cfg(test)]
mod tests;
mod verify;

use std::fmt;

use qwen2c_request::{Cost, Target, WeightLayout};

use crate::Weight;
use crate::schedule::{RowAxis, Schedule};

pub use predict::CostSummary;
pub use print::print_plan;
pub use verify::{PlanViolation, verify_plan};

/// Every offset in the arena and in the weight region is a multiple of this: a cache line, and the
/// widest vector load.
pub const ALIGNMENT_BYTES: u64 = 64;

/// Where an operand lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// Inputs, caches, logits, activations, workspaces.
    Arena,
    /// The weight region of the program.
    Weights,
}

/// One pointer that a kernel gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedOperand {
    /// Region.
    pub region: Region,
    /// Byte offset in the region.
    pub offset: u64,
    /// Bytes that the kernel may touch from there.
    pub bytes: u64,
}

/// A call of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedStep {
    /// Index in [`Schedule::kernels`].
    pub kernel: usize,
    /// Block the step belongs to; none for embedding and head.
    pub layer: Option<u64>,
    /// Which row count the kernel gets.
    pub row_axis: RowAxis,
    /// Inputs, weights, caches, outputs, then the workspace where the kernel wants one.
    pub operands: Vec<PlannedOperand>,
    /// So many of the operands, inputs and weights, are only read.
    pub read_operands: usize,
    /// The step does not wait for the one before it: both belong to one phase, behind which workers meet.
    pub joins_previous: bool,
    /// What the step moves and computes.
    pub cost: Cost,
}

/// A step list with addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedList {
    /// `decode`, `prefill`, `self_test`.
    pub name: String,
    /// Most rows of one run of `body`.
    pub max_rows: u64,
    /// Most rows of one run of `head`.
    pub max_logit_rows: u64,
    /// From the embedding to the last block.
    pub body: Vec<PlannedStep>,
    /// From the gather of `logit_rows` on; may run several times after one run of the body.
    pub head: Vec<PlannedStep>,
}

impl PlannedList {
    /// Runs of steps that workers walk without meeting: as many barriers as a processor needs.
    pub fn phases(&self) -> usize {
        self.body.iter().chain(&self.head).filter(|step| !step.joins_previous).count()
    }
}

/// A range of the arena and when it is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedBuffer {
    /// Name of the value, the cache, or `workspace of` a value.
    pub name: String,
    /// Index of the step list it belongs to; none where it outlives a step and all lists share it.
    pub list: Option<usize>,
    /// Byte offset in the arena.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
    /// First step of the phase that touches it first, counted through body and head of its list; 0 where
    /// shared.
    pub first_step: usize,
    /// Last step of the phase that touches it last; the list's last where the head may read it again;
    /// `usize::MAX` where shared.
    pub last_step: usize,
}

/// A weight with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedWeight {
    /// The weight.
    pub weight: Weight,
    /// Its layout.
    pub layout: WeightLayout,
    /// Byte offset in the weight region.
    pub offset: u64,
    /// Bytes, padding of the layout included.
    pub bytes: u64,
}

/// Byte offsets in the arena of what the runtime writes before a step and reads after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlannedInputs {
    /// `token i32[rows]`.
    pub token: u64,
    /// `position i32[rows]`.
    pub position: u64,
    /// `slot i32[rows]`.
    pub slot: u64,
    /// `logit_rows i32[logit_rows]`.
    pub logit_rows: u64,
    /// `logits f32[logit_rows, vocabulary]`.
    pub logits: u64,
    /// The largest logits, where a list leaves them.
    pub candidates: Option<PlannedCandidates>,
}

/// Where the largest logits of a row lie, largest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedCandidates {
    /// How many.
    pub count: u64,
    /// `candidates f32[count]`.
    pub values: u64,
    /// `candidates.ids i32[count]`.
    pub ids: u64,
}

/// Everything the emitted program needs to know about addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Bytes of the arena.
    pub arena_bytes: u64,
    /// Bytes of all key and value caches, part of the arena.
    pub kv_cache_bytes: u64,
    /// Bytes of the weight region.
    pub weight_bytes: u64,
    /// Shared buffers first, then those of each list, ascending by first step.
    pub buffers: Vec<PlannedBuffer>,
    /// Weights, ascending by offset.
    pub weights: Vec<PlacedWeight>,
    /// What the runtime writes and reads.
    pub inputs: PlannedInputs,
    /// Step lists in the order of the schedule.
    pub lists: Vec<PlannedList>,
}

/// Why no plan can be made of a schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// A step list lacks an input or output that the runtime relies on: a bug of the graph builder.
    MissingInput {
        /// `token`, `position`, `slot`, `logit_rows` or `logits`.
        name: &'static str,
        /// Step list.
        list: String,
    },
    /// Two step lists declare one cache or one logits value differently.
    SharedBufferMismatch {
        /// The cache or value.
        name: String,
        /// Step list that differs from those before it.
        list: String,
    },
    /// A value is read before any step wrote it, or a weight has no layout: the graph does not verify
    /// or was not scheduled.
    Unplaced {
        /// The value or weight.
        name: String,
        /// Step list.
        list: String,
    },
    /// Sizes add up to more than 64 bits hold: the context or the model is absurdly large.
    TooLarge {
        /// What was being placed.
        name: String,
    },
}

impl fmt::Display for PlanError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingInput { name, list } => {
                write!(formatter, "list `{list}` has no value `{name}`, which the runtime needs")
            }
            Self::SharedBufferMismatch { name, list } => {
                write!(
                    formatter,
                    "list `{list}` declares `{name}` with another size than the lists before it"
                )
            }
            Self::Unplaced { name, list } => {
                write!(formatter, "`{name}` has no place when list `{list}` reads it")
            }
            Self::TooLarge { name } => {
                write!(formatter, "the arena exceeds 64 bits of address at `{name}`; use a smaller context")
            }
        }
    }
}

impl std::error::Error for PlanError {}

/// Places weights and buffers and lists the steps.
///
/// # Errors
///
/// [`PlanError`] where the schedule is not complete.
pub fn plan(schedule: &Schedule, target: &dyn Target) -> Result<Plan, PlanError> {
    let weights = place_weights::run(schedule, target)?;
    let placement = place_buffers::run(schedule, target)?;
    let lists = order_steps::run(schedule, &placement, &weights)?;
    let weight_bytes = weights.last().map_or(0, |weight| weight.offset + weight.bytes);
    Ok(Plan {
        arena_bytes: placement.arena_bytes,
        kv_cache_bytes: placement.kv_cache_bytes,
        weight_bytes,
        buffers: placement.buffers,
        weights,
        inputs: placement.inputs,
        lists,
    })
}

//! From graphs to kernels: the stage `scheduled`.
//!
//! Every operation of every step list becomes a request, the target answers each distinct request
//! once, every weight gets the one layout that its readers in all lists read best, and the distinct
//! pairs of request and layouts become the kernels of the program.

mod choose_kernels;
mod choose_weight_layouts;
#[cfg(test)]
pub(crate) mod fake_target;
mod name_kernels;
mod print;
#[cfg(test)]
mod tests;

use std::fmt;

use qwen2c_request::{KernelChoice, KernelRequest, Size, Target, WeightLayout};

use crate::{Graph, Op, Weight};

pub use print::print_schedule;

/// A step list to schedule: a graph after the passes, and the most rows its steps bring.
#[derive(Clone, Debug)]
pub struct ListSpec {
    /// `decode`, `prefill`, `self_test`.
    pub name: String,
    /// The graph.
    pub graph: Graph,
    /// Most rows of one run of the body.
    pub max_rows: u64,
    /// Most rows of one run of the head.
    pub max_logit_rows: u64,
}

/// A kernel of the program: one for each distinct request with its layouts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduledKernel {
    /// Unique C identifier (dots aside), such as `matmul_1152x896_bias_rows1`.
    pub name: String,
    /// What it computes.
    pub request: KernelRequest,
    /// Layout of each weight of the request.
    pub layouts: Vec<WeightLayout>,
    /// The target's answer.
    pub choice: KernelChoice,
}

/// A step list whose operations have kernels.
#[derive(Clone, Debug)]
pub struct ScheduledList {
    /// `decode`, `prefill`, `self_test`.
    pub name: String,
    /// The graph; the layouts of its weights are set.
    pub graph: Graph,
    /// Most rows of one run of the body.
    pub max_rows: u64,
    /// Most rows of one run of the head.
    pub max_logit_rows: u64,
    /// For each operation, its index in [`Schedule::kernels`].
    pub kernel_of: Vec<usize>,
}

/// All step lists with their kernels and weights.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Kernels in the order of their first use.
    pub kernels: Vec<ScheduledKernel>,
    /// Step lists in the order given.
    pub lists: Vec<ScheduledList>,
    /// Weights that some operation reads, in the order of their first use, layouts set.
    pub weights: Vec<Weight>,
}

/// Why a schedule cannot be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScheduleError {
    /// The target refuses an operation: the model does not fit this target.
    Unservable {
        /// Step list.
        list: String,
        /// The operation, as `matmul layers.0.qkv`.
        operation: String,
        /// The target.
        target: String,
        /// The target's reason.
        reason: String,
    },
    /// No layout suits all readers of a weight: a gap of the target.
    NoCommonLayout {
        /// The weight.
        weight: String,
        /// Each reader with the layouts it can read.
        readers: Vec<String>,
    },
    /// Two step lists declare one weight differently: a bug of the passes.
    WeightMismatch {
        /// The weight.
        weight: String,
        /// Step lists that disagree.
        lists: [String; 2],
    },
}

impl fmt::Display for ScheduleError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unservable { list, operation, target, reason } => {
                write!(formatter, "target `{target}` cannot serve `{operation}` of list `{list}`: {reason}")
            }
            Self::NoCommonLayout { weight, readers } => {
                write!(formatter, "weight `{weight}` has no layout that all its readers can read: ")?;
                formatter.write_str(&readers.join("; "))
            }
            Self::WeightMismatch { weight, lists: [first, second] } => write!(
                formatter,
                "weight `{weight}` has different types or sources in lists `{first}` and `{second}`"
            ),
        }
    }
}

impl std::error::Error for ScheduleError {}

/// Chooses kernels and weight layouts for all step lists together.
///
/// # Errors
///
/// [`ScheduleError`] when the target cannot serve an operation or the readers of a weight cannot agree.
pub fn schedule(lists: Vec<ListSpec>, target: &dyn Target) -> Result<Schedule, ScheduleError> {
    let requests = choose_kernels::run(&lists, target)?;
    let weights = choose_weight_layouts::run(&lists, &requests)?;
    Ok(name_kernels::run(lists, requests, weights))
}

/// Which count of rows an operation's kernel gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowAxis {
    /// The rows of the step.
    Rows,
    /// The rows that go through the head.
    LogitRows,
}

/// The axis of an operation: `logit_rows` where an output has that dimension, else `rows`.
pub fn row_axis(graph: &Graph, op: &Op) -> RowAxis {
    let behind_gather = op.outputs.iter().any(|output| {
        graph.value(*output).ty.dimensions.iter().any(|dimension| dimension.size == Size::LogitRows)
    });
    if behind_gather { RowAxis::LogitRows } else { RowAxis::Rows }
}

/// `matmul layers.0.qkv`: how messages name an operation.
fn describe_operation(graph: &Graph, op: &Op) -> String {
    let name = op.operation.name();
    match (op.outputs.first(), op.caches.first()) {
        (Some(output), _) => format!("{name} {}", graph.value(*output).name),
        (None, Some(cache)) => format!("{name} {}", graph.cache(*cache).name),
        (None, None) => name.to_owned(),
    }
}

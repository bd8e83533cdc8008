//! What a step list moves and computes in all, for predictions from a machine's bandwidth.

use qwen2c_request::Cost;

use super::{PlannedList, PlannedStep};

/// Sums over the steps of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CostSummary {
    /// One run of the body: bytes and operations by `rows` and positions.
    pub body: Cost,
    /// One run of the head: bytes and operations by `logit_rows`.
    pub head: Cost,
}

impl CostSummary {
    /// Sums the steps of a list.
    pub fn new(list: &PlannedList) -> Self {
        Self { body: sum(&list.body), head: sum(&list.head) }
    }

    /// Bytes that one run of the body with `rows` rows and one of the head with `logit_rows` rows move.
    /// `positions` is the mean number of cached positions that a row reads, its own included.
    pub fn bytes(&self, rows: u64, logit_rows: u64, positions: u64) -> u64 {
        let body = self.body.bytes_per_row + self.body.bytes_per_row_and_position * positions;
        let head = self.head.bytes_per_row + self.head.bytes_per_row_and_position * positions;
        self.body.fixed_bytes + body * rows + self.head.fixed_bytes + head * logit_rows
    }

    /// Floating-point operations of the same.
    pub fn operations(&self, rows: u64, logit_rows: u64, positions: u64) -> u64 {
        let body = self.body.operations_per_row + self.body.operations_per_row_and_position * positions;
        let head = self.head.operations_per_row + self.head.operations_per_row_and_position * positions;
        body * rows + head * logit_rows
    }
}

fn sum(steps: &[PlannedStep]) -> Cost {
    steps.iter().fold(Cost::default(), |total, step| Cost {
        fixed_bytes: total.fixed_bytes + step.cost.fixed_bytes,
        bytes_per_row: total.bytes_per_row + step.cost.bytes_per_row,
        bytes_per_row_and_position: total.bytes_per_row_and_position + step.cost.bytes_per_row_and_position,
        operations_per_row: total.operations_per_row + step.cost.operations_per_row,
        operations_per_row_and_position: total.operations_per_row_and_position
            + step.cost.operations_per_row_and_position,
    })
}

//! How fast a device may take prompts: products at the rate of its matrix unit, as far as their blocks fill it.
//!
//! Blocks of a product take equally long, and a multiprocessor that finds none left waits for the others: a
//! step needs as many turns as its blocks over the multiprocessors, rounded up. Where weights and activations
//! take longer to read than to multiply, that time counts instead. Keys and values are left out of these bytes,
//! because the queries of a block share them.

use qwen2c_format::serves_prompts;
use qwen2c_graph::plan::{Plan, PlannedList, PlannedStep};
use qwen2c_graph::schedule::{RowAxis, Schedule};
use serde::Serialize;

use crate::device::{AssumedMachine, MatrixUnit};

/// Lengths that are predicted, where the context has room for them.
const PROMPTS: [u64; 2] = [512, 2048];

/// One prompt in an empty context.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct PromptPrediction {
    /// Its length.
    pub(crate) tokens: u64,
    /// Most tokens that go through the steps at once.
    pub(crate) chunk_tokens: u64,
    /// What is expected.
    pub(crate) tokens_per_s: f64,
    /// Operations over what the matrix unit could execute while the blocks of products run.
    pub(crate) wave_fill: f64,
}

/// A list with what prompts go through.
struct Prompts<'a> {
    schedule: &'a Schedule,
    /// Ascending by rows.
    lists: Vec<&'a PlannedList>,
    machine: &'a AssumedMachine,
    unit: MatrixUnit,
}

/// Time of some steps.
#[derive(Clone, Copy, Default)]
struct Duration {
    /// All of it.
    all_s: f64,
    /// What the matrix unit needs where all of it is always busy.
    busy_s: f64,
    /// The same with the blocks there are.
    in_turns_s: f64,
}

/// Predictions for the lengths that fit the context; none where the machine's matrix unit is not known.
pub(crate) fn prompt_predictions(
    schedule: &Schedule,
    plan: &Plan,
    context: u64,
    machine: &AssumedMachine,
) -> Vec<PromptPrediction> {
    let Some(unit) = machine.matrix_unit else { return Vec::new() };
    let mut lists: Vec<&PlannedList> = plan.lists.iter().filter(|list| serves_prompts(&list.name)).collect();
    lists.sort_by_key(|list| list.max_rows);
    let prompts = Prompts { schedule, lists, machine, unit };
    PROMPTS.into_iter().filter(|tokens| *tokens <= context).map(|tokens| prompts.predict(tokens)).collect()
}

impl Prompts<'_> {
    fn predict(&self, tokens: u64) -> PromptPrediction {
        let chunk_tokens = self.lists.last().map_or(1, |list| list.max_rows).min(tokens);
        let mut duration = Duration::default();
        let mut first = 0;
        while first < tokens {
            let rows = chunk_tokens.min(tokens - first);
            let list = self.lists.iter().find(|list| rows <= list.max_rows);
            let steps = list.into_iter().flat_map(|list| {
                let is_last = first + rows == tokens;
                list.body.iter().chain(list.head.iter().filter(move |_| is_last))
            });
            for step in steps {
                self.add_step(step, (first, rows), &mut duration);
            }
            first += rows;
        }
        PromptPrediction {
            tokens,
            chunk_tokens,
            tokens_per_s: tokens as f64 / duration.all_s,
            wave_fill: duration.busy_s / duration.in_turns_s,
        }
    }

    /// Adds a step that serves `rows` positions from `first` on.
    fn add_step(&self, step: &PlannedStep, (first, rows): (u64, u64), duration: &mut Duration) {
        let rows = if step.row_axis == RowAxis::Rows { rows } else { 1 };
        // On average a row sees what is before the chunk and half of the chunk.
        let positions = first + rows.div_ceil(2);
        let cost = step.cost;
        let of_row = cost.operations_per_row + cost.operations_per_row_and_position * positions;
        let busy_s = (of_row * rows) as f64 / self.unit.operations_per_s;
        let launches = &self.schedule.kernels[step.kernel].choice.launches;
        let blocks = launches.iter().map(|grid| grid.blocks_of(rows)).max().unwrap_or(1).max(1);
        let multiprocessors = self.unit.multiprocessors;
        let places = blocks.div_ceil(multiprocessors) * multiprocessors;
        let in_turns_s = busy_s * places as f64 / blocks as f64;
        let moved_bytes = cost.fixed_bytes + cost.bytes_per_row * rows;
        let moved_s = moved_bytes as f64 / self.machine.bandwidth_bytes_per_s;
        duration.all_s += in_turns_s.max(moved_s) + launches.len() as f64 * self.machine.launch_us / 1e6;
        duration.busy_s += busy_s;
        duration.in_turns_s += in_turns_s;
    }
}

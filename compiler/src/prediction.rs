//! What a program will need and reach, from its plan alone.
//!
//! Every byte that a token moves is known when the program is planned. Generation reads all weights and
//! the cache once for each token and computes little with them, so bytes over bandwidth is a bound that
//! good kernels come close to. Where a machine computes more slowly than it reads, its operations count instead;
//! launches come on top of either.

use qwen2c_graph::plan::{CostSummary, Plan};
use qwen2c_graph::schedule::Schedule;
use serde::Serialize;

use crate::device::AssumedMachine;

/// A largest context is given in whole blocks of the cache.
const CONTEXT_STEP: u64 = 256;

/// Bytes of a program in memory, by what they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct MemoryTable {
    /// The weight region, mapped from the file.
    pub(crate) weight_bytes: u64,
    /// Key and value caches at the full context.
    pub(crate) kv_cache_bytes: u64,
    /// The rest of the arena: inputs, activations, workspaces, logits.
    pub(crate) activation_bytes: u64,
}

impl MemoryTable {
    /// The bytes of a plan.
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            weight_bytes: plan.weight_bytes,
            kv_cache_bytes: plan.kv_cache_bytes,
            activation_bytes: plan.arena_bytes.saturating_sub(plan.kv_cache_bytes),
        }
    }

    /// All of it.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.weight_bytes.saturating_add(self.kv_cache_bytes).saturating_add(self.activation_bytes)
    }

    /// The largest context, up to the model's maximum, whose caches fit beside the rest; 0 where the
    /// weights alone do not fit.
    pub(crate) fn largest_context(&self, context: u64, model_maximum: u64, memory_bytes: u64) -> u64 {
        let fixed_bytes = self.weight_bytes.saturating_add(self.activation_bytes);
        let Some(room_bytes) = memory_bytes.checked_sub(fixed_bytes) else { return 0 };
        let bytes_per_position = self.kv_cache_bytes.div_ceil(context.max(1)).max(1);
        let positions = room_bytes / bytes_per_position;
        if positions >= model_maximum { model_maximum } else { positions / CONTEXT_STEP * CONTEXT_STEP }
    }
}

/// What takes most of a token's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Limit {
    /// Reading weights and cache.
    MemoryBandwidth,
    /// Multiplying them.
    Arithmetic,
    /// Starting kernels, or waiting at barriers.
    Launches,
}

impl Limit {
    /// As the subject of a sentence.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::MemoryBandwidth => "memory bandwidth",
            Self::Arithmetic => "arithmetic",
            Self::Launches => "the time of launches",
        }
    }
}

/// Time of one token, by what it is for.
#[derive(Clone, Copy)]
struct TokenTime {
    bytes_s: f64,
    operations_s: f64,
    launches_s: f64,
}

impl TokenTime {
    /// Bytes and operations overlap, launches do not.
    fn all_s(self) -> f64 {
        self.bytes_s.max(self.operations_s) + self.launches_s
    }

    fn limit(self) -> Limit {
        if self.launches_s > self.bytes_s.max(self.operations_s) {
            Limit::Launches
        } else if self.operations_s > self.bytes_s {
            Limit::Arithmetic
        } else {
            Limit::MemoryBandwidth
        }
    }
}

/// Generation with one sequence.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct DecodePrediction {
    /// What is assumed.
    pub(crate) machine: AssumedMachine,
    /// Launches of a device for each token.
    pub(crate) launches_per_token: u64,
    /// So many of them wait for the one before: those of steps of a phase run side by side.
    pub(crate) launches_in_a_row: u64,
    /// Barriers between all blocks for each token, where one launch serves it.
    pub(crate) barriers_per_token: u64,
    /// Time of launches and barriers as a share of a token's at an empty context.
    pub(crate) share_of_launches: f64,
    /// Bytes that the first token moves.
    pub(crate) bytes_per_token: u64,
    /// Bytes that a token moves when the context is full.
    pub(crate) bytes_per_token_at_full_context: u64,
    /// Floating-point operations of the first token.
    pub(crate) operations_per_token: u64,
    /// What limits the rate at an empty context.
    pub(crate) limit: Limit,
    /// What limits the rate at a full context.
    pub(crate) limit_at_full_context: Limit,
    /// Upper bound of the rate at an empty context; on a device what is expected.
    pub(crate) tokens_per_s: f64,
    /// Upper bound of the rate at a full context.
    pub(crate) tokens_per_s_at_full_context: f64,
}

impl DecodePrediction {
    /// The prediction for a plan's first list, which is `decode`.
    pub(crate) fn new(schedule: &Schedule, plan: &Plan, context: u64, machine: AssumedMachine) -> Self {
        let cost = plan.lists.first().map(CostSummary::new).unwrap_or_default();
        let steps = plan.lists.iter().take(1).flat_map(|list| list.body.iter().chain(&list.head));
        let launches: Vec<(u64, bool)> = steps
            .map(|step| (schedule.kernels[step.kernel].choice.launches.len() as u64, step.joins_previous))
            .collect();
        let all = launches.iter().map(|(count, _)| count).sum::<u64>();
        let is_persistent = schedule.lists.first().is_some_and(|list| list.graph.is_persistent);
        // Within one launch everything waits for everything before.
        let (launches_per_token, launches_in_a_row, barriers_per_token) =
            if is_persistent { (1, 1, all.saturating_sub(1)) } else { (all, in_a_row(&launches), 0) };
        let launches_us = launches_in_a_row as f64 * machine.launch_us;
        let launches_s = (launches_us + barriers_per_token as f64 * machine.barrier_us) / 1e6;
        let time = |positions: u64| TokenTime {
            bytes_s: cost.bytes(1, 1, positions) as f64 / machine.bandwidth_bytes_per_s,
            operations_s: machine
                .operations_per_s
                .map_or(0.0, |rate| cost.operations(1, 1, positions) as f64 / rate),
            launches_s,
        };
        let (empty, full) = (time(1), time(context));
        Self {
            launches_per_token,
            launches_in_a_row,
            barriers_per_token,
            share_of_launches: launches_s / empty.all_s(),
            bytes_per_token: cost.bytes(1, 1, 1),
            bytes_per_token_at_full_context: cost.bytes(1, 1, context),
            operations_per_token: cost.operations(1, 1, 1),
            limit: empty.limit(),
            limit_at_full_context: full.limit(),
            tokens_per_s: 1.0 / empty.all_s(),
            tokens_per_s_at_full_context: 1.0 / full.all_s(),
            machine,
        }
    }
}

/// Launches of the longest step of each phase, for the launches of each step and whether it joins the step
/// before.
fn in_a_row(steps: &[(u64, bool)]) -> u64 {
    let phases = steps.chunk_by(|_, (_, joins_previous)| *joins_previous);
    phases.filter_map(|phase| phase.iter().map(|(launches, _)| launches).max()).sum()
}

#[cfg(test)]
mod tests {
    use super::{Limit, MemoryTable, TokenTime, in_a_row};

    #[test]
    fn steps_of_a_phase_launch_side_by_side() {
        let steps = [(1, false), (2, false), (3, true), (1, true), (1, false), (2, false), (1, true)];
        assert_eq!(in_a_row(&steps), 1 + 3 + 1 + 2);
        assert_eq!(in_a_row(&[]), 0);
    }

    #[test]
    fn bytes_and_operations_overlap_and_the_longest_of_three_is_the_limit() {
        let time = |bytes_s, operations_s, launches_s| TokenTime { bytes_s, operations_s, launches_s };
        for (time, all_s, limit) in [
            (time(4.0, 1.0, 2.0), 6.0, Limit::MemoryBandwidth),
            (time(1.0, 4.0, 2.0), 6.0, Limit::Arithmetic),
            (time(2.0, 1.0, 3.0), 5.0, Limit::Launches),
            (time(2.0, 2.0, 0.0), 2.0, Limit::MemoryBandwidth),
        ] {
            assert_eq!((time.all_s(), time.limit()), (all_s, limit));
        }
    }

    #[test]
    fn the_largest_context_is_what_memory_leaves_up_to_the_model_s_maximum() {
        let table = MemoryTable { weight_bytes: 1 << 30, kv_cache_bytes: 8192 << 12, activation_bytes: 0 };
        assert_eq!(table.largest_context(8192, 32768, 1 << 40), 32768);
        assert_eq!(table.largest_context(8192, 32768, (1 << 30) + (10_000 << 12)), 9984);
        assert_eq!(table.largest_context(8192, 32768, 1 << 20), 0);
        assert_eq!(table.total_bytes(), (1 << 30) + (8192 << 12));
    }
}

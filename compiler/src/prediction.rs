//! What a program will need and reach, from its plan alone.
//!
//! Every byte that a token moves is known when the program is planned. Generation reads all weights and
//! the cache once for each token and computes little with them, so bytes over bandwidth is a bound that
//! good kernels come close to.

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

/// Generation with one sequence.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct DecodePrediction {
    /// What is assumed.
    pub(crate) machine: AssumedMachine,
    /// Launches of a device for each token.
    pub(crate) launches_per_token: u64,
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
        let launches: u64 =
            steps.map(|step| schedule.kernels[step.kernel].choice.launches.len() as u64).sum();
        let is_persistent = schedule.lists.first().is_some_and(|list| list.graph.is_persistent);
        let (launches_per_token, barriers_per_token) =
            if is_persistent { (1, launches.saturating_sub(1)) } else { (launches, 0) };
        let launches_us = launches_per_token as f64 * machine.launch_us;
        let launches_s = (launches_us + barriers_per_token as f64 * machine.barrier_us) / 1e6;
        let token_s =
            |positions: u64| cost.bytes(1, 1, positions) as f64 / machine.bandwidth_bytes_per_s + launches_s;
        Self {
            launches_per_token,
            barriers_per_token,
            share_of_launches: launches_s / token_s(1),
            bytes_per_token: cost.bytes(1, 1, 1),
            bytes_per_token_at_full_context: cost.bytes(1, 1, context),
            operations_per_token: cost.operations(1, 1, 1),
            tokens_per_s: 1.0 / token_s(1),
            tokens_per_s_at_full_context: 1.0 / token_s(context),
            machine,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::MemoryTable;

    #[test]
    fn the_largest_context_is_what_memory_leaves_up_to_the_model_s_maximum() {
        let table = MemoryTable { weight_bytes: 1 << 30, kv_cache_bytes: 8192 << 12, activation_bytes: 0 };
        assert_eq!(table.largest_context(8192, 32768, 1 << 40), 32768);
        assert_eq!(table.largest_context(8192, 32768, (1 << 30) + (10_000 << 12)), 9984);
        assert_eq!(table.largest_context(8192, 32768, 1 << 20), 0);
        assert_eq!(table.total_bytes(), (1 << 30) + (8192 << 12));
    }
}

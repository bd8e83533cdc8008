//! Finds the steps that need no barrier between them.
//!
//! Neighbours that do not wait for one another form a phase: workers take the tiles of all of them and meet
//! once behind the last. Where two touch one cache, or one reads what the other writes, a phase ends; a buffer
//! is in use from the first step of a phase to its last (`place_buffers`), so that steps of a phase never
//! share memory that one of them writes. That costs memory, so a list whose steps run one after the other has a
//! phase for each.

use std::ops::Range;

use qwen2c_request::TargetDescription;

use super::place_buffers::head_start;
use crate::schedule::ScheduledList;
use crate::{CacheId, ValueId};

/// The phase of each step: the steps that it runs with, itself included.
pub(super) fn run(list: &ScheduledList, target: &TargetDescription) -> Vec<Range<usize>> {
    let operations = &list.graph.operations;
    if list.max_rows > 1 && !target.joins_steps_of_prompts {
        return (0..operations.len()).map(|step| step..step + 1).collect();
    }
    let head = head_start(list);
    let mut phases = Vec::with_capacity(operations.len());
    let mut values: Vec<ValueId> = Vec::new();
    let mut caches: Vec<CacheId> = Vec::new();
    let mut first = 0;
    for (step, op) in operations.iter().enumerate() {
        let waits =
            op.inputs.iter().any(|id| values.contains(id)) || op.caches.iter().any(|id| caches.contains(id));
        if waits || step == head {
            phases.resize(step, first..step);
            values.clear();
            caches.clear();
            first = step;
        }
        values.extend(&op.outputs);
        caches.extend(&op.caches);
    }
    phases.resize(operations.len(), first..operations.len());
    phases
}

//! The static memory planner.
//!
//! # What it does
//!
//! Gives every value, cache and workspace a range of one arena. What outlives a step comes first, once
//! for all lists: the runtime's inputs (sized for the largest list), the caches, the logits and the
//! largest of them. Behind it each list packs its own values as if it were alone, because lists never run
//! at the same time.
//!
//! A value is in use from the step that writes it to the last one that reads it, and for as long as the
//! phases of both last (`join_steps`). The head may run several times after one run of the body, so what it
//! reads from the body stays in use to its end.
//! Buffers are taken from the largest to the smallest; each goes into the smallest gap between those
//! placed before it that are in use at the same time (greedy by size, Pisarchyk and Lee 2020).

use std::collections::BTreeMap;
use std::ops::Range;

use qwen2c_request::{Operation, Target, TargetDescription};

use super::{ALIGNMENT_BYTES, PlanError, PlannedBuffer, PlannedCandidates, PlannedInputs, join_steps};
use crate::schedule::{Schedule, ScheduledList};
use crate::{CacheId, ValueId};

/// Where everything lies.
pub(super) struct Placement {
    pub(super) arena_bytes: u64,
    pub(super) kv_cache_bytes: u64,
    pub(super) buffers: Vec<PlannedBuffer>,
    pub(super) inputs: PlannedInputs,
    pub(super) lists: Vec<ListPlacement>,
}

/// Where the operands of one list lie: `(offset, bytes)`.
#[derive(Default)]
pub(super) struct ListPlacement {
    pub(super) values: BTreeMap<ValueId, (u64, u64)>,
    pub(super) caches: BTreeMap<CacheId, (u64, u64)>,
    /// By step.
    pub(super) workspaces: BTreeMap<usize, (u64, u64)>,
    /// By step, the steps of its phase.
    pub(super) phases: Vec<Range<usize>>,
}

/// What a buffer of a list is for.
#[derive(Clone, Copy)]
enum Purpose {
    Value(ValueId),
    Workspace(usize),
}

/// A range of steps during which bytes are needed; inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interval {
    pub(super) bytes: u64,
    pub(super) first_step: usize,
    pub(super) last_step: usize,
}

/// The step where the head begins: the first gather of rows, or behind the last step.
pub(super) fn head_start(list: &ScheduledList) -> usize {
    let operations = &list.graph.operations;
    operations.iter().position(|op| op.operation == Operation::GatherRows).unwrap_or(operations.len())
}

/// Places everything.
pub(super) fn run(schedule: &Schedule, target: &dyn Target) -> Result<Placement, PlanError> {
    let mut shared = SharedBuffers::default();
    for (name, is_input) in
        [("token", true), ("position", true), ("slot", true), ("logit_rows", true), ("logits", false)]
    {
        // Caches lie between inputs and logits.
        if !is_input {
            place_caches(schedule, target, &mut shared)?;
        }
        let bytes = shared_value_bytes(schedule, name, is_input)?;
        shared.append(name, bytes)?;
    }
    let candidates = place_candidates(schedule, &mut shared)?;
    let offset_of = |name: &str| shared.find(name).map_or(0, |buffer| buffer.offset);
    let inputs = PlannedInputs {
        token: offset_of("token"),
        position: offset_of("position"),
        slot: offset_of("slot"),
        logit_rows: offset_of("logit_rows"),
        logits: offset_of("logits"),
        candidates,
    };
    let base = aligned(shared.end, "activations")?;
    let mut arena_bytes = base;
    let mut buffers = shared.buffers.clone();
    let mut lists = Vec::with_capacity(schedule.lists.len());
    for (index, list) in schedule.lists.iter().enumerate() {
        let (placement, placed) = place_list(schedule, target.description(), list, index, &shared, base)?;
        arena_bytes = placed.iter().map(|buffer| buffer.offset + buffer.bytes).fold(arena_bytes, u64::max);
        buffers.extend(placed);
        lists.push(placement);
    }
    let arena_bytes = aligned(arena_bytes, "activations")?;
    Ok(Placement { arena_bytes, kv_cache_bytes: shared.cache_bytes, buffers, inputs, lists })
}

/// Buffers that outlive a step.
#[derive(Default)]
struct SharedBuffers {
    buffers: Vec<PlannedBuffer>,
    end: u64,
    cache_bytes: u64,
}

impl SharedBuffers {
    fn find(&self, name: &str) -> Option<&PlannedBuffer> {
        self.buffers.iter().find(|buffer| buffer.name == name)
    }

    /// Places bytes; returns their offset.
    fn append(&mut self, name: &str, bytes: u64) -> Result<u64, PlanError> {
        let offset = aligned(self.end, name)?;
        self.end = offset.checked_add(bytes).ok_or_else(|| PlanError::TooLarge { name: name.to_owned() })?;
        self.buffers.push(PlannedBuffer {
            name: name.to_owned(),
            list: None,
            offset,
            bytes,
            first_step: 0,
            last_step: usize::MAX,
        });
        Ok(offset)
    }
}

fn aligned(offset: u64, name: &str) -> Result<u64, PlanError> {
    offset
        .checked_next_multiple_of(ALIGNMENT_BYTES)
        .ok_or_else(|| PlanError::TooLarge { name: name.to_owned() })
}

/// Bytes of an input or output of the runtime in the list that needs most.
fn shared_value_bytes(schedule: &Schedule, name: &'static str, is_input: bool) -> Result<u64, PlanError> {
    let mut bytes = 0;
    for list in &schedule.lists {
        let ids = if is_input { &list.graph.inputs } else { &list.graph.outputs };
        let id = ids.iter().find(|id| list.graph.value(**id).name == name);
        let id = id.ok_or_else(|| PlanError::MissingInput { name, list: list.name.clone() })?;
        bytes = bytes.max(list.graph.value(*id).ty.bytes(list.max_rows, list.max_logit_rows));
    }
    Ok(bytes)
}

/// Places the caches of all lists, one for each name.
fn place_caches(
    schedule: &Schedule,
    target: &dyn Target,
    shared: &mut SharedBuffers,
) -> Result<(), PlanError> {
    let mut types = BTreeMap::new();
    let before = shared.end;
    for list in &schedule.lists {
        for cache in &list.graph.caches {
            match types.get(&cache.name) {
                None => {
                    types.insert(&cache.name, &cache.ty);
                    shared.append(&cache.name, target.cache_bytes(&cache.ty))?;
                }
                Some(ty) if **ty == cache.ty => {}
                Some(_) => {
                    return Err(PlanError::SharedBufferMismatch {
                        name: cache.name.clone(),
                        list: list.name.clone(),
                    });
                }
            }
        }
    }
    shared.cache_bytes = if types.is_empty() { 0 } else { shared.end - aligned(before, "caches")? };
    Ok(())
}

/// Places the largest logits for the lists that leave them; tells where the first list's are.
fn place_candidates(
    schedule: &Schedule,
    shared: &mut SharedBuffers,
) -> Result<Option<PlannedCandidates>, PlanError> {
    let type_of = |list: &ScheduledList, name: &str| {
        let id = list.graph.outputs.iter().find(|id| list.graph.value(**id).name == name)?;
        Some(list.graph.value(*id).ty.clone())
    };
    let mut offsets = [0; 2];
    for (name, offset) in ["candidates", "candidates.ids"].into_iter().zip(&mut offsets) {
        let bytes = schedule
            .lists
            .iter()
            .filter_map(|list| Some(type_of(list, name)?.bytes(list.max_rows, list.max_logit_rows)));
        let Some(bytes) = bytes.max() else { return Ok(None) };
        *offset = shared.append(name, bytes)?;
    }
    let of_first = schedule.lists.first().and_then(|list| type_of(list, "candidates"));
    let [values, ids] = offsets;
    Ok(of_first.map(|ty| PlannedCandidates { count: ty.columns(), values, ids }))
}

/// Packs the values and workspaces of one list behind `base`.
fn place_list(
    schedule: &Schedule,
    target: &TargetDescription,
    list: &ScheduledList,
    list_index: usize,
    shared: &SharedBuffers,
    base: u64,
) -> Result<(ListPlacement, Vec<PlannedBuffer>), PlanError> {
    let graph = &list.graph;
    let mut placement = ListPlacement { phases: join_steps::run(list, target), ..ListPlacement::default() };
    for (index, cache) in graph.caches.iter().enumerate() {
        if let Some(buffer) = shared.find(&cache.name) {
            placement.caches.insert(CacheId(index as u32), (buffer.offset, buffer.bytes));
        }
    }
    for id in graph.inputs.iter().chain(&graph.outputs) {
        if let Some(buffer) = shared.find(&graph.value(*id).name) {
            let bytes = graph.value(*id).ty.bytes(list.max_rows, list.max_logit_rows);
            placement.values.insert(*id, (buffer.offset, bytes));
        }
    }
    let (purposes, intervals) = live_intervals(schedule, list, &placement)?;
    let offsets = pack(&intervals)
        .ok_or_else(|| PlanError::TooLarge { name: format!("activations of list {}", list.name) })?;
    let mut buffers = Vec::with_capacity(intervals.len());
    for ((purpose, interval), offset) in purposes.iter().zip(&intervals).zip(offsets) {
        let offset =
            base.checked_add(offset)
                .filter(|offset| offset.checked_add(interval.bytes).is_some())
                .ok_or_else(|| PlanError::TooLarge { name: format!("activations of list {}", list.name) })?;
        let name = match *purpose {
            Purpose::Value(id) => {
                placement.values.insert(id, (offset, interval.bytes));
                graph.value(id).name.clone()
            }
            Purpose::Workspace(step) => {
                placement.workspaces.insert(step, (offset, interval.bytes));
                let output = graph.operations[step].outputs.first();
                let owner = output.map_or_else(|| format!("step {step}"), |id| graph.value(*id).name.clone());
                format!("workspace of {owner}")
            }
        };
        buffers.push(PlannedBuffer {
            name,
            list: Some(list_index),
            offset,
            bytes: interval.bytes,
            first_step: interval.first_step,
            last_step: interval.last_step,
        });
    }
    buffers.sort_by_key(|buffer| (buffer.first_step, buffer.offset));
    Ok((placement, buffers))
}

/// When each value and workspace of a list is in use, in the order of first use.
fn live_intervals(
    schedule: &Schedule,
    list: &ScheduledList,
    placement: &ListPlacement,
) -> Result<(Vec<Purpose>, Vec<Interval>), PlanError> {
    let graph = &list.graph;
    let head = head_start(list);
    let last = graph.operations.len().saturating_sub(1);
    let mut purposes = Vec::new();
    let mut intervals: Vec<Interval> = Vec::new();
    let mut index_of: BTreeMap<ValueId, usize> = BTreeMap::new();
    for (step, op) in graph.operations.iter().enumerate() {
        for id in op.inputs.iter().filter(|id| !placement.values.contains_key(id)) {
            let index = index_of.get(id).ok_or_else(|| PlanError::Unplaced {
                name: graph.value(*id).name.clone(),
                list: list.name.clone(),
            })?;
            let interval = &mut intervals[*index];
            let is_carried_over = step >= head && interval.first_step < head;
            interval.last_step = if is_carried_over { last } else { interval.last_step.max(step) };
        }
        for id in op.outputs.iter().filter(|id| !placement.values.contains_key(id)) {
            let bytes = graph.value(*id).ty.bytes(list.max_rows, list.max_logit_rows);
            index_of.insert(*id, intervals.len());
            purposes.push(Purpose::Value(*id));
            intervals.push(Interval { bytes, first_step: step, last_step: step });
        }
        let workspace_bytes =
            list.kernel_of.get(step).map_or(0, |kernel| schedule.kernels[*kernel].choice.workspace_bytes);
        if workspace_bytes > 0 {
            purposes.push(Purpose::Workspace(step));
            intervals.push(Interval { bytes: workspace_bytes, first_step: step, last_step: step });
        }
    }
    for interval in &mut intervals {
        interval.first_step = placement.phases[interval.first_step].start;
        interval.last_step = placement.phases[interval.last_step].end - 1;
    }
    Ok((purposes, intervals))
}

/// Offsets for the intervals such that no two that share a step share a byte; none where they exceed
/// 64 bits.
pub(super) fn pack(intervals: &[Interval]) -> Option<Vec<u64>> {
    let mut order: Vec<usize> = (0..intervals.len()).collect();
    order.sort_by_key(|index| {
        (std::cmp::Reverse(intervals[*index].bytes), intervals[*index].first_step, *index)
    });
    let mut offsets = vec![0_u64; intervals.len()];
    // Placed intervals, ascending by offset.
    let mut placed: Vec<usize> = Vec::with_capacity(intervals.len());
    for index in order {
        let interval = intervals[index];
        let neighbours = placed.iter().filter(|other| share_a_step(&intervals[**other], &interval));
        let mut gap_start = 0;
        let mut best: Option<(u64, u64)> = None;
        for other in neighbours {
            let gap_bytes = offsets[*other].saturating_sub(gap_start);
            if gap_bytes >= interval.bytes && best.is_none_or(|(bytes, _)| gap_bytes < bytes) {
                best = Some((gap_bytes, gap_start));
            }
            let end: u64 = offsets[*other] + intervals[*other].bytes;
            gap_start = gap_start.max(end.checked_next_multiple_of(ALIGNMENT_BYTES)?);
        }
        let offset = best.map_or(gap_start, |(_, start)| start);
        offset.checked_add(interval.bytes)?;
        offsets[index] = offset;
        let place = placed.partition_point(|other| offsets[*other] <= offset);
        placed.insert(place, index);
    }
    Some(offsets)
}

fn share_a_step(first: &Interval, second: &Interval) -> bool {
    first.first_step <= second.last_step && second.first_step <= first.last_step
}

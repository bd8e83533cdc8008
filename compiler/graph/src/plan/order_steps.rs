//! Makes the steps of every list: kernels with the addresses of their operands.

use std::collections::BTreeMap;

use super::place_buffers::{ListPlacement, Placement, head_start};
use super::{PlacedWeight, PlanError, PlannedList, PlannedOperand, PlannedStep, Region};
use crate::schedule::{Schedule, ScheduledList, row_axis};

/// The step lists, in the order of the graphs' operations.
pub(super) fn run(
    schedule: &Schedule,
    placement: &Placement,
    weights: &[PlacedWeight],
) -> Result<Vec<PlannedList>, PlanError> {
    let weight_of: BTreeMap<&str, &PlacedWeight> =
        weights.iter().map(|placed| (placed.weight.name.as_str(), placed)).collect();
    schedule
        .lists
        .iter()
        .zip(&placement.lists)
        .map(|(list, places)| {
            let mut body = (0..list.graph.operations.len())
                .map(|step| make_step(schedule, list, places, &weight_of, step))
                .collect::<Result<Vec<_>, _>>()?;
            let head = body.split_off(head_start(list));
            Ok(PlannedList {
                name: list.name.clone(),
                max_rows: list.max_rows,
                max_logit_rows: list.max_logit_rows,
                body,
                head,
            })
        })
        .collect()
}

/// One step: operands in the order of the request, then the workspace.
fn make_step(
    schedule: &Schedule,
    list: &ScheduledList,
    places: &ListPlacement,
    weight_of: &BTreeMap<&str, &PlacedWeight>,
    step: usize,
) -> Result<PlannedStep, PlanError> {
    let graph = &list.graph;
    let op = &graph.operations[step];
    let kernel = list.kernel_of[step];
    let unplaced = |name: &str| PlanError::Unplaced { name: name.to_owned(), list: list.name.clone() };
    let arena = |place: Option<&(u64, u64)>, name: &str| {
        let (offset, bytes) = *place.ok_or_else(|| unplaced(name))?;
        Ok(PlannedOperand { region: Region::Arena, offset, bytes })
    };
    let mut operands = Vec::new();
    for id in &op.inputs {
        operands.push(arena(places.values.get(id), &graph.value(*id).name)?);
    }
    for id in &op.weights {
        let name = &graph.weight(*id).name;
        let placed = weight_of.get(name.as_str()).ok_or_else(|| unplaced(name))?;
        operands.push(PlannedOperand { region: Region::Weights, offset: placed.offset, bytes: placed.bytes });
    }
    let read_operands = operands.len();
    for id in &op.caches {
        operands.push(arena(places.caches.get(id), &graph.cache(*id).name)?);
    }
    for id in &op.outputs {
        operands.push(arena(places.values.get(id), &graph.value(*id).name)?);
    }
    if let Some(place) = places.workspaces.get(&step) {
        operands.push(arena(Some(place), "workspace")?);
    }
    let cost = schedule.kernels[kernel].choice.cost;
    Ok(PlannedStep {
        kernel,
        layer: op.layer,
        row_axis: row_axis(graph, op),
        operands,
        read_operands,
        joins_previous: places.phases[step].start != step,
        cost,
    })
}

//! Places the weights in the region of the program that is mapped at run time.

use qwen2c_request::Target;

use super::{ALIGNMENT_BYTES, PlacedWeight, PlanError};
use crate::schedule::Schedule;

/// Weights of at least this size begin at a page of their own, so that reading one of them touches no
/// page of another.
const LARGE_WEIGHT_BYTES: u64 = 1 << 20;

/// Bytes of a page.
const PAGE_BYTES: u64 = 4096;

/// Weights in the order in which the first list reads them: a step walks forwards through the file.
pub(super) fn run(schedule: &Schedule, target: &dyn Target) -> Result<Vec<PlacedWeight>, PlanError> {
    let mut end: u64 = 0;
    let mut placed = Vec::with_capacity(schedule.weights.len());
    for weight in &schedule.weights {
        let layout = weight.layout.ok_or_else(|| PlanError::Unplaced {
            name: weight.name.clone(),
            list: schedule.lists.first().map_or_else(String::new, |list| list.name.clone()),
        })?;
        let too_large = || PlanError::TooLarge { name: weight.name.clone() };
        let bytes = target.weight_bytes(&weight.ty, layout);
        let alignment = if bytes >= LARGE_WEIGHT_BYTES { PAGE_BYTES } else { ALIGNMENT_BYTES };
        let offset = end.checked_next_multiple_of(alignment).ok_or_else(too_large)?;
        end = offset.checked_add(bytes).ok_or_else(too_large)?;
        placed.push(PlacedWeight { weight: weight.clone(), layout, offset, bytes });
    }
    Ok(placed)
}

//! The plan's verifier: an independent look at the finished table.
//!
//! It knows nothing of how buffers were placed. It checks that everything lies inside its region and is
//! aligned, that no two buffers in use at the same time share a byte, that weights do not overlap,
//! that every operand of every step lies in a buffer that is in use at that step, and that no step writes
//! what another step of its phase touches, and that a phase lies within the body or the head of its list.

use std::fmt;

use super::{ALIGNMENT_BYTES, Plan, PlannedBuffer, PlannedList, PlannedOperand, PlannedStep, Region};

/// What is wrong with a plan: always a bug of the planner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlanViolation {
    /// A buffer or weight ends behind its region.
    OutOfRegion {
        /// The buffer or weight.
        name: String,
        /// First byte behind it.
        end: u64,
        /// Bytes of the region.
        region_bytes: u64,
    },
    /// An offset is no multiple of [`ALIGNMENT_BYTES`].
    Misaligned {
        /// The buffer or weight.
        name: String,
        /// Its offset.
        offset: u64,
    },
    /// Two buffers that are in use at the same time, or two weights, share bytes.
    Overlap {
        /// Both names.
        names: [String; 2],
        /// First byte that they share.
        offset: u64,
    },
    /// A step touches bytes that no buffer in use at that step holds.
    UnbackedOperand {
        /// Step list.
        list: String,
        /// Step, counted through body and head.
        step: usize,
        /// Place of the operand.
        operand: usize,
    },
    /// A step writes what another step of its phase touches: they may run at the same time.
    Race {
        /// Step list.
        list: String,
        /// Both steps, counted through body and head; the first one writes.
        steps: [usize; 2],
        /// Byte of the arena that both touch.
        offset: u64,
    },
    /// The first step of a body or a head joins a step before it: the body and the head run by themselves, so
    /// there is none.
    JoinsNothing {
        /// Step list.
        list: String,
        /// Step, counted through body and head.
        step: usize,
    },
    /// What the head reads from the body goes out of use before the head's last step: a second run of the
    /// head would read something else.
    LostInHead {
        /// The buffer.
        name: String,
    },
    /// A buffer names a list that does not exist.
    UnknownList {
        /// The buffer.
        name: String,
    },
}

impl fmt::Display for PlanViolation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRegion { name, end, region_bytes } => {
                write!(formatter, "`{name}` ends at byte {end} of a region of {region_bytes} bytes")
            }
            Self::Misaligned { name, offset } => {
                write!(formatter, "`{name}` lies at {offset}, no multiple of {ALIGNMENT_BYTES}")
            }
            Self::Overlap { names: [first, second], offset } => {
                write!(
                    formatter,
                    "`{first}` and `{second}` share bytes from {offset} on while both are in use"
                )
            }
            Self::UnbackedOperand { list, step, operand } => write!(
                formatter,
                "operand {operand} of step {step} of list `{list}` lies in no buffer in use at that step"
            ),
            Self::Race { list, steps: [first, second], offset } => write!(
                formatter,
                "step {first} of list `{list}` writes byte {offset}, which step {second} of the same phase touches"
            ),
            Self::JoinsNothing { list, step } => write!(
                formatter,
                "step {step} of list `{list}` joins a step before it, and is the first of its body or head"
            ),
            Self::LostInHead { name } => {
                write!(formatter, "`{name}` goes out of use inside the head, which may run again")
            }
            Self::UnknownList { name } => {
                write!(formatter, "`{name}` belongs to a list that does not exist")
            }
        }
    }
}

impl std::error::Error for PlanViolation {}

/// Checks a plan.
///
/// # Errors
///
/// The first [`PlanViolation`] met.
pub fn verify_plan(plan: &Plan) -> Result<(), PlanViolation> {
    for buffer in &plan.buffers {
        check_range(&buffer.name, buffer.offset, buffer.bytes, plan.arena_bytes)?;
        let Some(list) = buffer.list else { continue };
        let list =
            plan.lists.get(list).ok_or_else(|| PlanViolation::UnknownList { name: buffer.name.clone() })?;
        let (body, steps) = (list.body.len(), list.body.len() + list.head.len());
        if buffer.first_step < body && (body..steps - 1).contains(&buffer.last_step) {
            return Err(PlanViolation::LostInHead { name: buffer.name.clone() });
        }
    }
    check_buffers(plan)?;
    check_weights(plan)?;
    check_operands(plan)?;
    plan.lists.iter().try_for_each(check_phases)
}

/// Holds what each step writes against all operands of the other steps of its phase.
fn check_phases(list: &PlannedList) -> Result<(), PlanViolation> {
    for (step, part) in [(0, &list.body), (list.body.len(), &list.head)] {
        if part.first().is_some_and(|first| first.joins_previous) {
            return Err(PlanViolation::JoinsNothing { list: list.name.clone(), step });
        }
    }
    let steps: Vec<&PlannedStep> = list.body.iter().chain(&list.head).collect();
    let mut first = 0;
    for end in 1..=steps.len() {
        if steps.get(end).is_some_and(|step| step.joins_previous) {
            continue;
        }
        for (writer, other) in (first..end).flat_map(|writer| (first..end).map(move |other| (writer, other)))
        {
            let written = &steps[writer].operands[steps[writer].read_operands..];
            let met = written.iter().find_map(|written| shared_byte(written, &steps[other].operands));
            if let Some(offset) = met.filter(|_| writer != other) {
                return Err(PlanViolation::Race { list: list.name.clone(), steps: [writer, other], offset });
            }
        }
        first = end;
    }
    Ok(())
}

/// The first byte of the arena that the range shares with one of the others.
fn shared_byte(range: &PlannedOperand, others: &[PlannedOperand]) -> Option<u64> {
    let in_arena = others.iter().filter(|other| other.region == Region::Arena);
    let mut shared = in_arena.map(|other| {
        let end = (range.offset + range.bytes).min(other.offset + other.bytes);
        range.offset.max(other.offset)..end
    });
    shared.find(|shared| !shared.is_empty()).map(|shared| shared.start)
}

fn check_range(name: &str, offset: u64, bytes: u64, region_bytes: u64) -> Result<(), PlanViolation> {
    if !offset.is_multiple_of(ALIGNMENT_BYTES) {
        return Err(PlanViolation::Misaligned { name: name.to_owned(), offset });
    }
    let end = offset.saturating_add(bytes);
    if end > region_bytes {
        return Err(PlanViolation::OutOfRegion { name: name.to_owned(), end, region_bytes });
    }
    Ok(())
}

/// Walks the buffers by offset; only those that begin before the end of an earlier one can meet it.
fn check_buffers(plan: &Plan) -> Result<(), PlanViolation> {
    let mut by_offset: Vec<&PlannedBuffer> = plan.buffers.iter().filter(|buffer| buffer.bytes > 0).collect();
    by_offset.sort_by_key(|buffer| buffer.offset);
    for (index, first) in by_offset.iter().enumerate() {
        let end = first.offset + first.bytes;
        let met = by_offset[index + 1..].iter().take_while(|second| second.offset < end);
        for second in met {
            if are_in_use_together(first, second) {
                let names = [first.name.clone(), second.name.clone()];
                return Err(PlanViolation::Overlap { names, offset: second.offset });
            }
        }
    }
    Ok(())
}

fn are_in_use_together(first: &PlannedBuffer, second: &PlannedBuffer) -> bool {
    match (first.list, second.list) {
        (Some(first_list), Some(second_list)) if first_list != second_list => false,
        (None, _) | (_, None) => true,
        _ => first.first_step <= second.last_step && second.first_step <= first.last_step,
    }
}

fn check_weights(plan: &Plan) -> Result<(), PlanViolation> {
    for placed in &plan.weights {
        check_range(&placed.weight.name, placed.offset, placed.bytes, plan.weight_bytes)?;
    }
    for pair in plan.weights.windows(2) {
        if pair[1].offset < pair[0].offset + pair[0].bytes {
            let names = [pair[0].weight.name.clone(), pair[1].weight.name.clone()];
            return Err(PlanViolation::Overlap { names, offset: pair[1].offset });
        }
    }
    Ok(())
}

fn check_operands(plan: &Plan) -> Result<(), PlanViolation> {
    for (list_index, list) in plan.lists.iter().enumerate() {
        let buffers: Vec<&PlannedBuffer> = plan
            .buffers
            .iter()
            .filter(|buffer| buffer.list.is_none_or(|owner| owner == list_index))
            .collect();
        for (step, planned) in list.body.iter().chain(&list.head).enumerate() {
            for (operand, place) in planned.operands.iter().enumerate() {
                let is_backed = match place.region {
                    Region::Arena => buffers.iter().any(|buffer| {
                        (buffer.first_step..=buffer.last_step).contains(&step)
                            && is_inside(place, buffer.offset, buffer.bytes)
                    }),
                    Region::Weights => {
                        plan.weights.iter().any(|weight| is_inside(place, weight.offset, weight.bytes))
                    }
                };
                if !is_backed {
                    return Err(PlanViolation::UnbackedOperand { list: list.name.clone(), step, operand });
                }
            }
        }
    }
    Ok(())
}

fn is_inside(operand: &PlannedOperand, offset: u64, bytes: u64) -> bool {
    operand.offset >= offset && operand.offset.saturating_add(operand.bytes) <= offset + bytes
}

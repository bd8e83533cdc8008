//! Whether a program's parts fit together: every offset inside its region, every index inside its table.
//!
//! The sections' hashes say that nobody altered a program by accident. These checks are for what hashes
//! cannot say: kernels get bare pointers, so no step may name memory that is not there.

use crate::check_device::{check_images, check_launches};
use crate::{DeviceCode, Manifest, ProgramError, Region, RowAxis, Step, StepList, StepLists, WeightTable};

/// Operands, inputs and weights lie at multiples of this.
pub const OPERAND_ALIGNMENT: u64 = 64;
/// Far more than any kernel has; keeps pointer tables small.
const MOST_OPERANDS: usize = 64;
/// Far above any machine's memory, far below an overflow.
const MOST_REGION_BYTES: u64 = 1 << 46;
/// Ids, positions and rows are `i32` in the arena.
const MOST_INDEX: u64 = i32::MAX as u64;

/// Checks that manifest, step lists, weight table and device code describe one program.
///
/// # Errors
///
/// [`ProgramError::Invalid`] with the section and the numbers.
pub fn check_program(
    manifest: &Manifest,
    lists: &StepLists,
    weights: &WeightTable,
    device_code: &DeviceCode,
) -> Result<(), ProgramError> {
    let invalid = |section| move |reason| ProgramError::Invalid { section, reason };
    check_manifest(manifest).map_err(invalid("manifest"))?;
    check_weights(manifest, weights).map_err(invalid("weight table"))?;
    check_lists(manifest, lists).map_err(invalid("step lists"))?;
    check_launches(manifest, lists).map_err(invalid("step lists"))?;
    check_images(manifest, device_code).map_err(invalid("device code"))?;
    check_self_test(manifest, lists).map_err(invalid("manifest"))
}

fn check_manifest(manifest: &Manifest) -> Result<(), String> {
    if !["cpu", "cuda"].contains(&manifest.family.as_str()) {
        return Err(format!("`{}` is not a family of targets", manifest.family));
    }
    for (name, bytes) in [
        ("weight_bytes", manifest.weight_bytes),
        ("arena_bytes", manifest.arena_bytes),
        ("kv_cache_bytes", manifest.kv_cache_bytes),
    ] {
        if bytes > MOST_REGION_BYTES {
            return Err(format!("`{name}` is {bytes}, above {MOST_REGION_BYTES}"));
        }
    }
    for (name, count) in
        [("context", manifest.context), ("slots", manifest.slots), ("vocabulary", manifest.model.vocabulary)]
    {
        if count == 0 || count > MOST_INDEX {
            return Err(format!("`{name}` is {count}, not between 1 and {MOST_INDEX}"));
        }
    }
    if manifest.kv_cache_bytes > manifest.arena_bytes {
        return Err("the caches are larger than the arena they are part of".to_owned());
    }
    let generation = &manifest.generation;
    let finite = generation.temperature >= 0.0 && generation.temperature.is_finite();
    let probability = (0.0..=1.0).contains(&generation.top_p);
    let penalty = generation.repetition_penalty > 0.0 && generation.repetition_penalty.is_finite();
    if !(finite && probability && penalty) {
        return Err(format!("sampling defaults out of range: {generation:?}"));
    }
    let vocabulary = manifest.model.vocabulary;
    let mut ids = generation.stop_ids.iter().chain(&generation.bos_id);
    match ids.find(|&&id| u64::from(id) >= vocabulary) {
        Some(id) => Err(format!("id {id} lies outside the vocabulary of {vocabulary}")),
        None => Ok(()),
    }
}

fn check_weights(manifest: &Manifest, weights: &WeightTable) -> Result<(), String> {
    let mut end = 0;
    for entry in &weights.entries {
        let inside = entry.offset.checked_add(entry.bytes).filter(|&end| end <= manifest.weight_bytes);
        let Some(entry_end) = inside.filter(|_| entry.offset >= end) else {
            return Err(format!(
                "weight `{}` claims {} bytes at offset {}, not between {end} and {}",
                entry.name, entry.bytes, entry.offset, manifest.weight_bytes
            ));
        };
        if !entry.offset.is_multiple_of(OPERAND_ALIGNMENT) {
            return Err(format!("weight `{}` lies at the odd offset {}", entry.name, entry.offset));
        }
        end = entry_end;
    }
    Ok(())
}

fn check_lists(manifest: &Manifest, lists: &StepLists) -> Result<(), String> {
    if lists.lists.first().is_none_or(|list| list.name != "decode") {
        return Err("the first list is not `decode`".to_owned());
    }
    for list in &lists.lists {
        check_list(manifest, lists, list).map_err(|reason| format!("list `{}`: {reason}", list.name))?;
    }
    Ok(())
}

fn check_list(manifest: &Manifest, lists: &StepLists, list: &StepList) -> Result<(), String> {
    let (rows, logit_rows) = (u64::from(list.max_rows), u64::from(list.max_logit_rows));
    if rows == 0 || rows > MOST_INDEX || logit_rows == 0 || logit_rows > rows {
        return Err(format!("{rows} rows and {logit_rows} logit rows cannot be right"));
    }
    let inputs = &manifest.inputs;
    for (name, offset, bytes) in [
        ("token", inputs.token, Some(4 * rows)),
        ("position", inputs.position, Some(4 * rows)),
        ("slot", inputs.slot, Some(4 * rows)),
        ("logit_rows", inputs.logit_rows, Some(4 * logit_rows)),
        ("logits", inputs.logits, manifest.model.vocabulary.checked_mul(4 * logit_rows)),
    ] {
        bytes
            .and_then(|bytes| check_range(offset, bytes, manifest.arena_bytes))
            .ok_or_else(|| format!("`{name}` at offset {offset} lies outside the arena"))?;
    }
    check_candidates(manifest)?;
    for (part, steps) in [("body", &list.body), ("head", &list.head)] {
        for (index, step) in steps.iter().enumerate() {
            check_step(manifest, lists, step).map_err(|reason| format!("{part} step {index}: {reason}"))?;
            if part == "body" && step.row_axis == RowAxis::LogitRows {
                return Err(format!("{part} step {index} works on logit rows"));
            }
        }
    }
    Ok(())
}

fn check_candidates(manifest: &Manifest) -> Result<(), String> {
    let Some(candidates) = manifest.inputs.candidates else { return Ok(()) };
    let (count, vocabulary) = (candidates.count, manifest.model.vocabulary);
    if count == 0 || count > vocabulary {
        return Err(format!("{count} candidates of {vocabulary} logits"));
    }
    // A vocabulary has at most 2³¹ ids: four bytes for each fit.
    for (name, offset) in [("values", candidates.values), ("ids", candidates.ids)] {
        check_range(offset, 4 * count, manifest.arena_bytes)
            .ok_or_else(|| format!("`{name}` of candidates at offset {offset} lie outside the arena"))?;
    }
    Ok(())
}

fn check_step(manifest: &Manifest, lists: &StepLists, step: &Step) -> Result<(), String> {
    if step.kernel as usize >= lists.kernels.len() {
        return Err(format!("kernel {} of {}", step.kernel, lists.kernels.len()));
    }
    if step.operands.len() > MOST_OPERANDS {
        return Err(format!("{} operands", step.operands.len()));
    }
    for (index, operand) in step.operands.iter().enumerate() {
        let (name, region_bytes) = match operand.region {
            Region::Arena => ("arena", manifest.arena_bytes),
            Region::Weights => ("weights", manifest.weight_bytes),
        };
        check_range(operand.offset, operand.bytes, region_bytes).ok_or_else(|| {
            format!(
                "operand {index} claims {} bytes at offset {} of the {name}, which have {region_bytes}",
                operand.bytes, operand.offset
            )
        })?;
    }
    Ok(())
}

/// Some where the aligned range lies inside `0..end`.
fn check_range(offset: u64, bytes: u64, end: u64) -> Option<()> {
    let inside = offset.checked_add(bytes)? <= end;
    (inside && offset.is_multiple_of(OPERAND_ALIGNMENT)).then_some(())
}

fn check_self_test(manifest: &Manifest, lists: &StepLists) -> Result<(), String> {
    let Some(record) = &manifest.self_test else { return Ok(()) };
    let Some(list) = lists.list("self_test") else {
        return Err("a self-test was recorded without a step list for it".to_owned());
    };
    let (tokens, columns) = (record.tokens.len(), record.columns.len());
    let vocabulary = manifest.model.vocabulary;
    let known = record.tokens.iter().chain(&record.columns).all(|&id| u64::from(id) < vocabulary);
    let rows = tokens.min(manifest.context as usize);
    if !known || tokens == 0 || columns == 0 || rows != tokens || tokens > list.max_rows as usize {
        return Err(format!("the self-test's {tokens} tokens and {columns} columns cannot be right"));
    }
    let positive = record.tolerance > 0.0;
    if tokens.checked_mul(columns) != Some(record.logits.len()) || !positive {
        return Err(format!(
            "the self-test has {} logits for {tokens} tokens and {columns} columns, tolerance {}",
            record.logits.len(),
            record.tolerance
        ));
    }
    Ok(())
}

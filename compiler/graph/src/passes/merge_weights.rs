//! Joins weights along their rows, for the passes that merge projections.

use qwen2c_request::{Dimension, Size, WeightType};

use crate::passes::rewrite::{free_name, joint_name};
use crate::{Graph, Weight, WeightId, WeightPart, WeightSource};

/// Adds the weight that holds the rows of all of `weights` one after the other; for experts, those of
/// each expert. Vectors are joined along their only dimension. Its name has `middle` where the names
/// differ, its rows are called `dimension`.
///
/// None where the weights differ in columns or element type, or do not come from tensors.
pub(super) fn merge_weights(
    graph: &mut Graph,
    weights: &[WeightId],
    middle: &str,
    dimension: &str,
) -> Option<WeightId> {
    let all: Vec<&Weight> = weights.iter().map(|id| graph.weight(*id)).collect();
    let first = *all.first()?;
    let rank = first.ty.dimensions.len();
    let joined = rank.saturating_sub(2);
    let is_alike = |weight: &Weight| {
        let others = |ty: &WeightType| {
            let mut extents = ty.extents();
            extents.remove(joined);
            extents
        };
        weight.ty.dimensions.len() == rank
            && weight.ty.element == first.ty.element
            && weight.ty.quantization == first.ty.quantization
            && others(&weight.ty) == others(&first.ty)
            && (rank == 1 || weight.source_columns == first.source_columns)
            && (rank > 1 || weight.source_columns == weight.ty.columns())
    };
    if !all.iter().all(|weight| is_alike(weight)) {
        return None;
    }
    let experts = if rank == 3 { first.ty.extents()[0] as usize } else { 1 };
    let parts = join_parts(&all, experts)?;
    let rows = all.iter().map(|weight| weight.ty.extents()[joined]).sum();
    let mut ty = first.ty.clone();
    ty.dimensions[joined] = Dimension { name: dimension.to_owned(), size: Size::Constant(rows) };
    let names: Vec<&str> = all.iter().map(|weight| weight.name.as_str()).collect();
    let name = joint_name(&names, middle);
    let name = free_name(&name, |name| graph.weights.iter().any(|weight| weight.name == name));
    let source_columns = if rank == 1 { rows } else { first.source_columns };
    let merged = Weight { name, ty, source_columns, source: WeightSource::Tensors(parts), layout: None };
    Some(graph.add_weight(merged))
}

/// The parts of all weights in the order of the merged rows. Experts are interleaved, for which each
/// must be made of as many parts as every other.
fn join_parts(weights: &[&Weight], experts: usize) -> Option<Vec<WeightPart>> {
    let parts: Vec<&[WeightPart]> = weights
        .iter()
        .map(|weight| match &weight.source {
            WeightSource::Tensors(parts) => Some(parts.as_slice()),
            WeightSource::RopeTable(_) | WeightSource::UnresolvedRopeTable => None,
        })
        .collect::<Option<_>>()?;
    let expert_rows = |weight: &Weight| weight.ty.rows() / experts as u64;
    if experts > 1 {
        let is_one_part_per_expert = weights.iter().zip(&parts).all(|(weight, parts)| {
            parts.len() == experts && parts.iter().all(|part| part.padded_rows == expert_rows(weight))
        });
        if !is_one_part_per_expert {
            return None;
        }
        let interleaved =
            (0..experts).flat_map(|expert| parts.iter().map(move |parts| parts[expert].clone()));
        return Some(interleaved.collect());
    }
    Some(parts.concat())
}

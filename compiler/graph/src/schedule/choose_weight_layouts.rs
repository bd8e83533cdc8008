//! Chooses one layout for every weight.
//!
//! # What it does
//!
//! Collects the readers of each weight over all step lists (weights are one where their names are)
//! and takes, of the layouts that all of them can read, the one whose costs add up to the least;
//! where two are equal, the one that the first reader prefers.
//!
//! # Why
//!
//! The program holds each weight once. Decode, prompt and the gather of a tied embedding read the
//! same bytes, so the layout belongs to the weight and not to a kernel.

use std::collections::{BTreeMap, BTreeSet};

use qwen2c_request::{LayoutOption, WeightLayout};

use super::choose_kernels::Requests;
use super::{ListSpec, ScheduleError, describe_operation};
use crate::Weight;

/// A reader of a weight: a request's weight operand, with the place where it was first met.
struct Reader<'a> {
    options: &'a [LayoutOption],
    list: usize,
    operation: usize,
}

/// All readers of one weight.
struct Readers<'a> {
    weight: &'a Weight,
    list: usize,
    /// Each (request, operand) counts once: a weight that two operations read the same way in a list
    /// is as one reader to the choice.
    seen: BTreeSet<(usize, usize)>,
    readers: Vec<Reader<'a>>,
}

/// The weights in the order of their first use, layouts set.
pub(super) fn run(lists: &[ListSpec], requests: &Requests) -> Result<Vec<Weight>, ScheduleError> {
    let mut index_of: BTreeMap<&str, usize> = BTreeMap::new();
    let mut all: Vec<Readers<'_>> = Vec::new();
    for (list_index, list) in lists.iter().enumerate() {
        for (operation, op) in list.graph.operations.iter().enumerate() {
            let request = requests.request_of[list_index][operation];
            for (operand, id) in op.weights.iter().enumerate() {
                let weight = list.graph.weight(*id);
                let index = *index_of.entry(&weight.name).or_insert_with(|| {
                    all.push(Readers {
                        weight,
                        list: list_index,
                        seen: BTreeSet::new(),
                        readers: Vec::new(),
                    });
                    all.len() - 1
                });
                let entry = &mut all[index];
                if !is_same_weight(entry.weight, weight) {
                    return Err(ScheduleError::WeightMismatch {
                        weight: weight.name.clone(),
                        lists: [lists[entry.list].name.clone(), list.name.clone()],
                    });
                }
                if entry.seen.insert((request, operand)) {
                    let options = requests.answers[request].1.layouts.get(operand);
                    let options = options.map_or(&[][..], Vec::as_slice);
                    entry.readers.push(Reader { options, list: list_index, operation });
                }
            }
        }
    }
    all.iter()
        .map(|entry| match cheapest_layout(&entry.readers) {
            Some(layout) => Ok(Weight { layout: Some(layout), ..entry.weight.clone() }),
            None => Err(ScheduleError::NoCommonLayout {
                weight: entry.weight.name.clone(),
                readers: entry.readers.iter().map(|reader| describe_reader(lists, reader)).collect(),
            }),
        })
        .collect()
}

/// Whether two lists mean the same bytes by one name.
fn is_same_weight(first: &Weight, second: &Weight) -> bool {
    first.ty == second.ty && first.source_columns == second.source_columns && first.source == second.source
}

/// The layout with the least summed cost among those all readers can read.
fn cheapest_layout(readers: &[Reader<'_>]) -> Option<WeightLayout> {
    let candidates = readers.first()?.options;
    candidates
        .iter()
        .filter_map(|candidate| {
            let costs = readers.iter().map(|reader| {
                reader
                    .options
                    .iter()
                    .find(|option| option.layout == candidate.layout)
                    .map(|option| option.cost)
            });
            let sum: Option<u32> = costs.sum();
            Some((sum?, candidate.layout))
        })
        // The first of equal minima wins, which is the first reader's preference.
        .min_by_key(|(sum, _)| *sum)
        .map(|(_, layout)| layout)
}

fn describe_reader(lists: &[ListSpec], reader: &Reader<'_>) -> String {
    let list = &lists[reader.list];
    let operation = describe_operation(&list.graph, &list.graph.operations[reader.operation]);
    let layouts: Vec<String> = reader.options.iter().map(|option| option.layout.to_string()).collect();
    format!("`{operation}` of list `{}` reads {}", list.name, layouts.join(" or "))
}

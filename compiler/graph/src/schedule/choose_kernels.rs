//! Asks the target for a kernel for every operation.
//!
//! # What it does
//!
//! Makes a request of each operation and asks once for each distinct one: the layers of a model share
//! their kernels, so the work does not grow with their number. Lists for different numbers of rows share those
//! that the target would not make differently.

use std::collections::HashMap;

use qwen2c_request::{Dimension, KernelChoice, KernelRequest, Operation, Size, Target};

use super::{ListSpec, RowAxis, ScheduleError, describe_operation, row_axis};
use crate::{Graph, Op, ValueId};

/// The target's answers.
pub(super) struct Requests {
    /// Distinct requests in the order of their first use, with their answers.
    pub(super) answers: Vec<(KernelRequest, KernelChoice)>,
    /// For each list and operation, the index of its request.
    pub(super) request_of: Vec<Vec<usize>>,
}

/// Asks the target.
pub(super) fn run(lists: &[ListSpec], target: &dyn Target) -> Result<Requests, ScheduleError> {
    let mut answers = Vec::new();
    let mut index_of: HashMap<KernelRequest, usize> = HashMap::new();
    let mut request_of = Vec::with_capacity(lists.len());
    for list in lists {
        let mut indices = Vec::with_capacity(list.graph.operations.len());
        for op in &list.graph.operations {
            let mut request = request(list, op);
            request.max_rows = target.kernel_rows(&request);
            let index = match index_of.get(&request) {
                Some(index) => *index,
                None => {
                    let choice = target.choose(&request).map_err(|unservable| ScheduleError::Unservable {
                        list: list.name.clone(),
                        operation: describe_operation(&list.graph, op),
                        target: target.description().name.clone(),
                        reason: unservable.reason,
                    })?;
                    index_of.insert(request.clone(), answers.len());
                    answers.push((request, choice));
                    answers.len() - 1
                }
            };
            indices.push(index);
        }
        request_of.push(indices);
    }
    Ok(Requests { answers, request_of })
}

/// The request of an operation. Behind the head's gather all rows are `logit_rows`: a kernel does not
/// care, so the request calls them `rows` and is served by the body's kernel where there is one.
fn request(list: &ListSpec, op: &Op) -> KernelRequest {
    let graph: &Graph = &list.graph;
    let is_gather = op.operation == Operation::GatherRows;
    let value_type = |id: &ValueId| {
        let mut ty = graph.value(*id).ty.clone();
        for dimension in &mut ty.dimensions {
            if dimension.size == Size::LogitRows && !is_gather {
                *dimension = Dimension::rows();
            }
        }
        ty
    };
    let value_types = |ids: &[ValueId]| ids.iter().map(value_type).collect();
    KernelRequest {
        operation: op.operation.clone(),
        inputs: value_types(&op.inputs),
        weights: op.weights.iter().map(|id| graph.weight(*id).ty.clone()).collect(),
        caches: op.caches.iter().map(|id| graph.cache(*id).ty.clone()).collect(),
        outputs: value_types(&op.outputs),
        max_rows: match row_axis(graph, op) {
            RowAxis::Rows => list.max_rows,
            RowAxis::LogitRows => list.max_logit_rows,
        },
    }
}

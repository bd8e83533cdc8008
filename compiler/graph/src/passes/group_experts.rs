//! Multiplies all rows of an expert at once where a step brings several rows.
//!
//! # What it does
//!
//! Lists, once for each choice of experts, which rows go to which expert, and lets the products of
//! these experts work through that list.
//!
//! # Why
//!
//! Each chosen expert's weight is read once for all its rows instead of once for each.
//!
//! # Before
//!
//! ```text
//! %gate: f32[rows, choices=2, intermediate=32] = expert_matmul(%x, %experts, @gate)
//! ```
//!
//! # After
//!
//! ```text
//! %groups: i32[table=24] = group_rows(%experts) {experts=3}
//! %gate: f32[rows, choices=2, intermediate=32] = expert_matmul(%x, %experts, %groups, @gate) {grouped}
//! ```
//!
//! # When it does not apply
//!
//! In step lists of one row, whose choices are experts of their own anyway.

use qwen2c_request::{Dimension, Element, Operation, TensorType};

use crate::passes::PassContext;
use crate::passes::rewrite::{Replacement, Uses, free_name, rewrite_all};
use crate::{Graph, Op, ValueId};

/// Groups all products of experts.
pub(super) fn run(graph: &mut Graph, context: &PassContext<'_>) -> u64 {
    if context.max_rows <= 1 {
        return 0;
    }
    rewrite_all(graph, |graph, uses, index| group(graph, uses, index, context.max_rows))
}

fn group(graph: &mut Graph, uses: &Uses, index: usize, max_rows: u64) -> Option<Replacement> {
    let mut op = graph.operations[index].clone();
    let Operation::ExpertMatmul { grouped: grouped @ false, .. } = &mut op.operation else { return None };
    *grouped = true;
    let chosen = *op.inputs.get(1)?;
    let experts = *graph.weight(*op.weights.first()?).ty.extents().first()?;
    let table = Operation::GroupRows { experts };
    // The first product of a choice lists it; the others, which come later, find the list.
    let listed = uses.readers(chosen).iter().find(|reader| graph.operations[**reader].operation == table);
    let mut insert = Vec::new();
    let groups = match listed {
        Some(reader) if *reader < index => *graph.operations[*reader].outputs.first()?,
        _ => {
            let groups = add_table(graph, chosen, experts, max_rows);
            insert.push(Op {
                operation: table,
                layer: op.layer,
                inputs: vec![chosen],
                weights: Vec::new(),
                caches: Vec::new(),
                outputs: vec![groups],
            });
            groups
        }
    };
    op.inputs.push(groups);
    insert.push(op);
    Some(Replacement { remove: vec![index], at: index, insert })
}

fn add_table(graph: &mut Graph, chosen: ValueId, experts: u64, max_rows: u64) -> ValueId {
    let choices = &graph.value(chosen);
    let entries = max_rows * choices.ty.row_elements();
    let ty = TensorType {
        dimensions: vec![Dimension::constant("table", 2 + 2 * experts + entries)],
        element: Element::I32,
    };
    let name = format!("{}.groups", choices.name);
    let name = free_name(&name, |name| graph.values.iter().any(|value| value.name == name));
    graph.add_value(name, ty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::tests::{EXPERTS, rewrite};

    #[test]
    fn products_of_a_choice_share_a_list() {
        let (rewrites, after) = rewrite(run, EXPERTS, 8);
        assert_eq!(rewrites, 3);
        assert_eq!(after.matches("group_rows").count(), 1);
        insta::assert_snapshot!(after);
    }

    #[test]
    fn a_single_row_is_not_grouped() {
        assert_eq!(rewrite(run, EXPERTS, 1), (0, EXPERTS.to_owned()));
    }
}

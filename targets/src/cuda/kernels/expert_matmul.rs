//! `expert_matmul`: each (row, choice) entry times the weight of its expert.
//!
//! ```text
//! by entry:  a block is some columns of one entry
//! grouped:   a block is some columns of one active expert; some of its entries at a time
//! ```
//!
//! Many rows go to the matrix unit where it serves their types: `prompt_experts`.
//!
//! Which experts are read stands in memory alone: an idle expert costs an empty block, and its weights are not
//! touched.

use qwen2c_request::{KernelRequest, Operation, WeightLayout};

use super::functions::silu;
use super::matmul::{Results, Tasks, input_row, multiply, rows_side_by_side, shared_bytes};
use super::tile_cut::Cut;
use super::unit_product::InputRow;
use super::{BLOCKS_FOR_MANY_REGISTERS, Kernel, Shape, prompt_experts};
use crate::builder::{Compare, Val};
use crate::cuda::layout::WarpGeometry;

fn cut(request: &KernelRequest, layouts: &[WeightLayout]) -> (WarpGeometry, Tasks) {
    match layouts[0] {
        WeightLayout::WarpPanels { rows, separate_halves } => {
            let geometry = WarpGeometry::new(&request.weights[0], rows, separate_halves);
            let tasks = Tasks::new(geometry, false);
            let is_alone = request.max_rows == 1 && !is_grouped(request);
            (geometry, if is_alone { tasks.widened(geometry, choices(request)) } else { tasks })
        }
        _ => unreachable!("`choose` offers products warp panels alone"),
    }
}

fn is_grouped(request: &KernelRequest) -> bool {
    matches!(request.operation, Operation::ExpertMatmul { grouped: true, .. })
}

/// How the product is cut for the matrix unit, where it goes there.
fn prompt_cut(request: &KernelRequest, layouts: &[WeightLayout]) -> Option<Cut> {
    if is_grouped(request) { Cut::of_experts(request, layouts) } else { None }
}

pub(super) fn choices(request: &KernelRequest) -> u64 {
    request.inputs[1].row_elements()
}

/// Blocks of columns times choices, or times experts.
pub(super) fn shape(request: &KernelRequest, layouts: &[WeightLayout]) -> Shape {
    if let Some(cut) = prompt_cut(request, layouts) {
        return prompt_experts::shape(request, cut);
    }
    let (geometry, tasks) = cut(request, layouts);
    let (parts, rows_per_block) = if is_grouped(request) {
        (geometry.matrices, request.max_rows.max(1))
    } else {
        (choices(request), 1)
    };
    let shared_bytes = shared_bytes(request, geometry, tasks);
    Shape {
        blocks: parts * tasks.blocks(),
        rows_per_block,
        threads: 128,
        shared_bytes,
        blocks_at_once: Some(BLOCKS_FOR_MANY_REGISTERS),
    }
}

/// Some columns of one entry or of one active expert.
pub(super) fn body(kernel: &Kernel<'_, '_>) {
    if let Some(cut) = prompt_cut(kernel.request, kernel.layouts) {
        prompt_experts::body(kernel, cut);
        return;
    }
    let k = kernel.k;
    let (geometry, tasks) = cut(kernel.request, kernel.layouts);
    let part = kernel.block() / k.int(tasks.blocks());
    if !is_grouped(kernel.request) {
        let entry = kernel.row() * k.int(choices(kernel.request)) + part;
        let expert = kernel.input(1).load_index(entry);
        multiply_entries(kernel, (geometry, tasks), expert, &[entry], k.int(1));
        return;
    }
    let table = kernel.group_table(kernel.input(2), geometry.matrices);
    let is_active = part.compare(Compare::Less, table.active_count.load_index(k.int(0)));
    k.when(is_active, || {
        let expert = table.active.load_index(part);
        let (first, last) = (table.offsets.load_index(expert), table.offsets.load_index(expert + k.int(1)));
        let side_by_side = rows_side_by_side(kernel.request, tasks);
        k.repeat(first, last, side_by_side as i64, |place| {
            let count = last - place;
            // Entries that do not exist are the first again, and are not stored.
            let entries: Vec<Val<'_>> = (0..side_by_side)
                .map(|index| {
                    let exists = k.int(index).compare(Compare::Less, count);
                    table.entries.load_index(exists.select(place + k.int(index), place))
                })
                .collect();
            multiply_entries(kernel, (geometry, tasks), expert, &entries, count);
        });
    });
}

/// Products of entries of one expert, of which the first `count` are stored.
fn multiply_entries<'k>(
    kernel: &Kernel<'k, '_>,
    (geometry, tasks): (WarpGeometry, Tasks),
    expert: Val<'k>,
    entries: &[Val<'k>],
    count: Val<'k>,
) {
    let k = kernel.k;
    let choices = k.int(choices(kernel.request));
    let matrix = kernel.weight(0).at_bytes(expert * k.int(geometry.matrix_bytes()));
    // `x` has a row for each entry (behind the first product) or one for all choices of a row.
    let is_by_entry = kernel.input_type(0).dimensions.len() == 3;
    let inputs: Vec<InputRow<'k>> = entries
        .iter()
        .map(|entry| if is_by_entry { *entry } else { *entry / choices })
        .map(|row| kernel.input(0).at(row * k.int(geometry.columns)))
        .map(|row| input_row(kernel, (geometry, tasks), matrix, row))
        .collect();
    let results = multiply(kernel, (geometry, tasks), (matrix, k.int(0)), &inputs);
    let exists = k.both(results.exists, results.input.compare(Compare::Less, count));
    k.when(exists, || {
        let entry = entries.iter().enumerate().skip(1).fold(entries[0], |chosen, (index, entry)| {
            results.input.compare(Compare::Equal, k.int(index as u64)).select(*entry, chosen)
        });
        store(kernel, entry, &results, geometry.rows / tasks.halves);
    });
}

fn store<'k>(kernel: &Kernel<'k, '_>, entry: Val<'k>, results: &Results<'k>, columns: u64) {
    let k = kernel.k;
    let value = match results.values[..] {
        [gate, up] => silu(k, gate) * up,
        _ => results.values[0],
    };
    kernel.output(0).store(entry * k.int(columns) + results.column, value);
}

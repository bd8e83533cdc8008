//! `expert_matmul`: each (row, choice) entry times the weight of its expert.
//!
//! ```text
//! by entry:  a tile is 4 panels of columns of one entry
//! grouped:   a tile is 4 (or 2) panels of columns of one active expert;
//!            for 8 (or 4) of its entries at a time, then one by one: sums over all inputs, epilogue
//! ```
//!
//! The number of grouped tiles depends on the routing and is read from the table that `group_rows` wrote:
//! an idle expert costs nothing and its weights are not touched.

use qwen2c_request::Operation;

use super::Kernel;
use super::functions::silu;
use super::group_rows::GroupTable;
use super::matmul::{rows_side_by_side, tile_panels};
use super::panel_product::{PanelProduct, PanelStreams, ResultRow, geometry};
use crate::builder::Val;

fn panel_streams(kernel: &Kernel<'_, '_>) -> PanelStreams {
    let geometry = geometry(kernel.layouts, kernel.weight_type(0), kernel.lanes);
    PanelStreams::new(geometry, tile_panels(kernel.lanes, kernel.request))
}

fn is_grouped(kernel: &Kernel<'_, '_>) -> bool {
    matches!(kernel.request.operation, Operation::ExpertMatmul { grouped: true, .. })
}

fn choices(kernel: &Kernel<'_, '_>) -> u64 {
    kernel.input_type(1).row_elements()
}

fn table<'k>(kernel: &Kernel<'k, '_>) -> GroupTable<'k> {
    let experts = geometry(kernel.layouts, kernel.weight_type(0), kernel.lanes).matrices;
    GroupTable::new(kernel, kernel.input(2), experts)
}

/// Blocks of columns times entries, or times active experts.
pub(super) fn tiles<'k>(kernel: &Kernel<'k, '_>) -> Val<'k> {
    let k = kernel.k;
    let parts = if is_grouped(kernel) {
        table(kernel).active_count.load_index(k.int(0))
    } else {
        kernel.rows * k.int(choices(kernel))
    };
    parts * k.int(panel_streams(kernel).tiles())
}

/// One block of columns for one entry or one active expert.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, tile: Val<'k>) {
    let k = kernel.k;
    let blocks = panel_streams(kernel);
    let count = k.int(blocks.tiles());
    let (part, block) = (tile / count, tile % count);
    if !is_grouped(kernel) {
        let expert = kernel.input(1).load_index(part);
        blocks.with_tile(kernel, block, |panels| multiply_entries(kernel, expert, &[part], panels));
        return;
    }
    let table = table(kernel);
    let expert = table.active.load_index(part);
    let (first, last) = (table.offsets.load_index(expert), table.offsets.load_index(expert + k.int(1)));
    blocks.with_tile(kernel, block, |panels| {
        let entries = |place: Val<'k>, count: usize| -> Vec<Val<'k>> {
            (0..count).map(|index| table.entries.load_index(place + k.int(index as i64))).collect()
        };
        let x = kernel.input_type(0).element;
        let side_by_side = if kernel.request.max_rows == 1 { 1 } else { rows_side_by_side(kernel.lanes, x) };
        let whole = first + k.whole_chunks(last - first, side_by_side as u32);
        k.repeat(first, whole, side_by_side as i64, |place| {
            multiply_entries(kernel, expert, &entries(place, side_by_side), panels);
        });
        k.repeat(whole, last, 1, |place| multiply_entries(kernel, expert, &entries(place, 1), panels));
    });
}

/// Sums and epilogue of some entries of one expert.
fn multiply_entries<'k>(kernel: &Kernel<'k, '_>, expert: Val<'k>, entries: &[Val<'k>], panels: &[Val<'k>]) {
    let (k, lanes) = (kernel.k, kernel.lanes);
    let matrix_bytes = geometry(kernel.layouts, kernel.weight_type(0), lanes).matrix_bytes();
    let product = PanelProduct::new(kernel, expert * k.int(matrix_bytes));
    // `x` has a row for each entry (behind the first product) or one for all choices of a row.
    let is_by_entry = kernel.input_type(0).dimensions.len() == 3;
    let rows: Vec<Val<'k>> = entries
        .iter()
        .map(|entry| if is_by_entry { *entry } else { *entry / k.int(choices(kernel)) })
        .collect();
    let sums = product.sums(kernel, &rows, panels);
    for (entry, sums) in entries.iter().zip(&sums) {
        finish_entry(kernel, *entry, panels, sums);
    }
}

fn finish_entry<'k>(kernel: &Kernel<'k, '_>, entry: Val<'k>, panels: &[Val<'k>], sums: &[Val<'k>]) {
    let k = kernel.k;
    let lanes = k.int(kernel.lanes);
    let columns = kernel.output_type(0).row_elements() / choices(kernel);
    let result = ResultRow { out: kernel.output(0).at(entry * k.int(columns)), columns };
    if matches!(kernel.request.operation, Operation::ExpertMatmul { silu_multiply: true, .. }) {
        for (gate_and_up, pair) in panels.chunks(2).zip(sums.chunks(2)) {
            let column = gate_and_up[0] * lanes;
            result.store(kernel, column, |_| silu(k, pair[0]) * pair[1]);
        }
    } else {
        for (panel, sum) in panels.iter().zip(sums) {
            result.store(kernel, *panel * lanes, |_| *sum);
        }
    }
}

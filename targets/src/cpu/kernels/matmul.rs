//! `matmul`: activations times a weight in panels, with bias, residual and SiLU·multiply as epilogues.
//!
//! ```text
//! decode, one row:  a tile is 4 panels of columns (6 where integers are multiplied), all inputs
//! prompt:           a tile is 2 panels of columns by 64 rows;
//!                   for 8 rows at a time (4 of integers; half of it with 8 lanes), then one by one: sums over all inputs, epilogue
//! ```
//!
//! The panels of a prompt tile (2 · 16 · k weights) stay in the second-level cache over its 64 rows.

use qwen2c_request::{Element, KernelRequest, Operation};

use super::Kernel;
use super::functions::silu;
use super::panel_product::{PanelProduct, PanelStreams, ResultRow, geometry};
use crate::builder::Val;

/// Rows of a prompt tile.
const TILE_ROWS: i64 = 64;

/// Panels of a tile: several streams of memory on decode, registers for several rows on a prompt.
///
/// Integers keep the processor busier between two loads than floats do, and it then asks memory for less
/// at a time: they want more streams, where there are registers for them.
pub(in crate::cpu) fn tile_panels(lanes: u32, request: &KernelRequest) -> u64 {
    let multiplies_integers = matches!(request.inputs[0].element, Element::I8 { .. });
    match (request.max_rows, multiplies_integers) {
        (1, true) if lanes == 16 => 6,
        (1, _) => 4,
        _ => 2,
    }
}

/// Rows multiplied side by side: with 2 panels, 16 sums in 32 registers of 16 lanes, 8 in 16 of 8. Integers
/// need a total beside each sum, and so take half as many rows.
pub(in crate::cpu) fn rows_side_by_side(lanes: u32, x: Element) -> usize {
    let sums = lanes as usize;
    if matches!(x, Element::I8 { .. }) { sums / 4 } else { sums / 2 }
}

fn panel_streams(kernel: &Kernel<'_, '_>) -> PanelStreams {
    let geometry = geometry(kernel.layouts, kernel.weight_type(0), kernel.lanes);
    PanelStreams::new(geometry, tile_panels(kernel.lanes, kernel.request))
}

/// Blocks of columns times blocks of rows.
pub(super) fn tiles<'k>(kernel: &Kernel<'k, '_>) -> Val<'k> {
    kernel.rows.divide_up(TILE_ROWS) * kernel.k.int(panel_streams(kernel).tiles())
}

/// One block of columns for one block of rows; row blocks of the same columns follow each other.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, tile: Val<'k>) {
    let k = kernel.k;
    let row_blocks = kernel.rows.divide_up(TILE_ROWS);
    let (column_block, row_block) = (tile / row_blocks, tile % row_blocks);
    let first_row = row_block * k.int(TILE_ROWS);
    let last_row = (first_row + k.int(TILE_ROWS)).minimum(kernel.rows);
    let product = PanelProduct::new(kernel, k.int(0));
    panel_streams(kernel).with_tile(kernel, column_block, |panels| {
        if kernel.request.max_rows == 1 {
            multiply_rows(kernel, &product, &[k.int(0)], panels);
            return;
        }
        let side_by_side = rows_side_by_side(kernel.lanes, kernel.input_type(0).element);
        let whole = first_row + k.whole_chunks(last_row - first_row, side_by_side as u32);
        k.repeat(first_row, whole, side_by_side as i64, |row| {
            let rows: Vec<Val<'k>> = (0..side_by_side).map(|index| row + k.int(index as i64)).collect();
            multiply_rows(kernel, &product, &rows, panels);
        });
        k.repeat(whole, last_row, 1, |row| multiply_rows(kernel, &product, &[row], panels));
    });
}

/// Sums and epilogue of some rows.
fn multiply_rows<'k>(
    kernel: &Kernel<'k, '_>,
    product: &PanelProduct<'k>,
    rows: &[Val<'k>],
    panels: &[Val<'k>],
) {
    let sums = product.sums(kernel, rows, panels);
    for (row, sums) in rows.iter().zip(&sums) {
        finish_row(kernel, *row, panels, sums);
    }
}

/// Epilogue of one row: bias, residual or SiLU·multiply, and the store.
fn finish_row<'k>(kernel: &Kernel<'k, '_>, row: Val<'k>, panels: &[Val<'k>], sums: &[Val<'k>]) {
    let Operation::Matmul { bias, residual, silu_multiply } = kernel.request.operation else { return };
    let (k, lanes) = (kernel.k, kernel.lanes);
    let columns = kernel.output_type(0).row_elements();
    let row_start = row * k.int(columns);
    let result = ResultRow { out: kernel.output(0).at(row_start), columns };
    if silu_multiply {
        // A pair of panels (gate, up) makes one vector of results; with a bias, `up` has its half behind.
        for (gate_and_up, pair) in panels.chunks(2).zip(sums.chunks(2)) {
            let column = gate_and_up[0] * k.int(lanes);
            result.store(kernel, column, |load| {
                let (mut gate, mut up) = (pair[0], pair[1]);
                if bias {
                    gate = gate + load(kernel.weight(1));
                    up = up + load(kernel.weight(1).at(k.int(columns)));
                }
                silu(k, gate) * up
            });
        }
        return;
    }
    for (panel, sum) in panels.iter().zip(sums) {
        let column = *panel * k.int(lanes);
        result.store(kernel, column, |load| {
            let mut value = *sum;
            if bias {
                value = value + load(kernel.weight(1));
            }
            if residual {
                value = load(kernel.input(1).at(row_start)) + value;
            }
            value
        });
    }
}

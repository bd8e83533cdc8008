//! `matmul`: activations times a weight in panels, with bias, residual and SiLU·multiply as epilogues.
//!
//! ```text
//! decode, one row:  a tile is 4 panels of columns, all inputs
//! prompt:           a tile is 2 panels of columns by 64 rows;
//!                   for 8 rows at a time (4 of integers; half of it with 8 lanes), then one by one: sums over all inputs, epilogue
//! ```
//!
//! The panels of a prompt tile (2 · 16 · k weights) stay in the second-level cache over its 64 rows.
//!
//! Where there is a matrix unit and a step has 16 rows or more, a tile is 256 rows by several pairs of
//! panels on that unit.

use qwen2c_request::{KernelRequest, Operation, WeightLayout};

use super::Kernel;
use super::expert_matmul::entries_side_by_side;
use super::functions::silu;
use super::matrix_order::is_in_matrix_order;
use super::matrix_product::{
    BLOCK_ROWS, BlockRows, MatrixProduct, column_pairs, has_matrix_product, row_bytes,
};
use super::panel_product::{PanelProduct, PanelStreams, ResultRow, geometry};
use crate::builder::{Buffer, Compare, Val};
use crate::cpu::instructions::Instructions;
use crate::cpu::layout::PanelGeometry;

/// Rows of a prompt tile.
const TILE_ROWS: i64 = 64;

/// Rows of a prompt tile on the matrix unit.
const MATRIX_TILE_ROWS: i64 = 256;

/// How the tiles of a product are described in reports.
pub(in crate::cpu) fn describe_tiles(
    instructions: Instructions,
    request: &KernelRequest,
    layouts: &[WeightLayout],
) -> String {
    let lanes = instructions.lanes;
    let geometry = geometry(layouts, &request.weights[0], lanes);
    let columns = u64::from(lanes) * tile_panels(request);
    if request.max_rows == 1 {
        return format!("1x{columns} rows x columns");
    }
    if has_matrix_product(instructions, request, geometry) {
        let is_dense = matches!(request.operation, Operation::Matmul { .. });
        let rows = if is_dense { MATRIX_TILE_ROWS as u64 } else { entries_side_by_side(request, geometry) };
        let pairs = column_pairs(request, geometry, rows);
        return format!("{rows}x{} rows x columns on the matrix unit", pairs.of_tile * 2 * u64::from(lanes));
    }
    let side_by_side = rows_side_by_side(instructions, request, geometry);
    format!("64x{columns} rows x columns, {side_by_side} rows side by side")
}

/// Panels of a tile: several streams of memory on decode, registers for several rows on a prompt.
pub(super) fn tile_panels(request: &KernelRequest) -> u64 {
    if request.max_rows == 1 { 4 } else { 2 }
}

/// Rows multiplied side by side: with 2 panels, 16 sums in 32 registers of 16 lanes, 8 in 16 of 8. Integers
/// need a total beside each sum, and sums in the matrix unit's order two chains, and so take half as many
/// rows.
pub(super) fn rows_side_by_side(
    instructions: Instructions,
    request: &KernelRequest,
    geometry: PanelGeometry,
) -> usize {
    let (x, sums) = (request.inputs[0].element, instructions.lanes as usize);
    let is_half = x.integer_group().is_some() || is_in_matrix_order(instructions, x, geometry);
    if is_half { sums / 4 } else { sums / 2 }
}

fn panel_streams(kernel: &Kernel<'_, '_>) -> PanelStreams {
    let geometry = geometry(kernel.layouts, kernel.weight_type(0), kernel.lanes);
    PanelStreams::new(geometry, tile_panels(kernel.request))
}

/// Blocks of columns times blocks of rows.
pub(super) fn tiles<'k>(kernel: &Kernel<'k, '_>) -> Val<'k> {
    let k = kernel.k;
    let tiles = kernel.rows.divide_up(TILE_ROWS) * k.int(panel_streams(kernel).tiles());
    let geometry = geometry(kernel.layouts, kernel.weight_type(0), kernel.lanes);
    if !has_matrix_product(kernel.instructions, kernel.request, geometry) {
        return tiles;
    }
    let columns = column_pairs(kernel.request, geometry, MATRIX_TILE_ROWS as u64).tiles();
    has_whole_block(kernel).select(kernel.rows.divide_up(MATRIX_TILE_ROWS) * k.int(columns), tiles)
}

/// Whether this step has rows enough for the matrix unit.
fn has_whole_block<'k>(kernel: &Kernel<'k, '_>) -> Val<'k> {
    kernel.rows.compare(Compare::Greater, kernel.k.int(BLOCK_ROWS - 1))
}

/// One block of columns for one block of rows; row blocks of the same columns follow each other.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, tile: Val<'k>) {
    let geometry = geometry(kernel.layouts, kernel.weight_type(0), kernel.lanes);
    if !has_matrix_product(kernel.instructions, kernel.request, geometry) {
        return multiply_tile(kernel, tile);
    }
    let product = MatrixProduct::new(kernel, geometry, MATRIX_TILE_ROWS as u64);
    kernel.k.when_else(
        has_whole_block(kernel),
        || multiply_on_matrix_unit(kernel, &product, tile),
        || multiply_tile(kernel, tile),
    );
}

/// A tile on the matrix unit.
fn multiply_on_matrix_unit<'k>(kernel: &Kernel<'k, '_>, product: &MatrixProduct<'k>, tile: Val<'k>) {
    let k = kernel.k;
    let block_rows = k.int(BLOCK_ROWS);
    let row_tiles = kernel.rows.divide_up(MATRIX_TILE_ROWS);
    let (column_tile, row_tile) = (tile / row_tiles, tile % row_tiles);
    let first_row = row_tile * k.int(MATRIX_TILE_ROWS);
    let last_row = (first_row + k.int(MATRIX_TILE_ROWS)).minimum(kernel.rows);
    let start_of = |block: Val<'k>| (first_row + block * block_rows).minimum(kernel.rows - block_rows);
    let stride_bytes = row_bytes(kernel.input_type(0).element, product.geometry.columns);
    let rows = BlockRows {
        blocks: (last_row - first_row).divide_up(BLOCK_ROWS as i64),
        first: |block: Val<'k>| kernel.input(0).at_bytes(start_of(block) * k.int(stride_bytes)),
        stride_bytes,
    };
    product.multiply(kernel, k.int(0), column_tile, &rows, |pair, sums_of| {
        product.pairs.for_each_result(pair, |half, panels| {
            k.repeat(k.int(0), rows.blocks, 1, |block| {
                let sums: Vec<Buffer<'k>> =
                    (0_i64..).zip(panels).map(|(index, _)| sums_of(half + k.int(index), block)).collect();
                let first = first_row + block * block_rows;
                k.repeat(first, (first + block_rows).minimum(last_row), 1, |row| {
                    let place = (row - start_of(block)) * k.int(kernel.lanes);
                    let sums: Vec<Val<'k>> = sums.iter().map(|sums| sums.load(place, kernel.lanes)).collect();
                    finish_row(kernel, row, panels, &sums);
                });
            });
        });
    });
}

/// A tile on the vector unit.
fn multiply_tile<'k>(kernel: &Kernel<'k, '_>, tile: Val<'k>) {
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
        let side_by_side = rows_side_by_side(kernel.instructions, kernel.request, product.geometry);
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
    let Operation::Matmul { bias, residual, silu_multiply, .. } = kernel.request.operation else { return };
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

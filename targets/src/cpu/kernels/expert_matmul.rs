//! `expert_matmul`: each (row, choice) entry times the weight of its expert.
//!
//! ```text
//! by entry:  a tile is 4 panels of columns of one entry
//! grouped:   a tile is 4 (or 2) panels of columns of one active expert;
//!            for 8 (or 4) of its entries at a time, then one by one: sums over all inputs, epilogue
//! ```
//!
//! Where there is a matrix unit, a grouped tile is several pairs of panels of one active expert on that
//! unit, for as many of its entries at a time as a copy of their rows in the second-level cache can hold:
//! the unit wants rows that lie evenly apart. An expert with few entries goes the other way.
//!
//! The number of grouped tiles depends on the routing and is read from the table that `group_rows` wrote:
//! an idle expert costs nothing and its weights are not touched.

use qwen2c_request::{Element, KernelRequest, Operation};

use super::Kernel;
use super::functions::silu;
use super::matmul::{rows_side_by_side, tile_panels};
use super::matrix_product::{
    BLOCK_ROWS, BlockRows, LINE_BYTES, MatrixProduct, column_pairs, has_matrix_product, row_bytes,
};
use crate::operands::GroupTable;

use super::panel_product::{PanelProduct, PanelStreams, ResultRow, geometry};
use crate::builder::{Buffer, Compare, Val};
use crate::cpu::layout::PanelGeometry;

/// Most entries of an expert that the matrix unit multiplies together.
const MOST_ENTRIES: u64 = 128;

/// Bytes of their rows: with sums and weights they stay in the second-level cache.
const GATHERED_BYTES: u64 = 512 << 10;

/// With fewer entries the vector unit is done before a block of 16 rows is.
const FEWEST_ENTRIES: i64 = 6;

/// Entries of an expert that the matrix unit multiplies together.
pub(super) fn entries_side_by_side(request: &KernelRequest, geometry: PanelGeometry) -> u64 {
    let entries = GATHERED_BYTES / row_bytes(request.inputs[0].element, geometry.columns);
    (entries / BLOCK_ROWS * BLOCK_ROWS).clamp(BLOCK_ROWS, MOST_ENTRIES)
}

fn panel_streams(kernel: &Kernel<'_, '_>) -> PanelStreams {
    let geometry = geometry(kernel.layouts, kernel.weight_type(0), kernel.lanes);
    PanelStreams::new(geometry, tile_panels(kernel.request))
}

fn is_grouped(kernel: &Kernel<'_, '_>) -> bool {
    matches!(kernel.request.operation, Operation::ExpertMatmul { grouped: true, .. })
}

fn choices(kernel: &Kernel<'_, '_>) -> u64 {
    kernel.input_type(1).row_elements()
}

fn table<'k>(kernel: &Kernel<'k, '_>) -> GroupTable<'k> {
    let experts = geometry(kernel.layouts, kernel.weight_type(0), kernel.lanes).matrices;
    kernel.group_table(kernel.input(2), experts)
}

/// Blocks of columns times entries, or times active experts.
pub(super) fn tiles<'k>(kernel: &Kernel<'k, '_>) -> Val<'k> {
    let k = kernel.k;
    let parts = if is_grouped(kernel) {
        table(kernel).active_count.load_index(k.int(0))
    } else {
        kernel.rows * k.int(choices(kernel))
    };
    parts * k.int(column_tiles(kernel))
}

fn panel_geometry(kernel: &Kernel<'_, '_>) -> PanelGeometry {
    geometry(kernel.layouts, kernel.weight_type(0), kernel.lanes)
}

fn uses_matrix_unit(kernel: &Kernel<'_, '_>) -> bool {
    is_grouped(kernel) && has_matrix_product(kernel.instructions, kernel.request, panel_geometry(kernel))
}

/// Blocks of columns of one expert.
fn column_tiles(kernel: &Kernel<'_, '_>) -> u64 {
    if !uses_matrix_unit(kernel) {
        return panel_streams(kernel).tiles();
    }
    let geometry = panel_geometry(kernel);
    column_pairs(kernel.request, geometry, entries_side_by_side(kernel.request, geometry)).tiles()
}

/// Entries of one expert: places in the table's list.
#[derive(Clone, Copy)]
struct Entries<'k> {
    expert: Val<'k>,
    first: Val<'k>,
    last: Val<'k>,
}

/// One block of columns for one entry or one active expert.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, tile: Val<'k>) {
    let k = kernel.k;
    let count = k.int(column_tiles(kernel));
    let (part, block) = (tile / count, tile % count);
    if !is_grouped(kernel) {
        let expert = kernel.input(1).load_index(part);
        let streams = panel_streams(kernel);
        streams.with_tile(kernel, block, |panels| multiply_entries(kernel, expert, &[part], panels));
        return;
    }
    let table = table(kernel);
    let expert = table.active.load_index(part);
    let (first, last) = (table.offsets.load_index(expert), table.offsets.load_index(expert + k.int(1)));
    let entries = Entries { expert, first, last };
    if !uses_matrix_unit(kernel) {
        panel_streams(kernel).with_tile(kernel, block, |panels| multiply_group(kernel, entries, panels));
        return;
    }
    let most = entries_side_by_side(kernel.request, panel_geometry(kernel));
    let product = MatrixProduct::new(kernel, panel_geometry(kernel), most);
    let gathered = GatheredRows::new(kernel, most);
    k.when_else(
        (last - first).compare(Compare::Less, k.int(FEWEST_ENTRIES)),
        || {
            let (first, last) = product.pairs.range(block);
            k.repeat(first, last, 1, |pair| {
                product.pairs.for_each_result(pair, |_, panels| multiply_group(kernel, entries, panels));
            });
        },
        || {
            k.repeat(first, last, most as i64, |place| {
                let last = (place + k.int(most)).minimum(last);
                let entries = Entries { expert, first: place, last };
                multiply_on_matrix_unit(kernel, &product, &gathered, block, entries);
            });
        },
    );
}

/// Entries of one expert on the vector unit.
fn multiply_group<'k>(
    kernel: &Kernel<'k, '_>,
    Entries { expert, first, last }: Entries<'k>,
    panels: &[Val<'k>],
) {
    let (k, table) = (kernel.k, table(kernel));
    let entries = |place: Val<'k>, count: usize| -> Vec<Val<'k>> {
        (0..count).map(|index| table.entries.load_index(place + k.int(index as i64))).collect()
    };
    let side_by_side = match kernel.request.max_rows {
        1 => 1,
        _ => rows_side_by_side(kernel.instructions, kernel.request, panel_geometry(kernel)),
    };
    let whole = first + k.whole_chunks(last - first, side_by_side as u32);
    k.repeat(first, whole, side_by_side as i64, |place| {
        multiply_entries(kernel, expert, &entries(place, side_by_side), panels);
    });
    k.repeat(whole, last, 1, |place| multiply_entries(kernel, expert, &entries(place, 1), panels));
}

/// Copies of rows, one behind the other.
struct GatheredRows<'k> {
    copies: Buffer<'k>,
    row_bytes: u64,
    /// Bytes from one copy to the next: whole cache lines.
    stride_bytes: u64,
}

impl<'k> GatheredRows<'k> {
    /// Room for `entries`, on the stack.
    fn new(kernel: &Kernel<'k, '_>, entries: u64) -> Self {
        let row_bytes = row_bytes(kernel.input_type(0).element, panel_geometry(kernel).columns);
        let stride_bytes = row_bytes.next_multiple_of(LINE_BYTES);
        let copies = kernel.k.stack_array(Element::I32, stride_bytes / 4 * entries);
        Self { copies, row_bytes, stride_bytes }
    }

    fn at(&self, index: Val<'k>) -> Buffer<'k> {
        self.copies.at_bytes(index * index.builder().int(self.stride_bytes))
    }

    /// Copies the rows of some entries, the last one again until blocks are whole.
    fn fill(&self, kernel: &Kernel<'k, '_>, entries: Entries<'k>, blocks: Val<'k>) {
        let k = kernel.k;
        let table = table(kernel);
        k.repeat(k.int(0), blocks * k.int(BLOCK_ROWS), 1, |index| {
            let place = (entries.first + index).minimum(entries.last - k.int(1));
            let row = row_of(kernel, table.entries.load_index(place));
            let source = kernel.input(0).at_bytes(row * k.int(self.row_bytes)).seen_as(Element::I32);
            k.for_each_chunk(k.int(self.row_bytes / 4), kernel.lanes, |offset, lanes| {
                self.at(index).store(offset, source.load(offset, lanes));
            });
        });
    }
}

/// Entries of one expert on the matrix unit.
fn multiply_on_matrix_unit<'k>(
    kernel: &Kernel<'k, '_>,
    product: &MatrixProduct<'k>,
    gathered: &GatheredRows<'k>,
    column_tile: Val<'k>,
    entries: Entries<'k>,
) {
    let (k, block_rows) = (kernel.k, kernel.k.int(BLOCK_ROWS));
    let blocks = (entries.last - entries.first).divide_up(BLOCK_ROWS as i64);
    gathered.fill(kernel, entries, blocks);
    let rows = BlockRows {
        blocks,
        first: |block: Val<'k>| gathered.at(block * block_rows),
        stride_bytes: gathered.stride_bytes,
    };
    let matrix = entries.expert * k.int(product.geometry.matrix_bytes());
    let table = table(kernel);
    product.multiply(kernel, matrix, column_tile, &rows, |pair, sums_of| {
        product.pairs.for_each_result(pair, |half, panels| {
            k.repeat(k.int(0), blocks, 1, |block| {
                let first = entries.first + block * block_rows;
                let sums = (0_i64..).zip(panels).map(|(index, _)| sums_of(half + k.int(index), block));
                let sums: Vec<Buffer<'k>> = sums.collect();
                k.repeat(first, (first + block_rows).minimum(entries.last), 1, |place| {
                    let at = (place - first) * k.int(kernel.lanes);
                    let sums: Vec<Val<'k>> = sums.iter().map(|sums| sums.load(at, kernel.lanes)).collect();
                    finish_entry(kernel, table.entries.load_index(place), panels, &sums);
                });
            });
        });
    });
}

/// The row of activations of an entry: there is one for each (behind the first product) or one for all
/// choices of a row.
fn row_of<'k>(kernel: &Kernel<'k, '_>, entry: Val<'k>) -> Val<'k> {
    let is_by_entry = kernel.input_type(0).dimensions.len() == 3;
    if is_by_entry { entry } else { entry / kernel.k.int(choices(kernel)) }
}

/// Sums and epilogue of some entries of one expert.
fn multiply_entries<'k>(kernel: &Kernel<'k, '_>, expert: Val<'k>, entries: &[Val<'k>], panels: &[Val<'k>]) {
    let k = kernel.k;
    let matrix_bytes = panel_geometry(kernel).matrix_bytes();
    let product = PanelProduct::new(kernel, expert * k.int(matrix_bytes));
    let rows: Vec<Val<'k>> = entries.iter().map(|entry| row_of(kernel, *entry)).collect();
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

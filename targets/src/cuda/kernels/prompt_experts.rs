//! `expert_matmul` for many rows, on the matrix unit.
//!
//! ```text
//! a block takes 128 output rows of one active expert       `tile_product`
//!   for 32 or 64 of the expert's entries: results as of any product
//! ```
//!
//! Rows of activations are where the list of entries says, so that a thread has an address for each of its
//! copies.

use qwen2c_request::KernelRequest;

use super::expert_matmul::choices;
use super::tile_cut::{Cut, THREADS};
use super::tile_product::{Inputs, TileProduct};
use super::{Kernel, Shape};
use crate::builder::{Compare, Val};
use crate::operands::GroupTable;

/// Blocks for every expert, most of which may be idle.
pub(super) fn shape(request: &KernelRequest, cut: Cut) -> Shape {
    Shape {
        blocks: cut.geometry.matrices * cut.column_blocks(),
        rows_per_block: request.max_rows.max(1),
        threads: THREADS,
        shared_bytes: cut.shared_bytes(),
        blocks_at_once: Some(2),
    }
}

/// Some columns of all entries of one active expert.
pub(super) fn body(kernel: &Kernel<'_, '_>, cut: Cut) {
    let k = kernel.k;
    let column_blocks = k.int(cut.column_blocks());
    let block = kernel.block();
    let (part, column_block) = (block / column_blocks, block % column_blocks);
    let table = kernel.group_table(kernel.input(2), cut.geometry.matrices);
    k.when(part.compare(Compare::Less, table.active_count.load_index(k.int(0))), || {
        let expert = table.active.load_index(part);
        let (first, last) = (table.offsets.load_index(expert), table.offsets.load_index(expert + k.int(1)));
        k.repeat(first, last, cut.rows() as i64, |place| {
            multiply(kernel, cut, (expert, column_block), &table, (place, last));
        });
    });
}

/// Products of the entries from `first` on, as many as a block takes, up to `last`.
fn multiply<'k>(
    kernel: &Kernel<'k, '_>,
    cut: Cut,
    (expert, column_block): (Val<'k>, Val<'k>),
    table: &GroupTable<'k>,
    (first, last): (Val<'k>, Val<'k>),
) {
    let k = kernel.k;
    let choices = k.int(choices(kernel.request));
    // `x` has a row for each entry (behind the first product) or one for all choices of a row.
    let is_by_entry = kernel.input_type(0).dimensions.len() == 3;
    let product = TileProduct::new(kernel, cut, column_block);
    let matrix = kernel.weight(0).at_bytes(expert * k.int(cut.geometry.matrix_bytes()));
    // Other threads may still read what the entries before left in shared memory.
    k.barrier();
    // Entries that do not exist are the last one again, and are not stored.
    let last_entry = last - k.int(1);
    let input = |row: Val<'k>| {
        let entry = table.entries.load_index((first + row).minimum(last_entry));
        let row = if is_by_entry { entry } else { entry / choices };
        kernel.input(0).at(row * k.int(cut.geometry.columns))
    };
    let sums = product.sums(matrix, Inputs::Listed(&input));
    let columns = product.columns();
    product.for_each_row(&sums, |row, result| {
        let place = first + row;
        k.when(place.compare(Compare::Less, last), || {
            let out = kernel.output(0).at(table.entries.load_index(place) * k.int(cut.columns()));
            product.for_each_column(&columns, |number| out.store(columns[number], result(number)));
        });
    });
}

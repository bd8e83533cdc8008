//! `matmul` for many rows, on the matrix unit.
//!
//! ```text
//! a block takes 128 output rows and 32 to 128 rows of activations       `tile_product`
//!   blocks that share weights stand side by side: the second finds them in the cache
//! each thread finishes its results: + bias, + residual, or silu(gate) · up
//! ```

use qwen2c_request::Operation;

use super::tile_cut::{Cut, THREADS};
use super::tile_product::{Inputs, TileProduct};
use super::{Kernel, Shape};
use crate::builder::{Compare, Scalar, Val};

/// Blocks for all columns of some rows.
pub(super) fn shape(cut: Cut) -> Shape {
    Shape {
        blocks: cut.column_blocks(),
        rows_per_block: cut.rows(),
        threads: THREADS,
        shared_bytes: cut.shared_bytes(),
        blocks_at_once: Some(2),
    }
}

/// Some columns of some rows.
pub(super) fn body(kernel: &Kernel<'_, '_>, cut: Cut) {
    let k = kernel.k;
    // Blocks run in the order of their numbers, the rows' last: those of all rows for some columns come first.
    let number = (kernel.row() * k.int(cut.column_blocks()) + kernel.block()).truncate(Scalar::I32);
    let row_blocks = kernel.rows.divide_up(cut.rows() as i64).truncate(Scalar::I32);
    let column_block = (number / row_blocks).extend(Scalar::I64);
    let first_row = (number % row_blocks).extend(Scalar::I64) * k.int(cut.rows());
    multiply(kernel, cut, column_block, first_row);
}

fn multiply<'k>(kernel: &Kernel<'k, '_>, cut: Cut, column_block: Val<'k>, first_row: Val<'k>) {
    let k = kernel.k;
    let Operation::Matmul { bias, residual, .. } = kernel.request.operation else {
        unreachable!("a product is built for a product");
    };
    let product = TileProduct::new(kernel, cut, column_block);
    let inputs = Inputs::Consecutive {
        first: kernel.input(0).at(first_row * k.int(cut.geometry.columns)),
        count: kernel.rows - first_row,
    };
    let sums = product.sums(kernel.weight(0), inputs);
    let columns = product.columns();
    let last_column = k.int(cut.columns() - 1);
    let load_bias = |column: &Val<'k>| kernel.weight(1).load(column.minimum(last_column), 1);
    let biases: Vec<Val<'k>> = if bias { columns.iter().map(load_bias).collect() } else { Vec::new() };
    product.for_each_row(&sums, |row, result| {
        let row = first_row + row;
        k.when(row.compare(Compare::Less, kernel.rows), || {
            product.for_each_column(&columns, |number| {
                let place = row * k.int(cut.columns()) + columns[number];
                let mut value = result(number);
                if bias {
                    value = value + biases[number];
                }
                if residual {
                    value = value + kernel.input(1).load(place, 1);
                }
                kernel.output(0).store(place, value);
            });
        });
    });
}

//! `embed`: copies one row of the embedding. A tied embedding lies in panels for the output head, so
//! that its row is a column of `lanes` and is gathered pair by pair.
//!
//! ```text
//! for column in 0..hidden: out[row, column] = weight[token[row], column]
//! ```

use qwen2c_request::WeightLayout;

use super::Kernel;
use crate::builder::Val;
use crate::cpu::layout::PanelGeometry;

/// One row.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, row: Val<'k>) {
    let k = kernel.k;
    let hidden = kernel.weight_type(0).columns();
    let token = kernel.input(0).load_index(row);
    let out = kernel.output(0).at(row * k.int(hidden));
    let weight = kernel.weight(0);
    match kernel.layouts[0] {
        WeightLayout::RowMajor => {
            let source = weight.at(token * k.int(hidden));
            k.for_each_chunk(k.int(hidden), kernel.lanes, |offset, lanes| {
                out.store(offset, source.load(offset, lanes))
            });
        }
        WeightLayout::Panels { lanes, pair, alternate_halves } => {
            let geometry = PanelGeometry::new(kernel.weight_type(0), lanes, pair, alternate_halves);
            let (lanes, pair) = (k.int(lanes), k.int(pair));
            let panel = weight.at(token / lanes * k.int(geometry.panel_elements()) + token % lanes * pair);
            k.repeat(k.int(0), k.int(hidden), 1, |column| {
                let place = column / pair * lanes * pair + column % pair;
                out.store(column, panel.load(place, 1));
            });
        }
    }
}

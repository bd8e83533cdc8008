//! `embed`: copies one row of the embedding. A tied embedding lies in panels for the output head, so
//! that its row is a column of `lanes` and is gathered pair by pair.
//!
//! ```text
//! for column in 0..hidden: out[row, column] = weight[token[row], column]
//! ```

use qwen2c_request::{Quantization, WeightLayout};

use super::Kernel;
use super::panel_product::widened;
use crate::builder::{Buffer, Scalar, Val};
use crate::cpu::layout::{ChunkGeometry, PanelGeometry};

/// One row.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, row: Val<'k>) {
    let k = kernel.k;
    let hidden = kernel.weight_type(0).columns();
    let token = kernel.input(0).load_index(row);
    let out = kernel.output(0).at(row * k.int(hidden));
    let weight = kernel.weight(0);
    match kernel.layouts[0] {
        WeightLayout::RowMajor | WeightLayout::WarpPanels { .. } => {
            let source = weight.at(token * k.int(hidden));
            k.for_each_chunk(k.int(hidden), kernel.lanes, |offset, lanes| {
                out.store(offset, source.load(offset, lanes))
            });
        }
        WeightLayout::Panels { lanes, pair, separate_halves } => {
            let geometry = PanelGeometry::new(kernel.weight_type(0), lanes, pair, separate_halves);
            let lanes = k.int(lanes);
            let panel = weight.at_bytes(token / lanes * k.int(geometry.panel_bytes()));
            match geometry.quantization {
                Some(quantization) => {
                    gather_integers(kernel, panel, token % lanes, (geometry, quantization), out)
                }
                None => {
                    let pair = k.int(pair);
                    let lane = panel.at(token % lanes * pair);
                    k.repeat(k.int(0), k.int(hidden), 1, |column| {
                        let place = column / pair * lanes * pair + column % pair;
                        out.store(column, lane.load(place, 1));
                    });
                }
            }
        }
    }
}

/// One lane of a panel of integers with scales.
fn gather_integers<'k>(
    kernel: &Kernel<'k, '_>,
    panel: Buffer<'k>,
    lane: Val<'k>,
    (geometry, quantization): (PanelGeometry, Quantization),
    out: Buffer<'k>,
) {
    let (k, columns) = (kernel.k, geometry.columns);
    let chunks = ChunkGeometry { lanes: geometry.lanes, quantization };
    let per_dword = quantization.per_dword();
    let gather_chunk = |chunk: Val<'k>, inputs: u64| {
        let start = panel.at_bytes(chunk * k.int(chunks.bytes(chunks.inputs())));
        for (index, place) in (0_u64..).zip(chunks.groups(inputs)) {
            let first = chunk * k.int(chunks.inputs()) + k.int(index * u64::from(quantization.group));
            let (out, dwords) = (out.at(first), start.at_bytes(k.int(place.dwords_at_bytes)));
            let scaling = |bytes: u64| start.at_bytes(k.int(bytes)).seen_as(quantization.scale).load(lane, 1);
            let (scale, minimum) = (scaling(place.scales_at_bytes), place.minima_at_bytes.map(scaling));
            let gather = |dword: Val<'k>, inputs: u32| {
                let packed = dwords.load_as(Scalar::I32, dword * k.int(geometry.lanes) + lane, 1);
                for input in 0..inputs {
                    let column = dword * k.int(per_dword) + k.int(input);
                    let integer = widened(packed, &quantization, input);
                    let weight = match minimum {
                        Some(minimum) => integer.multiply_add(scale, minimum),
                        None => integer * scale,
                    };
                    out.store(column, weight);
                }
            };
            let whole = k.int(place.inputs / per_dword);
            k.repeat(k.int(0), whole, 1, |dword| gather(dword, per_dword));
            if place.inputs % per_dword > 0 {
                gather(whole, place.inputs % per_dword);
            }
        }
    };
    let whole = k.int(columns / chunks.inputs());
    k.repeat(k.int(0), whole, 1, |chunk| gather_chunk(chunk, chunks.inputs()));
    if columns % chunks.inputs() > 0 {
        gather_chunk(whole, columns % chunks.inputs());
    }
}

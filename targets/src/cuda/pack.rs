//! Brings weights into warp panels, row block by row block.

use std::ops::Range;

use qwen2c_request::{QuantizationError, QuantizedBlock, QuantizedRows};

use super::layout::{BLOCK_UNITS, UNIT_BYTES, WarpGeometry, first_bit};
use crate::pack::{ReadWeight, WriteBytes, convert};

/// Packs some panels of a weight; tells what quantization lost.
pub(crate) fn pack<R: ReadWeight>(
    geometry: WarpGeometry,
    panels: Range<u64>,
    read: &mut R,
    write: &mut WriteBytes<'_, R::Error>,
) -> Result<QuantizationError, R::Error> {
    let mut error = QuantizationError::default();
    let mut bytes = vec![0; geometry.panel_bytes() as usize];
    let columns = geometry.columns as usize;
    let Some(quantization) = geometry.quantization else {
        let mut values = vec![0.0; geometry.panel_rows as usize * columns];
        for (first, present) in geometry.rows_of_panels(panels) {
            let values = &mut values[..present as usize * columns];
            read.rows(first, values)?;
            for (row, values) in values.chunks_exact(columns).enumerate() {
                let row_bytes = geometry.units() * UNIT_BYTES;
                convert(geometry.element, values, &mut bytes[row * row_bytes as usize..]);
            }
            write(&bytes)?;
        }
        return Ok(error);
    };
    let mut block = QuantizedBlock::new(quantization, geometry.panel_rows as usize, columns);
    for (first, present) in geometry.rows_of_panels(panels) {
        let mut rows = block.rows(0..present as usize);
        error += read.groups(first, &mut rows)?;
        if present < geometry.panel_rows {
            // The panel before left its numbers where no row will write.
            bytes.fill(0);
        }
        fill_panel(geometry, &rows, &mut bytes);
        write(&bytes)?;
    }
    Ok(error)
}

/// Puts quantized rows into the blocks of a panel.
fn fill_panel(geometry: WarpGeometry, rows: &QuantizedRows<'_>, bytes: &mut [u8]) {
    let quantization = geometry.quantization.expect("quantized rows belong to a quantized weight");
    let (columns, unit_inputs) = (geometry.columns as usize, geometry.unit_inputs() as usize);
    let group = quantization.group as usize;
    let groups = columns.div_ceil(group);
    let scale_bytes = quantization.scale.bytes() as usize;
    // What a row lacks is zero with its bias.
    let mut integers = vec![-quantization.bias() as i8; unit_inputs];
    let mut first_unit = 0;
    let mut left = bytes;
    while first_unit < geometry.units() {
        let units = BLOCK_UNITS.min(geometry.units() - first_unit);
        let (block, rest) = left.split_at_mut(geometry.block_bytes(units) as usize);
        left = rest;
        let first_group = (first_unit * geometry.unit_inputs()) as usize / group;
        for (row, of_row) in rows.integers.chunks_exact(columns).enumerate() {
            for unit in 0..units as usize {
                let first = (first_unit as usize + unit) * unit_inputs;
                let present = unit_inputs.min(columns - first);
                integers[..present].copy_from_slice(&of_row[first..][..present]);
                integers[present..].fill(-quantization.bias() as i8);
                let place = (row * units as usize + unit) * UNIT_BYTES as usize;
                pack_unit(quantization.bits, quantization.bias(), &integers, &mut block[place..]);
            }
            let block_groups = (geometry.groups(units) as usize).min(groups - first_group);
            for index in 0..block_groups {
                let place = index * geometry.scaling_bytes() as usize + row * scale_bytes;
                let mut put = |at_bytes: u64, scaling: f32| {
                    let out = &mut block[at_bytes as usize + place..][..scale_bytes];
                    convert(quantization.scale, &[scaling], out);
                };
                put(geometry.scales_at_bytes(units), rows.scales[row * groups + first_group + index]);
                if let Some(at_bytes) = geometry.minima_at_bytes(units) {
                    put(at_bytes, rows.minima[row * groups + first_group + index]);
                }
            }
        }
        first_unit += units;
    }
}

/// Puts the biased integers of a unit into its four dwords.
fn pack_unit(bits: u32, bias: i32, integers: &[i8], out: &mut [u8]) {
    let per_dword = (32 / bits) as usize;
    for (out, integers) in out.as_chunks_mut::<4>().0.iter_mut().zip(integers.chunks_exact(per_dword)) {
        let dword = integers.iter().zip(0..).fold(0_u32, |dword, (integer, input)| {
            let biased = (i32::from(*integer) + bias).cast_unsigned() & ((1 << bits) - 1);
            dword | biased << first_bit(bits, input)
        });
        *out = dword.to_le_bytes();
    }
}

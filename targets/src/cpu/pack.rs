//! Brings weights into their layout: converts rows, or packs their integers, and streams the bytes in order.
//!
//! Packing has to keep pace with a disk, so no loop here decides anything for a single element: runs of
//! a row are converted by loops that compilers turn into vector code, and what goes to one panel is
//! written in blocks of columns that stay in the first cache while all rows add to them.

use std::ops::Range;

use qwen2c_request::{Element, Quantization, QuantizationError, QuantizedBlock, QuantizedRows};

use super::layout::{ChunkGeometry, PanelGeometry};
use crate::pack::{ReadWeight, WriteBytes, convert};

/// Packs some panels of a weight; tells what quantization lost.
pub(crate) fn pack<R: ReadWeight>(
    geometry: PanelGeometry,
    element: Element,
    panels: Range<u64>,
    read: &mut R,
    write: &mut WriteBytes<'_, R::Error>,
) -> Result<QuantizationError, R::Error> {
    match geometry.quantization {
        Some(quantization) => pack_quantized_panels(geometry, quantization, panels, read, write),
        None => {
            pack_panels(geometry, element, panels, read, write)?;
            Ok(QuantizationError::default())
        }
    }
}

fn pack_panels<R: ReadWeight>(
    geometry: PanelGeometry,
    element: Element,
    panels: Range<u64>,
    read: &mut R,
    write: &mut WriteBytes<'_, R::Error>,
) -> Result<(), R::Error> {
    let columns = geometry.columns as usize;
    let mut values = vec![0.0; geometry.lanes as usize * columns];
    let mut bytes = vec![0; geometry.panel_bytes() as usize];
    for (first, present) in geometry.rows_of_panels(panels) {
        let values = &mut values[..present as usize * columns];
        read.rows(first, values)?;
        if present < geometry.lanes {
            // The panel before left its numbers where no row will write.
            bytes.fill(0);
        }
        fill_panel(geometry, element, values, &mut bytes);
        write(&bytes)?;
    }
    Ok(())
}

fn pack_quantized_panels<R: ReadWeight>(
    geometry: PanelGeometry,
    quantization: Quantization,
    panels: Range<u64>,
    read: &mut R,
    write: &mut WriteBytes<'_, R::Error>,
) -> Result<QuantizationError, R::Error> {
    let mut error = QuantizationError::default();
    let mut block = QuantizedBlock::new(quantization, geometry.lanes as usize, geometry.columns as usize);
    let mut bytes = vec![0; geometry.panel_bytes() as usize];
    for (first, present) in geometry.rows_of_panels(panels) {
        let mut rows = block.rows(0..present as usize);
        error += read.groups(first, &mut rows)?;
        if present < geometry.lanes {
            bytes.fill(0);
        }
        fill_quantized_panel(geometry, quantization, &rows, &mut bytes);
        write(&bytes)?;
    }
    Ok(error)
}

/// Columns of an unquantized panel that are converted at a time, a multiple of every `pair`.
const BLOCK_COLUMNS: usize = 64;

/// Puts the rows of a panel, `[present, columns]`, into `[columns / pair, lanes, pair]`.
fn fill_panel(geometry: PanelGeometry, element: Element, values: &[f32], bytes: &mut [u8]) {
    let (columns, lanes) = (geometry.columns as usize, geometry.lanes as usize);
    let pair_bytes = geometry.pair as usize * element.bytes() as usize;
    let mut converted = [0; BLOCK_COLUMNS * 4];
    for first in (0..columns).step_by(BLOCK_COLUMNS) {
        let block = first..columns.min(first + BLOCK_COLUMNS);
        let pairs = block.len().div_ceil(geometry.pair as usize);
        let out = &mut bytes[first / geometry.pair as usize * lanes * pair_bytes..];
        for (lane, row) in values.chunks_exact(columns).enumerate() {
            // The last pair may lack inputs, which are zero.
            converted[(pairs - 1) * pair_bytes..].fill(0);
            convert(element, &row[block.clone()], &mut converted);
            let converted = &converted[..pairs * pair_bytes];
            match pair_bytes {
                2 => scatter::<2>(converted, lanes, lane, out),
                4 => scatter::<4>(converted, lanes, lane, out),
                _ => {
                    for (index, pair) in converted.chunks_exact(pair_bytes).enumerate() {
                        out[(index * lanes + lane) * pair_bytes..][..pair_bytes].copy_from_slice(pair);
                    }
                }
            }
        }
    }
}

/// Writes the units of one lane, each `BYTES` long, into `[units, lanes]`.
fn scatter<const BYTES: usize>(units: &[u8], lanes: usize, lane: usize, out: &mut [u8]) {
    let units = units.as_chunks::<BYTES>().0;
    for (out, unit) in out.as_chunks_mut::<BYTES>().0[lane..].iter_mut().step_by(lanes).zip(units) {
        *out = *unit;
    }
}

/// Groups of a row that are packed at a time.
const BLOCK_GROUPS: usize = 16;

/// Puts the rows of a panel into chunks, as [`ChunkGeometry`] says.
fn fill_quantized_panel(
    geometry: PanelGeometry,
    quantization: Quantization,
    rows: &QuantizedRows<'_>,
    bytes: &mut [u8],
) {
    let (columns, lanes) = (geometry.columns as usize, geometry.lanes as usize);
    let group = quantization.group as usize;
    let groups = columns.div_ceil(group);
    let block_columns = BLOCK_GROUPS * group;
    let per_dword = quantization.per_dword() as usize;
    let chunks = ChunkGeometry { lanes: geometry.lanes, quantization };
    let chunk_inputs = chunks.inputs() as usize;
    let whole_bytes = chunks.bytes(chunk_inputs as u64) as usize;
    // The last group may end within a dword; what is absent is zero with its bias.
    let mut integers = vec![-quantization.bias() as i8; block_columns];
    let mut packed = vec![0; block_columns / per_dword * 4];
    for first in (0..columns).step_by(block_columns) {
        let present = block_columns.min(columns - first);
        let out = &mut bytes[chunks.bytes(first as u64) as usize..];
        integers[present..].fill(-quantization.bias() as i8);
        let dwords = &mut packed[..present.div_ceil(per_dword) * 4];
        for (lane, row) in rows.integers.chunks_exact(columns).enumerate() {
            integers[..present].copy_from_slice(&row[first..][..present]);
            pack_integers(quantization, &integers, dwords);
            let of_chunks = dwords.chunks(chunk_inputs / per_dword * 4).zip(out.chunks_mut(whole_bytes));
            for (index, (dwords, out)) in of_chunks.enumerate() {
                let first = first + index * chunk_inputs;
                let inputs = chunk_inputs.min(columns - first) as u64;
                scatter::<4>(dwords, lanes, lane, &mut out[chunks.scalings_bytes(inputs) as usize..]);
                for (place, group) in chunks.groups(inputs).zip(lane * groups + first / group..) {
                    let scale_bytes = quantization.scale.bytes() as usize;
                    let mut put = |at_bytes: u64, scaling: f32| {
                        let out = &mut out[at_bytes as usize + lane * scale_bytes..][..scale_bytes];
                        convert(quantization.scale, &[scaling], out);
                    };
                    put(place.scales_at_bytes, rows.scales[group]);
                    if let Some(at_bytes) = place.minima_at_bytes {
                        put(at_bytes, rows.minima[group]);
                    }
                }
            }
        }
    }
}

/// Biased integers as bytes, or as halves of bytes that lie four apart.
fn pack_integers(quantization: Quantization, integers: &[i8], out: &mut [u8]) {
    let biased = |integer: i8| integer.cast_unsigned().wrapping_add(quantization.bias() as u8);
    if quantization.bits == 8 {
        for (out, integer) in out.iter_mut().zip(integers) {
            *out = biased(*integer);
        }
    } else {
        for (out, integers) in out.as_chunks_mut::<4>().0.iter_mut().zip(integers.as_chunks::<8>().0) {
            for index in 0..4 {
                out[index] = biased(integers[index]) | (biased(integers[index + 4]) << 4);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::weight_bytes;
    use crate::tests::weights::{FORMATS, dequantized, pack};
    use proptest::prelude::*;
    use qwen2c_request::{Dimension, WeightLayout, WeightType, bf16_to_f32, f16_to_f32, f32_to_bf16};

    fn weight(extents: &[u64], element: Element) -> WeightType {
        WeightType {
            dimensions: extents.iter().map(|extent| Dimension::constant("n", *extent)).collect(),
            element,
            quantization: None,
        }
    }

    fn get_element(element: Element, bytes: &[u8]) -> f32 {
        match element {
            Element::F32 => f32::from_le_bytes(bytes.try_into().unwrap()),
            Element::Bf16 => bf16_to_f32(u16::from_le_bytes(bytes.try_into().unwrap())),
            Element::F16 => f16_to_f32(u16::from_le_bytes(bytes.try_into().unwrap())),
            Element::I32 => i32::from_le_bytes(bytes.try_into().unwrap()) as f32,
            Element::I8 { .. } | Element::I16 { .. } => unreachable!("weights are not activations"),
        }
    }

    /// The inverse of packing, written from the layout's definition: element `(row, column)`.
    fn unpack_element(ty: &WeightType, layout: WeightLayout, bytes: &[u8], row: u64, column: u64) -> f32 {
        let index = match layout {
            WeightLayout::WarpPanels { .. } => unreachable!("a layout of devices"),
            WeightLayout::RowMajor => row * ty.columns() + column,
            WeightLayout::Panels { lanes, pair, separate_halves } => {
                let geometry = PanelGeometry::new(ty, lanes, pair, separate_halves);
                let (matrix, row) = (row / geometry.rows, row % geometry.rows);
                let (panel, lane) = if separate_halves {
                    let half = geometry.rows / 2;
                    let half_panels = half.div_ceil(geometry.lanes);
                    (row / half * half_panels + row % half / geometry.lanes, row % half % geometry.lanes)
                } else {
                    (row / geometry.lanes, row % geometry.lanes)
                };
                (matrix * geometry.matrix_bytes() + panel * geometry.panel_bytes()) / ty.element.bytes()
                    + (column / geometry.pair * geometry.lanes + lane) * geometry.pair
                    + column % geometry.pair
            }
        };
        let size = ty.element.bytes();
        get_element(ty.element, &bytes[(index * size) as usize..][..size as usize])
    }

    proptest! {
        #[test]
        fn every_element_is_found_where_the_layout_says(
            matrices in 1_u64..4, rows in 1_u64..40, columns in 1_u64..20, wide: bool, halves: bool,
            kind in 0_usize..3,
        ) {
            let (element, pair) = [(Element::F32, 1), (Element::Bf16, 2), (Element::F16, 1)][kind];
            let rows = if halves { rows * 2 } else { rows };
            let ty = weight(&[matrices, rows, columns], element);
            let values: Vec<f32> = (0..matrices * rows * columns).map(|index| element.round(index as f32 - 99.5)).collect();
            let lanes = if wide { 16 } else { 8 };
            for layout in [WeightLayout::RowMajor, WeightLayout::Panels { lanes, pair, separate_halves: halves }] {
                let bytes = pack(&ty, layout, &values);
                prop_assert_eq!(bytes.len() as u64, weight_bytes(&ty, layout));
                for row in 0..matrices * rows {
                    for column in 0..columns {
                        let found = unpack_element(&ty, layout, &bytes, row, column);
                        prop_assert_eq!(found, values[(row * columns + column) as usize]);
                    }
                }
            }
        }
    }

    #[test]
    fn quantized_panels_hold_chunks_of_scales_minima_and_dwords() {
        for (quantization, columns) in
            FORMATS.into_iter().flat_map(|q| [(q, 32), (q, 70), (q, 1100), (q, 135)])
        {
            let mut ty = weight(&[11, columns], Element::Bf16);
            ty.quantization = Some(quantization);
            let pair = quantization.per_dword();
            let layout = WeightLayout::Panels { lanes: 8, pair, separate_halves: false };
            let values: Vec<f32> =
                (0..11 * columns).map(|index| ((index * 37 % 101) as f32 - 50.0) / 64.0).collect();
            let bytes = pack(&ty, layout, &values);
            assert_eq!(bytes.len() as u64, weight_bytes(&ty, layout));
            let geometry = PanelGeometry::new(&ty, 8, pair, false);
            let expected = dequantized(quantization, &values, columns);
            for (row, expected) in expected.chunks(columns as usize).enumerate() {
                let panel = &bytes[row / 8 * geometry.panel_bytes() as usize..];
                for (column, expected) in expected.iter().enumerate() {
                    let found = unpack_integer(quantization, panel, columns as usize, row % 8, column);
                    assert_eq!(found, *expected, "{quantization}, row {row}, column {column}");
                }
            }
        }
    }

    /// The weight at `column` of a panel's row, written from the layout's definition: chunks are the
    /// `[group, row]` scales of two groups of 8 rows, their minima, padding to 32 bytes, then the dwords.
    fn unpack_integer(format: Quantization, panel: &[u8], columns: usize, row: usize, column: usize) -> f32 {
        let (group, pair) = (format.group as usize, format.per_dword() as usize);
        let (scale_bytes, scalings) = (format.scale.bytes() as usize, if format.has_minimum { 2 } else { 1 });
        let scaling_bytes = |groups: usize| (scalings * groups * 8 * scale_bytes).next_multiple_of(32);
        let chunk = &panel[column / (2 * group) * (scaling_bytes(2) + 2 * group / pair * 8 * 4)..];
        let (column, columns) = (column % (2 * group), columns - column / (2 * group) * 2 * group);
        let groups = columns.min(2 * group).div_ceil(group);
        let scaling = |index: usize| {
            let bytes = &chunk[(index * 8 + row) * scale_bytes..][..scale_bytes];
            get_element(format.scale, bytes)
        };
        let dword = &chunk[scaling_bytes(groups) + (column / pair * 8 + row) * 4..][..4];
        let dword = u32::from_le_bytes(dword.try_into().unwrap());
        let field = dword >> format.first_bit((column % pair) as u32) & ((1 << format.bits) - 1);
        let scale = scaling(column / group);
        if format.has_minimum {
            return field as f32 * scale + scaling(groups + column / group);
        }
        (field as i32 - (1 << (format.bits - 1))) as f32 * scale
    }

    #[test]
    fn padding_is_zero() {
        let ty = weight(&[3, 3], Element::Bf16);
        let layout = WeightLayout::Panels { lanes: 8, pair: 2, separate_halves: false };
        let bytes = pack(&ty, layout, &[1.0; 9]);
        assert_eq!(bytes.chunks_exact(2).filter(|pair| *pair == f32_to_bf16(1.0).to_le_bytes()).count(), 9);
        assert_eq!(bytes.iter().filter(|byte| **byte != 0).count(), 18);
    }

    #[test]
    fn vectors_are_padded_to_whole_registers() {
        let ty = weight(&[17], Element::F32);
        assert_eq!(pack(&ty, WeightLayout::RowMajor, &[1.0; 17]).len(), 128);
    }
}

//! Brings weights into their layout: converts or quantizes rows and streams the bytes in order.
//!
//! Packing has to keep pace with a disk, so no loop here decides anything for a single element: runs of
//! a row are converted by loops that compilers turn into vector code, and what goes to one panel is
//! written in blocks of columns that stay in the first cache while all rows add to them.

use qwen2c_request::{
    Element, Quantization, QuantizationError, WeightLayout, WeightType, f32_to_bf16, f32_to_f16,
    quantize_groups,
};

use super::layout::{CHUNK_GROUPS, ChunkGeometry, PanelGeometry, weight_bytes};

/// Fills the slice with consecutive rows of a weight from a row number on.
pub type ReadRows<'a, E> = dyn FnMut(u64, &mut [f32]) -> Result<(), E> + 'a;

/// Takes the next packed bytes.
pub type WriteBytes<'a, E> = dyn FnMut(&[u8]) -> Result<(), E> + 'a;

/// Packs a weight as a stream: reads row blocks through `read(first_row, rows)`, with the rows of all
/// matrices numbered through, and hands the packed bytes to `write` in order. Exactly
/// [`qwen2c_request::Target::weight_bytes`] bytes are written; no more than one block of rows is held.
/// Returns what quantization lost, zero for a weight that is stored as elements.
///
/// # Errors
///
/// The first error of `read` or `write`.
pub fn pack_weight<E>(
    weight: &WeightType,
    layout: WeightLayout,
    read: &mut ReadRows<'_, E>,
    write: &mut WriteBytes<'_, E>,
) -> Result<QuantizationError, E> {
    let mut error = QuantizationError::default();
    let written = match layout {
        WeightLayout::RowMajor => pack_row_major(weight, read, write)?,
        WeightLayout::Panels { lanes, pair, separate_halves } => {
            let geometry = PanelGeometry::new(weight, lanes, pair, separate_halves);
            pack_panels(geometry, weight.element, &mut error, read, write)?
        }
    };
    let padding = weight_bytes(weight, layout) - written;
    write(&vec![0; padding as usize])?;
    Ok(error)
}

/// Rows converted at a time in row-major order.
const ROW_MAJOR_BLOCK_ROWS: u64 = 16;

fn pack_row_major<E>(
    weight: &WeightType,
    read: &mut ReadRows<'_, E>,
    write: &mut WriteBytes<'_, E>,
) -> Result<u64, E> {
    let (rows, columns, element_bytes) =
        (weight.rows(), weight.columns() as usize, weight.element.bytes() as usize);
    let mut values = vec![0.0; ROW_MAJOR_BLOCK_ROWS.min(rows) as usize * columns];
    let mut bytes = vec![0; values.len() * element_bytes];
    for first in (0..rows).step_by(ROW_MAJOR_BLOCK_ROWS as usize) {
        let elements = ROW_MAJOR_BLOCK_ROWS.min(rows - first) as usize * columns;
        read(first, &mut values[..elements])?;
        convert(weight.element, &values[..elements], &mut bytes);
        write(&bytes[..elements * element_bytes])?;
    }
    Ok(rows * columns as u64 * element_bytes as u64)
}

/// Writes `values` in the element type, little endian, to the beginning of `out`.
fn convert(element: Element, values: &[f32], out: &mut [u8]) {
    match element {
        Element::F32 => put(values, out, f32::to_le_bytes),
        Element::Bf16 => put(values, out, |value| f32_to_bf16(value).to_le_bytes()),
        Element::F16 => put(values, out, |value| f32_to_f16(value).to_le_bytes()),
        Element::I32 => put(values, out, |value| (value as i32).to_le_bytes()),
        Element::I8 { .. } => put(values, out, |value| (value as i8).to_le_bytes()),
    }
}

fn put<const BYTES: usize>(values: &[f32], out: &mut [u8], bytes_of: impl Fn(f32) -> [u8; BYTES]) {
    for (out, value) in out.as_chunks_mut().0.iter_mut().zip(values) {
        *out = bytes_of(*value);
    }
}

fn pack_panels<E>(
    geometry: PanelGeometry,
    element: Element,
    error: &mut QuantizationError,
    read: &mut ReadRows<'_, E>,
    write: &mut WriteBytes<'_, E>,
) -> Result<u64, E> {
    let columns = geometry.columns as usize;
    let mut values = vec![0.0; geometry.lanes as usize * columns];
    let mut bytes = vec![0; geometry.panel_bytes() as usize];
    for matrix in 0..geometry.matrices {
        for panel in 0..geometry.panels() {
            let (first, present) = geometry.panel_rows(panel);
            let values = &mut values[..present as usize * columns];
            read(matrix * geometry.rows + first, values)?;
            if present < geometry.lanes {
                // The panel before left its numbers where no row will write.
                bytes.fill(0);
            }
            match geometry.quantization {
                Some(quantization) => {
                    *error += fill_quantized_panel(geometry, quantization, values, &mut bytes);
                }
                None => fill_panel(geometry, element, values, &mut bytes),
            }
            write(&bytes)?;
        }
    }
    Ok(geometry.matrices * geometry.matrix_bytes())
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

/// Groups of a row that are quantized at a time.
const BLOCK_GROUPS: usize = 16;

/// Quantizes the rows of a panel into chunks, as [`ChunkGeometry`] says.
fn fill_quantized_panel(
    geometry: PanelGeometry,
    quantization: Quantization,
    values: &[f32],
    bytes: &mut [u8],
) -> QuantizationError {
    let mut error = QuantizationError::default();
    let (columns, lanes) = (geometry.columns as usize, geometry.lanes as usize);
    let block_columns = BLOCK_GROUPS * quantization.group as usize;
    let per_dword = quantization.per_dword() as usize;
    let chunks = ChunkGeometry { lanes: geometry.lanes, quantization };
    let chunk_inputs = chunks.inputs() as usize;
    let mut integers = vec![0; block_columns];
    let mut packed = vec![0; block_columns / per_dword * 4];
    for first in (0..columns).step_by(block_columns) {
        let present = block_columns.min(columns - first);
        let out = &mut bytes[chunks.bytes(first as u64) as usize..];
        let mut found = [0; BLOCK_GROUPS];
        let found = &mut found[..present.div_ceil(quantization.group as usize)];
        // The last group may end within a dword; what is absent is zero with its bias.
        integers[present..].fill(-quantization.bias() as i8);
        let dwords = &mut packed[..present.div_ceil(per_dword) * 4];
        for (lane, row) in values.chunks_exact(columns).enumerate() {
            error += quantize_groups(quantization, &row[first..][..present], &mut integers[..present], found);
            pack_integers(quantization, &integers, dwords);
            let whole_bytes = chunks.bytes(chunk_inputs as u64) as usize;
            let of_chunks =
                dwords.chunks(chunk_inputs / per_dword * 4).zip(found.chunks(CHUNK_GROUPS as usize));
            for ((dwords, found), out) in of_chunks.zip(out.chunks_mut(whole_bytes)) {
                let (out, scales) = out.split_at_mut(dwords.len() * lanes);
                scatter::<4>(dwords, lanes, lane, out);
                for (group, scale) in found.iter().enumerate() {
                    scales[(group * lanes + lane) * 2..][..2].copy_from_slice(&scale.to_le_bytes());
                }
            }
        }
    }
    error
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
    use proptest::prelude::*;
    use qwen2c_request::{Dimension, bf16_to_f32, f16_to_f32};

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
            Element::I8 { .. } => unreachable!("weights are not activations"),
        }
    }

    /// The inverse of packing, written from the layout's definition: element `(row, column)`.
    fn unpack_element(ty: &WeightType, layout: WeightLayout, bytes: &[u8], row: u64, column: u64) -> f32 {
        let index = match layout {
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

    fn pack(ty: &WeightType, layout: WeightLayout, values: &[f32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let columns = ty.columns() as usize;
        pack_weight::<()>(
            ty,
            layout,
            &mut |first, out| {
                out.copy_from_slice(&values[first as usize * columns..][..out.len()]);
                Ok(())
            },
            &mut |block| {
                bytes.extend_from_slice(block);
                Ok(())
            },
        )
        .unwrap();
        bytes
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
    fn quantized_panels_hold_chunks_of_dwords_and_scales() {
        for (bits, pair, columns) in [(8, 4, 70), (4, 8, 70), (4, 8, 32), (4, 8, 1100), (8, 4, 135)] {
            let quantization = Quantization::signed(bits, 32);
            let mut ty = weight(&[11, columns], Element::Bf16);
            ty.quantization = Some(quantization);
            let layout = WeightLayout::Panels { lanes: 8, pair, separate_halves: false };
            let values: Vec<f32> =
                (0..11 * columns).map(|index| ((index * 37 % 101) as f32 - 50.0) / 64.0).collect();
            let bytes = pack(&ty, layout, &values);
            assert_eq!(bytes.len() as u64, weight_bytes(&ty, layout));
            let geometry = PanelGeometry::new(&ty, 8, pair, false);
            for (row, expected) in values.chunks(columns as usize).enumerate() {
                let mut expected = expected.to_vec();
                qwen2c_request::round_row(quantization, &mut expected);
                let panel = &bytes[row / 8 * geometry.panel_bytes() as usize..];
                for (column, expected) in expected.iter().enumerate() {
                    // A chunk: the dwords of 64 inputs of 8 rows, then 2 · 8 scales.
                    let chunk = &panel[column / 64 * (64 / pair as usize * 8 * 4 + 2 * 8 * 2)..];
                    let inputs = 64.min(columns as usize - column / 64 * 64);
                    let scales = &chunk[inputs.div_ceil(pair as usize) * 8 * 4..];
                    let dword = &chunk[(column % 64 / pair as usize * 8 + row % 8) * 4..][..4];
                    let dword = u32::from_le_bytes(dword.try_into().unwrap());
                    let field = dword >> quantization.first_bit(column as u32 % pair) & ((1 << bits) - 1);
                    let integer = field as i32 - (1 << (bits - 1));
                    let scale = &scales[(column % 64 / 32 * 8 + row % 8) * 2..][..2];
                    let scale = f16_to_f32(u16::from_le_bytes(scale.try_into().unwrap()));
                    assert_eq!(integer as f32 * scale, *expected, "row {row}, column {column}");
                }
            }
        }
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

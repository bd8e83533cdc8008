//! How weights and caches lie in memory, with `pack` and its inverse. No MLIR here.
//!
//! Panels put `lanes` output rows side by side, so that a matrix product needs no reduction across
//! lanes, any input length works without a tail, and decode, prompt and the gather of a tied embedding
//! read the same bytes.

use qwen2c_request::{
    CACHE_BLOCK_POSITIONS, CacheKind, CacheType, Element, Quantization, WeightLayout, WeightType,
    f32_to_bf16, f32_to_f16, quantize_group,
};

/// Weights start and end at multiples of this, so that a whole vector may be loaded at the end of a row.
const WEIGHT_ALIGNMENT_BYTES: u64 = 64;

/// Extents of a weight in panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PanelGeometry {
    /// Matrices one after the other: experts, or 1.
    pub(super) matrices: u64,
    /// Rows of one matrix.
    pub(super) rows: u64,
    /// Inputs of one row.
    pub(super) columns: u64,
    /// Rows of a panel.
    pub(super) lanes: u64,
    /// Consecutive inputs held together.
    pub(super) pair: u64,
    /// Gate rows and up rows have panels of their own.
    pub(super) separate_halves: bool,
    /// Bytes of an element; of a quantized weight the integers of a dword share 4.
    element_bytes: u64,
    /// Integers with scales instead of elements.
    pub(super) quantization: Option<Quantization>,
}

impl PanelGeometry {
    /// Geometry of `weight`, `[rows, columns]` or `[matrices, rows, columns]`, in panels.
    pub(super) fn new(weight: &WeightType, lanes: u32, pair: u32, separate_halves: bool) -> Self {
        let extents = weight.extents();
        let (matrices, rows, columns) = match extents[..] {
            [matrices, rows, columns] => (matrices, rows, columns),
            [rows, columns] => (1, rows, columns),
            _ => (1, 1, weight.columns()),
        };
        Self {
            matrices,
            rows,
            columns,
            lanes: lanes.into(),
            pair: pair.into(),
            separate_halves,
            element_bytes: weight.element.bytes(),
            quantization: weight.quantization,
        }
    }

    /// Panels of one matrix.
    pub(super) fn panels(self) -> u64 {
        if self.separate_halves {
            2 * (self.rows / 2).div_ceil(self.lanes)
        } else {
            self.rows.div_ceil(self.lanes)
        }
    }

    /// Groups of a row of a quantized weight, the last of which may be shorter.
    pub(super) fn groups(self) -> u64 {
        self.quantization.map_or(0, |quantization| self.columns.div_ceil(quantization.group.into()))
    }

    /// Bytes of a panel's integers or elements; the scales of a quantized panel follow them.
    pub(super) fn data_bytes(self) -> u64 {
        let pairs = self.columns.div_ceil(self.pair);
        match self.quantization {
            Some(_) => pairs * self.lanes * 4,
            None => pairs * self.pair * self.lanes * self.element_bytes,
        }
    }

    /// Bytes of a panel: elements, or integers and then `[groups, lanes]` scales in f16.
    pub(super) fn panel_bytes(self) -> u64 {
        self.data_bytes() + self.groups() * self.lanes * Element::F16.bytes()
    }

    /// Bytes of one matrix.
    pub(super) fn matrix_bytes(self) -> u64 {
        self.panels() * self.panel_bytes()
    }

    /// First row of a panel and how many of its rows exist.
    fn panel_rows(self, panel: u64) -> (u64, u64) {
        if self.separate_halves {
            let (half_rows, half_panels) = (self.rows / 2, self.panels() / 2);
            let first = panel % half_panels * self.lanes;
            (panel / half_panels * half_rows + first, self.lanes.min(half_rows - first))
        } else {
            let first = panel * self.lanes;
            (first, self.lanes.min(self.rows - first))
        }
    }
}

/// Bytes of `weight` in `layout`, a multiple of 64.
pub(super) fn weight_bytes(weight: &WeightType, layout: WeightLayout) -> u64 {
    let bytes = match layout {
        WeightLayout::RowMajor => weight.rows() * weight.columns() * weight.element.bytes(),
        WeightLayout::Panels { lanes, pair, separate_halves } => {
            let geometry = PanelGeometry::new(weight, lanes, pair, separate_halves);
            geometry.matrices * geometry.matrix_bytes()
        }
    };
    bytes.next_multiple_of(WEIGHT_ALIGNMENT_BYTES)
}

/// Elements of a value head as stored: whole vectors, so that the weighted sum has no tail.
pub(super) fn padded_head_dim(lanes: u32, head_dim: u64) -> u64 {
    head_dim.next_multiple_of(lanes.into())
}

/// Elements of one block of one (slot, head): `[256 / 32, head_dim, 32]` for keys (lanes run over positions),
/// `[256, padded head_dim]` for values (lanes run over the head).
pub(super) fn cache_block_elements(lanes: u32, cache: &CacheType) -> u64 {
    CACHE_BLOCK_POSITIONS
        * match cache.kind {
            CacheKind::Key => cache.head_dim,
            CacheKind::Value => padded_head_dim(lanes, cache.head_dim),
        }
}

/// Bytes of a cache: `[slot, kv_head, block]` of [`cache_block_elements`].
pub(super) fn cache_bytes(lanes: u32, cache: &CacheType) -> u64 {
    cache.slots * cache.kv_heads * cache.blocks() * cache_block_elements(lanes, cache) * cache.element.bytes()
}

/// Writes `value` in the element type, little endian.
fn put_element(element: Element, value: f32, out: &mut [u8]) {
    match element {
        Element::F32 => out.copy_from_slice(&value.to_le_bytes()),
        Element::Bf16 => out.copy_from_slice(&f32_to_bf16(value).to_le_bytes()),
        Element::F16 => out.copy_from_slice(&f32_to_f16(value).to_le_bytes()),
        Element::I32 => out.copy_from_slice(&(value as i32).to_le_bytes()),
        Element::I8 { .. } => out.copy_from_slice(&(value as i8).to_le_bytes()),
    }
}

/// Fills the slice with consecutive rows of a weight from a row number on.
pub type ReadRows<'a, E> = dyn FnMut(u64, &mut [f32]) -> Result<(), E> + 'a;

/// Takes the next packed bytes.
pub type WriteBytes<'a, E> = dyn FnMut(&[u8]) -> Result<(), E> + 'a;

/// Packs a weight as a stream: reads row blocks through `read(first_row, rows)`, with the rows of all
/// matrices numbered through, and hands the packed bytes to `write` in order. Exactly
/// [`qwen2c_request::Target::weight_bytes`] bytes are written; no more than one block of rows is held.
///
/// # Errors
///
/// The first error of `read` or `write`.
pub fn pack_weight<E>(
    weight: &WeightType,
    layout: WeightLayout,
    read: &mut ReadRows<'_, E>,
    write: &mut WriteBytes<'_, E>,
) -> Result<(), E> {
    let written = match layout {
        WeightLayout::RowMajor => pack_row_major(weight, read, write)?,
        WeightLayout::Panels { lanes, pair, separate_halves } => {
            let geometry = PanelGeometry::new(weight, lanes, pair, separate_halves);
            pack_panels(geometry, weight.element, read, write)?
        }
    };
    let padding = weight_bytes(weight, layout) - written;
    write(&vec![0; padding as usize])
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
        for (value, out) in values[..elements].iter().zip(bytes.chunks_exact_mut(element_bytes)) {
            put_element(weight.element, *value, out);
        }
        write(&bytes[..elements * element_bytes])?;
    }
    Ok(rows * columns as u64 * element_bytes as u64)
}

fn pack_panels<E>(
    geometry: PanelGeometry,
    element: Element,
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
            bytes.fill(0);
            match geometry.quantization {
                Some(quantization) => scatter_quantized_panel(geometry, quantization, values, &mut bytes),
                None => scatter_panel(geometry, element, values, &mut bytes),
            }
            write(&bytes)?;
        }
    }
    Ok(geometry.matrices * geometry.matrix_bytes())
}

/// Puts the rows of a panel, `[present, columns]`, into `[columns / pair, lanes, pair]`.
fn scatter_panel(geometry: PanelGeometry, element: Element, values: &[f32], bytes: &mut [u8]) {
    let (lanes, pair) = (geometry.lanes as usize, geometry.pair as usize);
    let element_bytes = element.bytes() as usize;
    for (lane, row) in values.chunks_exact(geometry.columns as usize).enumerate() {
        for (column, value) in row.iter().enumerate() {
            let position = (column / pair * lanes + lane) * pair + column % pair;
            put_element(element, *value, &mut bytes[position * element_bytes..][..element_bytes]);
        }
    }
}

/// Quantizes the rows of a panel and puts the integers into `[columns / pair, lanes]` dwords, in the order
/// of [`Quantization::first_bit`], and the scales into `[groups, lanes]`.
fn scatter_quantized_panel(
    geometry: PanelGeometry,
    quantization: Quantization,
    values: &[f32],
    bytes: &mut [u8],
) {
    let (lanes, group_columns) = (geometry.lanes as usize, quantization.group as usize);
    let (data, scales) = bytes.split_at_mut(geometry.data_bytes() as usize);
    let mut integers = vec![0; group_columns];
    for (lane, row) in values.chunks_exact(geometry.columns as usize).enumerate() {
        for (group, weights) in row.chunks(group_columns).enumerate() {
            let integers = &mut integers[..weights.len()];
            let scale = quantize_group(quantization, weights, integers);
            scales[(group * lanes + lane) * 2..][..2].copy_from_slice(&scale.to_le_bytes());
            let per_dword = quantization.per_dword() as usize;
            for (index, dword) in integers.chunks(per_dword).enumerate() {
                let place = (group * group_columns / per_dword + index) * lanes + lane;
                data[place * 4..][..4].copy_from_slice(&pack_dword(quantization, dword).to_le_bytes());
            }
        }
    }
}

/// Biased integers side by side, absent ones zero.
fn pack_dword(quantization: Quantization, integers: &[i8]) -> u32 {
    (0_u32..).zip(integers).fold(0, |dword, (input, integer)| {
        dword | ((i32::from(*integer) + quantization.bias()) as u32) << quantization.first_bit(input)
    })
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
    fn quantized_panels_hold_dwords_and_then_scales() {
        for (bits, pair, columns) in [(8, 4, 70), (4, 8, 70), (4, 8, 32)] {
            let quantization = Quantization { bits, group: 32 };
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
                let scales = &panel[geometry.data_bytes() as usize..];
                for (column, expected) in expected.iter().enumerate() {
                    let dword = &panel[(column / pair as usize * 8 + row % 8) * 4..][..4];
                    let dword = u32::from_le_bytes(dword.try_into().unwrap());
                    let field = dword >> quantization.first_bit(column as u32 % pair) & ((1 << bits) - 1);
                    let integer = field as i32 - (1 << (bits - 1));
                    let scale = &scales[(column / 32 * 8 + row % 8) * 2..][..2];
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

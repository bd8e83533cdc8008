//! Weights on their way into their layout: what reads them, what takes the packed bytes, and the layout
//! that all targets share. Each family packs its own layouts.

use std::ops::Range;

use qwen2c_request::{
    Element, QuantizationError, QuantizedRows, WeightLayout, WeightType, f32_to_bf16, f32_to_f16,
};

use crate::{cpu, cuda};

/// Weights start and end at multiples of this, so that a whole vector may be loaded at the end of a row.
const WEIGHT_ALIGNMENT_BYTES: u64 = 64;

/// Gives consecutive rows of a weight from a row number on. The rows of all matrices are numbered through.
pub trait ReadWeight {
    /// Why rows could not be read.
    type Error;

    /// Fills the slice with the elements of whole rows.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    fn rows(&mut self, first_row: u64, out: &mut [f32]) -> Result<(), Self::Error>;

    /// Fills whole rows of a quantized weight; tells what quantization lost.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    fn groups(
        &mut self,
        first_row: u64,
        out: &mut QuantizedRows<'_>,
    ) -> Result<QuantizationError, Self::Error>;
}

/// Takes the next packed bytes.
pub type WriteBytes<'a, E> = dyn FnMut(&[u8]) -> Result<(), E> + 'a;

/// Bytes of `weight` in `layout`, a multiple of 64.
pub(crate) fn weight_bytes(weight: &WeightType, layout: WeightLayout) -> u64 {
    unpadded_bytes(weight, layout).next_multiple_of(WEIGHT_ALIGNMENT_BYTES)
}

fn unpadded_bytes(weight: &WeightType, layout: WeightLayout) -> u64 {
    match layout {
        WeightLayout::RowMajor => weight.rows() * weight.columns() * weight.element.bytes(),
        WeightLayout::Panels { lanes, pair, separate_halves } => {
            cpu::layout::PanelGeometry::new(weight, lanes, pair, separate_halves).bytes()
        }
        WeightLayout::WarpPanels { rows, separate_halves } => {
            cuda::layout::WarpGeometry::new(weight, rows, separate_halves).bytes()
        }
    }
}

/// Panels that a weight consists of: whole rows that lie together, and that are packed without the others.
pub fn weight_panels(weight: &WeightType, layout: WeightLayout) -> u64 {
    match layout {
        WeightLayout::RowMajor => weight.rows().div_ceil(ROW_MAJOR_PANEL_ROWS),
        WeightLayout::Panels { lanes, pair, separate_halves } => {
            cpu::layout::PanelGeometry::new(weight, lanes, pair, separate_halves).all_panels()
        }
        WeightLayout::WarpPanels { rows, separate_halves } => {
            cuda::layout::WarpGeometry::new(weight, rows, separate_halves).all_panels()
        }
    }
}

/// Packs consecutive panels of a weight as a stream: reads rows and hands the packed bytes to `write` in
/// order, behind the last panel with the padding. For all panels, one range after the other, exactly
/// [`qwen2c_request::Target::weight_bytes`] bytes are written; no more than one panel is held. Returns what
/// quantization lost, zero for a weight that is stored as elements.
///
/// # Errors
///
/// The first error of `read` or `write`.
pub fn pack_panels<R: ReadWeight>(
    weight: &WeightType,
    layout: WeightLayout,
    panels: Range<u64>,
    read: &mut R,
    write: &mut WriteBytes<'_, R::Error>,
) -> Result<QuantizationError, R::Error> {
    let is_last = panels.end == weight_panels(weight, layout);
    let error = match layout {
        WeightLayout::RowMajor => {
            pack_row_major(weight, panels, read, write)?;
            QuantizationError::default()
        }
        WeightLayout::Panels { lanes, pair, separate_halves } => {
            let geometry = cpu::layout::PanelGeometry::new(weight, lanes, pair, separate_halves);
            cpu::pack::pack(geometry, weight.element, panels, read, write)?
        }
        WeightLayout::WarpPanels { rows, separate_halves } => {
            let geometry = cuda::layout::WarpGeometry::new(weight, rows, separate_halves);
            cuda::pack::pack(geometry, panels, read, write)?
        }
    };
    if is_last {
        let padding = weight_bytes(weight, layout) - unpadded_bytes(weight, layout);
        write(&vec![0; padding as usize])?;
    }
    Ok(error)
}

/// Rows of a panel in row-major order.
const ROW_MAJOR_PANEL_ROWS: u64 = 16;

fn pack_row_major<R: ReadWeight>(
    weight: &WeightType,
    panels: Range<u64>,
    read: &mut R,
    write: &mut WriteBytes<'_, R::Error>,
) -> Result<(), R::Error> {
    let (rows, columns, element_bytes) =
        (weight.rows(), weight.columns() as usize, weight.element.bytes() as usize);
    let mut values = vec![0.0; ROW_MAJOR_PANEL_ROWS.min(rows) as usize * columns];
    let mut bytes = vec![0; values.len() * element_bytes];
    for panel in panels {
        let first = panel * ROW_MAJOR_PANEL_ROWS;
        let elements = ROW_MAJOR_PANEL_ROWS.min(rows - first) as usize * columns;
        read.rows(first, &mut values[..elements])?;
        convert(weight.element, &values[..elements], &mut bytes);
        write(&bytes[..elements * element_bytes])?;
    }
    Ok(())
}

/// Writes `values` in the element type, little endian, to the beginning of `out`.
pub(crate) fn convert(element: Element, values: &[f32], out: &mut [u8]) {
    match element {
        Element::F32 => put(values, out, f32::to_le_bytes),
        Element::Bf16 => put(values, out, |value| f32_to_bf16(value).to_le_bytes()),
        Element::F16 => put(values, out, |value| f32_to_f16(value).to_le_bytes()),
        Element::I32 => put(values, out, |value| (value as i32).to_le_bytes()),
        Element::I8 { .. } => put(values, out, |value| (value as i8).to_le_bytes()),
        Element::I16 { .. } => put(values, out, |value| (value as i16).to_le_bytes()),
    }
}

fn put<const BYTES: usize>(values: &[f32], out: &mut [u8], bytes_of: impl Fn(f32) -> [u8; BYTES]) {
    for (out, value) in out.as_chunks_mut().0.iter_mut().zip(values) {
        *out = bytes_of(*value);
    }
}

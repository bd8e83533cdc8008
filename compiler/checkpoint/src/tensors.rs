//! Tensors in files, under canonical names, read by blocks of rows.

use std::collections::BTreeMap;

use qwen2c_format::Diagnostic;
use qwen2c_graph::{SourceError, TensorSource};
use qwen2c_request::{Quantization, QuantizedRows};

use crate::encoding::Encoding;
use crate::files::OpenFile;

/// Stored bytes that are read at once.
const READ_BYTES: u64 = 1 << 20;

/// Order of a tensor's rows in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// As in the canonical tensor.
    Canonical,
    /// GGUF's queries and keys of Llama: within a head, row `2i + j` is the canonical row
    /// `j · head_dim / 2 + i`, so that rotation pairs neighbours.
    InterleavedHalves {
        /// Rows of one head.
        head_dim: u64,
    },
}

impl RowOrder {
    /// Where the canonical row `row` lies.
    const fn stored_row(self, row: u64) -> u64 {
        match self {
            Self::Canonical => row,
            Self::InterleavedHalves { head_dim } => {
                let (head, within) = (row / head_dim, row % head_dim);
                let half = head_dim / 2;
                head * head_dim + 2 * (within % half) + within / half
            }
        }
    }
}

/// A tensor in a file.
#[derive(Clone, Debug)]
pub(crate) struct StoredTensor {
    /// Index into the files.
    pub(crate) file: usize,
    /// Byte offset in the file.
    pub(crate) offset: u64,
    /// Storage format.
    pub(crate) encoding: Encoding,
    /// Extents, outermost first.
    pub(crate) shape: Vec<u64>,
    /// Order of the rows; for a vector, of its elements.
    pub(crate) order: RowOrder,
}

impl StoredTensor {
    /// Extent of the last dimension.
    pub(crate) fn columns(&self) -> u64 {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Product of all extents but the last.
    pub(crate) fn rows(&self) -> u64 {
        self.shape[..self.shape.len().saturating_sub(1)].iter().product()
    }

    /// Bytes of one row.
    fn row_bytes(&self) -> u64 {
        self.columns() / self.encoding.block_elements() * self.encoding.block_bytes()
    }

    /// Bytes of the tensor in its file.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.rows() * self.row_bytes()
    }

    /// Rows `first` to `first + rows` of the tensor as a tensor of its own.
    pub(crate) fn slice(&self, first: u64, rows: u64) -> Self {
        Self {
            offset: self.offset + first * self.row_bytes(),
            shape: vec![rows, self.columns()],
            ..self.clone()
        }
    }
}

/// All tensors of a checkpoint by canonical name.
#[derive(Debug, Default)]
pub(crate) struct TensorTable {
    /// Files, opened once.
    pub(crate) files: Vec<OpenFile>,
    /// Tensors. Their byte ranges were checked against the files when the table was built.
    pub(crate) tensors: BTreeMap<String, StoredTensor>,
}

impl TensorTable {
    /// Where a tensor lies, for messages.
    pub(crate) fn place_of(&self, tensor: &StoredTensor) -> String {
        self.files.get(tensor.file).map(OpenFile::place).unwrap_or_default()
    }

    /// Reads rows without looking at their values.
    fn read_stored(
        &self,
        tensor: &StoredTensor,
        first_row: u64,
        out: &mut [f32],
    ) -> Result<(), std::io::Error> {
        let columns = tensor.columns();
        let rows = out.len() as u64 / columns;
        self.for_each_run(tensor, first_row, rows, |bytes, rows| {
            let elements = (rows.start * columns) as usize..(rows.end * columns) as usize;
            tensor.encoding.decode(bytes, &mut out[elements]);
        })
    }

    /// Reads `rows` rows in runs of as many as lie together and are read at once; `each` gets their bytes
    /// and their numbers, counted from the first row.
    fn for_each_run(
        &self,
        tensor: &StoredTensor,
        first_row: u64,
        rows: u64,
        mut each: impl FnMut(&[u8], std::ops::Range<u64>),
    ) -> Result<(), std::io::Error> {
        let Some(file) = self.files.get(tensor.file) else {
            return Err(std::io::Error::other("the file was not opened"));
        };
        let row_bytes = tensor.row_bytes();
        let rows_at_once = match tensor.order {
            RowOrder::Canonical => (READ_BYTES / row_bytes.max(1)).max(1),
            RowOrder::InterleavedHalves { .. } => 1,
        };
        let mut bytes = Vec::new();
        for start in (0..rows).step_by(rows_at_once as usize) {
            let end = rows.min(start + rows_at_once);
            bytes.resize(((end - start) * row_bytes) as usize, 0);
            let stored_row = tensor.order.stored_row(first_row + start);
            file.read_at(tensor.offset + stored_row * row_bytes, &mut bytes)?;
            each(&bytes, start..end);
        }
        Ok(())
    }

    /// Reads a vector whose elements are in another order.
    fn read_reordered_vector(&self, tensor: &StoredTensor, out: &mut [f32]) -> Result<(), std::io::Error> {
        let mut stored = vec![0.0; out.len()];
        let canonical = StoredTensor { order: RowOrder::Canonical, ..tensor.clone() };
        self.read_stored(&canonical, 0, &mut stored)?;
        for (index, value) in (0..).zip(out) {
            *value = stored[tensor.order.stored_row(index) as usize];
        }
        Ok(())
    }

    fn unreadable(&self, name: &str, tensor: &StoredTensor, error: &std::io::Error) -> Diagnostic {
        Diagnostic::new(format!("tensor `{name}` cannot be read"))
            .at(self.place_of(tensor))
            .cause(error.to_string())
            .help("the file was cut short or replaced while it was read")
    }

    /// The tensor, if the wanted rows are its own.
    fn wanted(
        &self,
        name: &str,
        columns: u64,
        first_row: u64,
        elements: u64,
    ) -> Result<&StoredTensor, Diagnostic> {
        let Some(tensor) = self.tensors.get(name) else {
            return Err(Diagnostic::new(format!("tensor `{name}` is missing from the checkpoint")));
        };
        let rows = if tensor.shape.len() == 1 { 1 } else { tensor.rows() };
        let fits = columns == tensor.columns()
            && columns > 0
            && elements.is_multiple_of(columns)
            && first_row.checked_add(elements / columns).is_some_and(|end| end <= rows);
        if fits {
            return Ok(tensor);
        }
        Err(Diagnostic::new(format!("tensor `{name}` has the wrong shape"))
            .at(self.place_of(tensor))
            .found(format!("{:?}", tensor.shape))
            .needed(format!("rows of {columns} elements, {elements} elements from row {first_row} on")))
    }
}

impl TensorSource for TensorTable {
    fn read_rows(
        &self,
        tensor: &str,
        columns: u64,
        first_row: u64,
        out: &mut [f32],
    ) -> Result<(), SourceError> {
        let stored = self.wanted(tensor, columns, first_row, out.len() as u64)?;
        let read = if stored.shape.len() == 1 && stored.order != RowOrder::Canonical {
            self.read_reordered_vector(stored, out)
        } else {
            self.read_stored(stored, first_row, out)
        };
        read.map_err(|error| self.unreadable(tensor, stored, &error))?;
        refuse_infinities(tensor, "column", columns, first_row, out)
            .map_err(|error| error.at(self.place_of(stored)))?;
        Ok(())
    }

    fn quantization(&self, tensor: &str) -> Option<Quantization> {
        self.tensors.get(tensor).and_then(|tensor| tensor.encoding.quantization())
    }

    fn read_groups(
        &self,
        tensor: &str,
        columns: u64,
        first_row: u64,
        out: &mut QuantizedRows<'_>,
    ) -> Result<(), SourceError> {
        let stored = self.wanted(tensor, columns, first_row, out.integers.len() as u64)?;
        let Some(quantization) = stored.encoding.quantization() else {
            return Err(Diagnostic::new(format!("tensor `{tensor}` is not quantized")).into());
        };
        let groups = columns / u64::from(quantization.group);
        let count = out.integers.len() as u64 / columns;
        let read = self.for_each_run(stored, first_row, count, |bytes, rows| {
            let mut run = out.part(count as usize, rows.start as usize..rows.end as usize);
            stored.encoding.split(bytes, &mut run);
        });
        read.map_err(|error| self.unreadable(tensor, stored, &error))?;
        for values in [&*out.scales, &*out.minima] {
            refuse_infinities(tensor, "group", groups, first_row, values)
                .map_err(|error| error.at(self.place_of(stored)))?;
        }
        Ok(())
    }
}

/// Refuses NaN and infinities: one of them makes every later token garbage.
/// Rows consist of `columns` values, which are called `column`.
fn refuse_infinities(
    tensor: &str,
    column: &str,
    columns: u64,
    first_row: u64,
    values: &[f32],
) -> Result<(), Diagnostic> {
    const EXPONENT: u32 = 0x7f80_0000;
    // Without an early exit the loop is vectorized; the search happens only in damaged files.
    let damaged = values.iter().fold(false, |found, value| found | (value.to_bits() & EXPONENT == EXPONENT));
    if !damaged {
        return Ok(());
    }
    let index = values.iter().position(|value| !value.is_finite()).unwrap_or(0);
    let (row, number) = (first_row + index as u64 / columns, index as u64 % columns);
    Err(Diagnostic::new(format!("tensor `{tensor}` holds a value that is not a number"))
        .found(format!("{} in row {row}, {column} {number}", values[index]))
        .needed("finite numbers")
        .help("the checkpoint is damaged: fetch it again and compare its SHA-256"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_halves_are_a_permutation_of_each_head() {
        let order = RowOrder::InterleavedHalves { head_dim: 6 };
        let stored: Vec<u64> = (0..12).map(|row| order.stored_row(row)).collect();
        // Canonical rows 0, 1, 2 are the first halves of the pairs, 3, 4, 5 the second.
        assert_eq!(stored, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }

    #[test]
    fn a_value_that_is_not_finite_is_named_with_its_place() {
        let message = refuse_infinities("model.norm.weight", "column", 2, 4, &[0.0, 1.0, f32::NAN, 2.0])
            .unwrap_err()
            .to_string();
        assert!(message.contains("found: NaN in row 5, column 0"), "{message}");
        assert!(refuse_infinities("x", "column", 2, 0, &[f32::INFINITY, 0.0]).is_err());
        assert!(refuse_infinities("x", "column", 2, 0, &[f32::MAX, -0.0]).is_ok());
    }
}

//! Weights as the graph sees them: a type, and where the elements come from.

mod groups;

use std::ops::Range;

use qwen2c_request::{Quantization, QuantizedBlock, QuantizedRows, WeightLayout, WeightType};

/// Why a tensor could not be read.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// Gives the elements of a checkpoint's tensors by their canonical (Hugging Face) names.
///
/// A tensor is a list of rows along its last dimension; a vector is one row.
pub trait TensorSource {
    /// Fills `out` with consecutive rows of `columns` elements from `first_row` on, widened to `f32`.
    ///
    /// # Errors
    ///
    /// When the tensor is missing, has another shape, or cannot be read.
    fn read_rows(
        &self,
        tensor: &str,
        columns: u64,
        first_row: u64,
        out: &mut [f32],
    ) -> Result<(), SourceError>;

    /// How the tensor is quantized already; `None` where its elements stand for themselves.
    fn quantization(&self, _tensor: &str) -> Option<Quantization> {
        None
    }

    /// Fills `out` with the integers, scales and minima of consecutive rows of a tensor that is quantized
    /// already. They stand for the elements that `read_rows` gives.
    ///
    /// # Errors
    ///
    /// As [`TensorSource::read_rows`], and for a tensor that is not quantized.
    fn read_groups(
        &self,
        tensor: &str,
        _columns: u64,
        _first_row: u64,
        _out: &mut QuantizedRows<'_>,
    ) -> Result<(), SourceError> {
        Err(format!("tensor `{tensor}` is not quantized").into())
    }
}

/// A run of a weight's rows that comes from one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightPart {
    /// Canonical name of the tensor: `model.layers.0.self_attn.q_proj.weight`.
    pub tensor: String,
    /// Rows taken from the tensor (for a vector: elements).
    pub rows: u64,
    /// Rows the part occupies in the weight, `rows` or more; the rest is zero.
    pub padded_rows: u64,
}

/// Table of cosines and sines, `f32[context, head_dim]`: see [`qwen2c_request::Operation::Rotate`].
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// `head_dim / 2` frequencies, radians per position.
    pub inverse_frequencies: Vec<f32>,
    /// Multiplies cosines and sines.
    pub attention_factor: f32,
}

impl Eq for RopeTable {}

/// Where a weight's elements come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightSource {
    /// Parts of checkpoint tensors, one after the other along the rows (experts stacked: all rows of
    /// expert 0, then expert 1, …; for vectors along the only dimension).
    Tensors(Vec<WeightPart>),
    /// Computed when the program is built.
    RopeTable(RopeTable),
    /// Rotary table whose frequencies `resolve_rope` has yet to compute from the configuration.
    UnresolvedRopeTable,
}

/// A weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Name in the text form, unique in the graph: `layers.0.qkv.weight`.
    pub name: String,
    /// Shape (padding included) and format as stored.
    pub ty: WeightType,
    /// Columns taken from the tensors, at most the type's; the rest is zero.
    pub source_columns: u64,
    /// Where the elements come from.
    pub source: WeightSource,
    /// Chosen by `choose_weight_layouts`.
    pub layout: Option<WeightLayout>,
}

impl Weight {
    /// Rows of the weight along its last dimension: 1 for a vector, all experts' rows for experts.
    pub fn rows(&self) -> u64 {
        if self.ty.dimensions.len() == 1 { 1 } else { self.ty.rows() }
    }

    /// Fills `out` with whole rows from `first_row` on, as `f32`: the tensors' rows one after the
    /// other, padding as zeros, rotary tables computed. Nothing is rounded to the weight's type.
    ///
    /// # Errors
    ///
    /// Whatever `source` says; rows beyond the weight's; a rotary table without frequencies.
    pub fn read_rows(
        &self,
        source: &dyn TensorSource,
        first_row: u64,
        out: &mut [f32],
    ) -> Result<(), SourceError> {
        let columns = self.ty.columns();
        self.check_rows(first_row, out.len())?;
        match &self.source {
            WeightSource::Tensors(parts) if self.ty.dimensions.len() == 1 => read_vector(parts, source, out),
            WeightSource::Tensors(parts) => self.read_matrix(parts, source, first_row, out),
            WeightSource::RopeTable(table) => {
                for (position, row) in (first_row..).zip(out.chunks_exact_mut(columns as usize)) {
                    table.fill_row(position, row);
                }
                Ok(())
            }
            WeightSource::UnresolvedRopeTable => {
                let name = &self.name;
                Err(format!("weight `{name}` has no frequencies: run the pass `resolve_rope` first").into())
            }
        }
    }

    /// Refuses rows that the weight does not have.
    fn check_rows(&self, first_row: u64, elements: usize) -> Result<(), SourceError> {
        let columns = self.ty.columns();
        let rows = (elements as u64).checked_div(columns).unwrap_or(0);
        let end = first_row.saturating_add(rows);
        if rows * columns == elements as u64 && end <= self.rows() {
            return Ok(());
        }
        let (name, all) = (&self.name, self.rows());
        let asked = format!("{elements} elements from row {first_row} on");
        Err(format!("weight `{name}` has {all} rows of {columns}, asked for {asked}").into())
    }

    /// As [`Weight::read_rows`], with every element as the program sees it: rounded to the weight's type,
    /// or quantized.
    ///
    /// # Errors
    ///
    /// The source's error.
    pub fn read_rounded_rows(
        &self,
        source: &dyn TensorSource,
        first_row: u64,
        out: &mut [f32],
    ) -> Result<(), SourceError> {
        if let Some(quantization) = self.ty.quantization {
            let columns = self.ty.columns() as usize;
            let rows = out.len() / columns;
            let mut block = QuantizedBlock::new(quantization, rows, columns);
            let mut groups = block.rows(0..rows);
            self.read_groups(source, first_row, &mut groups)?;
            quantization.widen(columns, &groups, out);
            return Ok(());
        }
        self.read_rows(source, first_row, out)?;
        out.iter_mut().for_each(|element| *element = self.ty.element.round(*element));
        Ok(())
    }

    fn read_matrix(
        &self,
        parts: &[WeightPart],
        source: &dyn TensorSource,
        first_row: u64,
        out: &mut [f32],
    ) -> Result<(), SourceError> {
        let columns = self.ty.columns() as usize;
        let rows = (out.len() / columns) as u64;
        out.fill(0.0);
        for PartRows { part, first_row, rows } in part_rows(parts, first_row, rows) {
            self.read_part(part, source, first_row, &mut out[rows.start * columns..rows.end * columns])?;
        }
        Ok(())
    }

    /// Reads rows of one tensor and leaves the padding of each as it is.
    fn read_part(
        &self,
        part: &WeightPart,
        source: &dyn TensorSource,
        first_row: u64,
        out: &mut [f32],
    ) -> Result<(), SourceError> {
        let (columns, source_columns) = (self.ty.columns() as usize, self.source_columns as usize);
        if source_columns == columns {
            return source.read_rows(&part.tensor, self.source_columns, first_row, out);
        }
        let mut narrow = vec![0.0; out.len() / columns * source_columns];
        source.read_rows(&part.tensor, self.source_columns, first_row, &mut narrow)?;
        for (row, read) in out.chunks_exact_mut(columns).zip(narrow.chunks_exact(source_columns)) {
            row[..source_columns].copy_from_slice(read);
        }
        Ok(())
    }
}

/// Wanted rows that come from one part.
struct PartRows<'a> {
    part: &'a WeightPart,
    /// The first, counted from the tensor's first.
    first_row: u64,
    /// Where they belong among the wanted rows.
    rows: Range<usize>,
}

/// Where `rows` rows from `first_row` on come from; rows that are in no part are padding.
fn part_rows(parts: &[WeightPart], first_row: u64, rows: u64) -> impl Iterator<Item = PartRows<'_>> {
    let mut part_start = 0;
    parts.iter().filter_map(move |part| {
        let start = first_row.max(part_start);
        let end = (first_row + rows).min(part_start + part.rows);
        let found = (start < end).then(|| PartRows {
            part,
            first_row: start - part_start,
            rows: (start - first_row) as usize..(end - first_row) as usize,
        });
        part_start += part.padded_rows;
        found
    })
}

/// Each part of a vector is a tensor with one row.
fn read_vector(parts: &[WeightPart], source: &dyn TensorSource, out: &mut [f32]) -> Result<(), SourceError> {
    out.fill(0.0);
    let mut start = 0;
    for part in parts {
        let end = start + part.rows as usize;
        let Some(place) = out.get_mut(start..end) else {
            return Err(format!("tensor `{}` does not fit into its weight", part.tensor).into());
        };
        source.read_rows(&part.tensor, part.rows, 0, place)?;
        start += part.padded_rows as usize;
    }
    Ok(())
}

impl RopeTable {
    /// Cosines, then sines, of `position`'s angles, which are rounded to `f32` as HF transformers does.
    fn fill_row(&self, position: u64, row: &mut [f32]) {
        let (cosines, sines) = row.split_at_mut(row.len() / 2);
        for (index, frequency) in self.inverse_frequencies.iter().enumerate() {
            let angle = position as f32 * frequency;
            cosines[index] = libm::cosf(angle) * self.attention_factor;
            sines[index] = libm::sinf(angle) * self.attention_factor;
        }
    }
}

#[cfg(test)]
mod tests {
    use qwen2c_request::{Dimension, Element};

    use super::*;

    /// Tensors whose element is `1000 · row + column`, whatever their name but for `missing`.
    struct Numbered;

    impl TensorSource for Numbered {
        fn read_rows(
            &self,
            tensor: &str,
            columns: u64,
            first_row: u64,
            out: &mut [f32],
        ) -> Result<(), SourceError> {
            if tensor == "missing" {
                return Err("no such tensor".into());
            }
            for (index, element) in out.iter_mut().enumerate() {
                let (row, column) = (first_row + index as u64 / columns, index as u64 % columns);
                *element = (1000 * row + column) as f32;
            }
            Ok(())
        }
    }

    fn weight(extents: &[u64], source_columns: u64, source: WeightSource) -> Weight {
        let dimensions = extents.iter().map(|size| Dimension::constant("n", *size)).collect();
        Weight {
            name: "w".to_owned(),
            ty: WeightType { dimensions, element: Element::F32, quantization: None },
            source_columns,
            source,
            layout: None,
        }
    }

    fn part(tensor: &str, rows: u64, padded_rows: u64) -> WeightPart {
        WeightPart { tensor: tensor.to_owned(), rows, padded_rows }
    }

    #[test]
    fn parts_and_padding_are_laid_end_to_end() {
        let parts = WeightSource::Tensors(vec![part("a", 2, 3), part("b", 1, 2)]);
        let weight = weight(&[5, 3], 2, parts);
        let mut out = [9.0; 15];
        weight.read_rows(&Numbered, 0, &mut out).expect("all rows");
        #[rustfmt::skip]
        let expected = [
            0.0, 1.0, 0.0,
            1000.0, 1001.0, 0.0,
            0.0, 0.0, 0.0,
            0.0, 1.0, 0.0,
            0.0, 0.0, 0.0,
        ];
        assert_eq!(out, expected);
        // Any run of rows is the same part of the whole.
        for first in 0..5 {
            for count in 1..=5 - first {
                let mut some = vec![9.0; count * 3];
                weight.read_rows(&Numbered, first as u64, &mut some).expect("some rows");
                assert_eq!(some, expected[first * 3..(first + count) * 3]);
            }
        }
    }

    #[test]
    fn experts_are_rows_one_after_the_other() {
        let parts = WeightSource::Tensors(vec![part("0", 2, 2), part("1", 2, 2)]);
        let weight = weight(&[2, 2, 1], 1, parts);
        let mut out = [9.0; 2];
        weight.read_rows(&Numbered, 1, &mut out).expect("two rows");
        assert_eq!(out, [1000.0, 0.0]);
    }

    #[test]
    fn vectors_are_joined_along_their_only_dimension() {
        let weight = weight(&[6], 6, WeightSource::Tensors(vec![part("a", 2, 3), part("b", 3, 3)]));
        let mut out = [9.0; 6];
        weight.read_rows(&Numbered, 0, &mut out).expect("a vector");
        assert_eq!(out, [0.0, 1.0, 0.0, 0.0, 1.0, 2.0]);
    }

    #[test]
    fn rotary_tables_hold_cosines_then_sines() {
        let table = RopeTable { inverse_frequencies: vec![1.0, 0.5], attention_factor: 2.0 };
        let weight = weight(&[8, 4], 4, WeightSource::RopeTable(table));
        let mut out = [9.0; 4];
        weight.read_rows(&Numbered, 3, &mut out).expect("a row");
        let expected = [3.0_f32.cos(), 1.5_f32.cos(), 3.0_f32.sin(), 1.5_f32.sin()].map(|value| value * 2.0);
        for (found, expected) in out.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let tensors = |name: &str| WeightSource::Tensors(vec![part(name, 2, 2)]);
        let read = |weight: &Weight, first_row, elements: usize| {
            let mut out = vec![0.0; elements];
            weight.read_rows(&Numbered, first_row, &mut out).expect_err("must fail").to_string()
        };
        assert_eq!(read(&weight(&[2, 2], 2, tensors("missing")), 0, 2), "no such tensor");
        let beyond = "weight `w` has 2 rows of 2, asked for 2 elements from row 2 on";
        assert_eq!(read(&weight(&[2, 2], 2, tensors("a")), 2, 2), beyond);
        let uneven = "weight `w` has 2 rows of 2, asked for 3 elements from row 0 on";
        assert_eq!(read(&weight(&[2, 2], 2, tensors("a")), 0, 3), uneven);
        let unresolved = read(&weight(&[2, 2], 2, WeightSource::UnresolvedRopeTable), 0, 2);
        assert!(unresolved.contains("resolve_rope"), "{unresolved}");
    }
}

//! Weights as integers, scales and minima: taken from tensors that are quantized as the weight is, and made
//! of all others.
//!
//! The packer and the interpreter read quantized weights here, so that both see the same numbers.

use qwen2c_request::{
    Element, Quantization, QuantizationError, QuantizedBlock, QuantizedRows, quantize_weights,
};

use super::{PartRows, SourceError, TensorSource, Weight, WeightPart, WeightSource, part_rows};

impl Weight {
    /// Fills `out` with whole rows of a quantized weight from `first_row` on; padding is zero. Returns what
    /// rounding lost: nothing where the tensors are quantized as the weight is.
    ///
    /// # Errors
    ///
    /// Whatever `source` says; rows beyond the weight's; a weight that is not quantized, or in a way that
    /// its tensors are not and the compiler does not make.
    pub fn read_groups(
        &self,
        source: &dyn TensorSource,
        first_row: u64,
        out: &mut QuantizedRows<'_>,
    ) -> Result<QuantizationError, SourceError> {
        let (Some(quantization), WeightSource::Tensors(parts)) = (self.ty.quantization, &self.source) else {
            return Err(format!("weight `{}` is not quantized", self.name).into());
        };
        self.check_rows(first_row, out.integers.len())?;
        let columns = self.ty.columns() as usize;
        let rows = (out.integers.len() / columns) as u64;
        out.clear();
        let mut error = QuantizationError::default();
        let count = rows as usize;
        for PartRows { part, first_row, rows } in part_rows(parts, first_row, rows) {
            let mut place = out.part(count, rows.clone());
            let source_columns = self.source_columns as usize;
            if source_columns == columns {
                error += self.fill_groups(quantization, part, source, first_row, &mut place)?;
                continue;
            }
            // Padding is no part of a group: with it a group could be rounded otherwise.
            let mut narrow = QuantizedBlock::new(quantization, rows.len(), source_columns);
            let mut read = narrow.rows(0..rows.len());
            error += self.fill_groups(quantization, part, source, first_row, &mut read)?;
            widen_rows(quantization, (source_columns, &read), (columns, &mut place));
        }
        Ok(error)
    }

    /// Fills `out` with rows of a tensor, without padding: with the groups it has, or those made of its
    /// elements.
    fn fill_groups(
        &self,
        quantization: Quantization,
        part: &WeightPart,
        source: &dyn TensorSource,
        first_row: u64,
        out: &mut QuantizedRows<'_>,
    ) -> Result<QuantizationError, SourceError> {
        if source.quantization(&part.tensor) == Some(quantization) {
            source.read_groups(&part.tensor, self.source_columns, first_row, out)?;
            return Ok(QuantizationError::default());
        }
        if quantization.scale != Element::F16 {
            let (name, tensor) = (&self.name, &part.tensor);
            return Err(format!("weight `{name}` is {quantization}, which tensor `{tensor}` is not").into());
        }
        let mut elements = vec![0.0; out.integers.len()];
        source.read_rows(&part.tensor, self.source_columns, first_row, &mut elements)?;
        Ok(quantize_weights(quantization, self.source_columns as usize, &elements, out))
    }
}

/// Copies rows of `from` columns to the front of rows of `to` columns.
fn widen_rows(
    quantization: Quantization,
    (from, read): (usize, &QuantizedRows<'_>),
    (to, out): (usize, &mut QuantizedRows<'_>),
) {
    fn copy<T: Copy>(from: usize, read: &[T], to: usize, out: &mut [T]) {
        for (read, out) in read.chunks_exact(from).zip(out.chunks_exact_mut(to)) {
            out[..from].copy_from_slice(read);
        }
    }
    let groups = |columns: usize| columns.div_ceil(quantization.group as usize);
    copy(from, read.integers, to, out.integers);
    copy(groups(from), read.scales, groups(to), out.scales);
    copy(groups(from), read.minima, groups(to), out.minima);
}

#[cfg(test)]
mod tests {
    use qwen2c_request::{Dimension, WeightType};

    use super::*;

    const FORMAT: Quantization = Quantization { bits: 8, group: 16, scale: Element::F32, has_minimum: true };
    const SIGNED: Quantization = Quantization::signed(8, 16);

    /// `kept` is quantized with a scale of the row's number, `signed` as the compiler would; the other
    /// tensors are halves of whole numbers.
    struct Blocks;

    impl TensorSource for Blocks {
        fn read_rows(&self, _: &str, _: u64, _: u64, out: &mut [f32]) -> Result<(), SourceError> {
            out.iter_mut().enumerate().for_each(|(index, element)| *element = index as f32 * 0.5);
            Ok(())
        }

        fn quantization(&self, tensor: &str) -> Option<Quantization> {
            match tensor {
                "kept" => Some(FORMAT),
                "signed" => Some(SIGNED),
                _ => None,
            }
        }

        fn read_groups(
            &self,
            _: &str,
            columns: u64,
            first_row: u64,
            out: &mut QuantizedRows<'_>,
        ) -> Result<(), SourceError> {
            let groups = columns.div_ceil(16) as usize;
            out.integers.fill(3);
            for (row, scales) in (first_row..).zip(out.scales.chunks_mut(groups)) {
                scales.fill(row as f32);
            }
            out.minima.fill(-0.25);
            Ok(())
        }
    }

    fn weight(rows: u64, columns: u64, source_columns: u64, quantization: Quantization) -> Weight {
        let dimensions = [rows, columns].map(|size| Dimension::constant("n", size)).to_vec();
        Weight {
            name: "w".to_owned(),
            ty: WeightType { dimensions, element: Element::F32, quantization: Some(quantization) },
            source_columns,
            source: WeightSource::Tensors(Vec::new()),
            layout: None,
        }
    }

    fn part(tensor: &str, rows: u64, padded_rows: u64) -> WeightPart {
        WeightPart { tensor: tensor.to_owned(), rows, padded_rows }
    }

    #[test]
    fn kept_rows_are_taken_and_padding_has_neither_scale_nor_minimum() {
        let mut weight = weight(5, 40, 16, FORMAT);
        weight.source = WeightSource::Tensors(vec![part("kept", 2, 3), part("kept", 2, 2)]);
        let mut out = vec![9.0; 4 * 40];
        weight.read_rounded_rows(&Blocks, 1, &mut out).expect("the last four rows");
        let expected = [2.75, 0.0, -0.25, 2.75];
        for (row, expected) in out.chunks(40).zip(expected) {
            assert_eq!(&row[..16], &[expected; 16]);
            assert_eq!(&row[16..], &[0.0; 24]);
        }
        let mut block = QuantizedBlock::new(FORMAT, 1, 40);
        weight.read_groups(&Blocks, 2, &mut block.rows(0..1)).expect("a row of padding");
        let rows = block.rows(0..1);
        assert_eq!(
            (&rows.integers[..], &rows.scales[..], &rows.minima[..]),
            (&[0; 40][..], &[0.0; 3][..], &[0.0; 3][..])
        );
    }

    #[test]
    fn tensors_that_are_quantized_alike_lose_nothing() {
        let mut weight = weight(2, 16, 16, SIGNED);
        let mut lost = |tensor: &str| {
            weight.source = WeightSource::Tensors(vec![part(tensor, 2, 2)]);
            let mut block = QuantizedBlock::new(SIGNED, 2, 16);
            let error = weight.read_groups(&Blocks, 0, &mut block.rows(0..2)).expect("two rows");
            (error.relative(), block.rows(0..2).scales[1])
        };
        assert_eq!(lost("signed"), (0.0, 1.0));
        let (error, scale) = lost("plain");
        assert!(error > 0.0 && scale != 1.0);
    }

    #[test]
    fn padding_changes_no_integer() {
        for has_minimum in [false, true] {
            let quantization = Quantization { has_minimum, ..SIGNED };
            let read = |columns: u64| {
                let mut weight = weight(3, columns, 20, quantization);
                weight.source = WeightSource::Tensors(vec![part("plain", 3, 3)]);
                let mut block = QuantizedBlock::new(quantization, 3, columns as usize);
                let mut rows = block.rows(0..3);
                weight.read_groups(&Blocks, 0, &mut rows).expect("three rows");
                let integers = rows.integers.chunks(columns as usize);
                let integers: Vec<i8> = integers.flat_map(|row| row[..20].to_vec()).collect();
                let groups = columns.div_ceil(16) as usize;
                let scales = rows.scales.chunks(groups).chain(rows.minima.chunks(groups));
                (integers, scales.flat_map(|row| row[..2].to_vec()).collect::<Vec<f32>>())
            };
            assert_eq!(read(20), read(24));
            assert_eq!(read(20), read(40));
        }
    }

    #[test]
    fn formats_that_are_only_kept_are_not_made() {
        let mut weight = weight(2, 16, 16, FORMAT);
        weight.source = WeightSource::Tensors(vec![part("signed", 2, 2)]);
        let error = weight.read_rounded_rows(&Blocks, 0, &mut [0.0; 32]).expect_err("another format");
        let expected = "weight `w` is int8:16 with scales in f32 and minima, which tensor `signed` is not";
        assert_eq!(error.to_string(), expected);
        weight.ty.quantization = None;
        let mut block = QuantizedBlock::new(FORMAT, 1, 16);
        assert!(weight.read_groups(&Blocks, 0, &mut block.rows(0..1)).is_err());
    }
}

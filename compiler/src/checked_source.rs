//! Tensors of a checkpoint, refused where they hold something that is not a number.
//!
//! One NaN in a weight makes every token that reads it garbage, and the program would say so in no way
//! but its text. So every element is looked at once on its way into the program.

use qwen2c_format::Diagnostic;
use qwen2c_graph::{SourceError, TensorSource};
use qwen2c_request::{Element, Quantization, QuantizedRows};

/// Largest value that rounds to a finite `f16`.
const LARGEST_F16: f32 = 65_519.996;

/// What to do about numbers that are none.
const DAMAGED: &str = "the checkpoint is damaged: download it again, or convert it again from its source";

/// A source whose elements are finite, in the type they will be stored in too.
pub(crate) struct CheckedSource<'a> {
    source: &'a (dyn TensorSource + Sync),
    largest: f32,
}

impl<'a> CheckedSource<'a> {
    /// Checks what comes from `source`, which will be stored as `dtype`.
    pub(crate) fn new(source: &'a (dyn TensorSource + Sync), dtype: Element) -> Self {
        let largest = if dtype == Element::F16 { LARGEST_F16 } else { f32::MAX };
        Self { source, largest }
    }
}

impl TensorSource for CheckedSource<'_> {
    fn read_rows(
        &self,
        tensor: &str,
        columns: u64,
        first_row: u64,
        out: &mut [f32],
    ) -> Result<(), SourceError> {
        self.source.read_rows(tensor, columns, first_row, out)?;
        // One comparison that vectorizes finds the common case; NaN compares false.
        if out.iter().fold(true, |all, value| all & (value.abs() <= self.largest)) {
            return Ok(());
        }
        Err(Box::new(refusal(tensor, columns, first_row, out, self.largest)))
    }

    fn quantization(&self, tensor: &str) -> Option<Quantization> {
        self.source.quantization(tensor)
    }

    fn read_groups(
        &self,
        tensor: &str,
        columns: u64,
        first_row: u64,
        out: &mut QuantizedRows<'_>,
    ) -> Result<(), SourceError> {
        self.source.read_groups(tensor, columns, first_row, out)?;
        // Groups are stored as they are, whatever the type of elements.
        if out.scales.iter().chain(&*out.minima).fold(true, |all, value| all & value.is_finite()) {
            return Ok(());
        }
        Err(Box::new(
            Diagnostic::new(format!("tensor `{tensor}` has scales that are not finite"))
                .at(format!("row {first_row} or one of the next"))
                .needed("finite numbers")
                .help(DAMAGED),
        ))
    }
}

fn refusal(tensor: &str, columns: u64, first_row: u64, out: &[f32], largest: f32) -> Diagnostic {
    let is_wrong = |value: &f32| value.is_nan() || value.abs() > largest;
    let index = out.iter().position(is_wrong).unwrap_or_default();
    let value = out.get(index).copied().unwrap_or(f32::NAN);
    let (row, column) = (first_row + index as u64 / columns, index as u64 % columns);
    let place = format!("row {row}, column {column}");
    if value.is_finite() {
        return Diagnostic::new(format!("tensor `{tensor}` holds values too large for `f16`"))
            .at(place)
            .found(value.to_string())
            .needed("at most 65504 in absolute value")
            .help("build with `--dtype bf16` or `--dtype f32`");
    }
    Diagnostic::new(format!("tensor `{tensor}` holds values that are not finite"))
        .at(place)
        .found(format!("{value}, and {} more like it nearby", out.iter().filter(|v| is_wrong(v)).count() - 1))
        .needed("finite numbers")
        .help(DAMAGED)
}

#[cfg(test)]
mod tests {
    use qwen2c_graph::{SourceError, TensorSource};
    use qwen2c_request::{Element, Quantization, QuantizedBlock, QuantizedRows};

    use super::CheckedSource;

    struct Filled(f32);

    impl TensorSource for Filled {
        fn read_rows(&self, _: &str, _: u64, _: u64, out: &mut [f32]) -> Result<(), SourceError> {
            out.fill(1.0);
            out[5] = self.0;
            Ok(())
        }

        fn quantization(&self, _: &str) -> Option<Quantization> {
            Some(Quantization::signed(8, 32))
        }

        fn read_groups(
            &self,
            _: &str,
            _: u64,
            _: u64,
            out: &mut QuantizedRows<'_>,
        ) -> Result<(), SourceError> {
            out.scales.fill(1.0);
            out.scales[1] = self.0;
            Ok(())
        }
    }

    fn read(value: f32, dtype: Element) -> Result<(), String> {
        let source = Filled(value);
        CheckedSource::new(&source, dtype)
            .read_rows("model.norm.weight", 4, 10, &mut [0.0; 8])
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_finite_is_named_with_its_place() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let message = read(value, Element::Bf16).unwrap_err();
            assert!(
                message.contains("`model.norm.weight`") && message.contains("row 11, column 1"),
                "{message}"
            );
        }
        assert_eq!(read(f32::MAX, Element::Bf16), Ok(()));
    }

    #[test]
    fn scales_that_are_not_finite_are_refused() {
        let read = |scale: f32| {
            let source = Filled(scale);
            let source = CheckedSource::new(&source, Element::F16);
            assert_eq!(source.quantization("w"), Some(Quantization::signed(8, 32)));
            let mut block = QuantizedBlock::new(Quantization::signed(8, 32), 2, 32);
            source.read_groups("w", 32, 10, &mut block.rows(0..2)).map_err(|error| error.to_string())
        };
        assert_eq!(read(f32::MAX), Ok(()));
        for scale in [f32::NAN, f32::NEG_INFINITY] {
            let message = read(scale).unwrap_err();
            assert!(message.contains("`w`") && message.contains("row 10"), "{message}");
        }
    }

    #[test]
    fn what_overflows_f16_is_refused_for_f16_only() {
        assert_eq!(read(65519.0, Element::F16), Ok(()));
        assert!(read(65520.0, Element::F16).unwrap_err().contains("--dtype bf16"));
        assert_eq!(read(65520.0, Element::F32), Ok(()));
    }
}

//! Operations on single elements, and those that move rows.

use super::operands::Operands;
use super::{Results, Tensor};

/// `x / (1 + exp(−x))`
pub(super) fn silu(x: f32) -> f32 {
    let x = f64::from(x);
    (x / (1.0 + libm::exp(-x))) as f32
}

/// `1 / (1 + exp(−x))`
pub(super) fn sigmoid(x: f32) -> f32 {
    (1.0 / (1.0 + libm::exp(-f64::from(x)))) as f32
}

/// One function of one input.
pub(super) fn map(operands: &Operands<'_>, function: impl Fn(f32) -> f32) -> Results {
    Ok(vec![Tensor::Floats(operands.floats(0).iter().map(|x| function(*x)).collect())])
}

/// One function of two inputs of the same shape.
pub(super) fn zip(operands: &Operands<'_>, function: impl Fn(f32, f32) -> f32) -> Results {
    let pairs = operands.floats(0).iter().zip(operands.floats(1));
    Ok(vec![Tensor::Floats(pairs.map(|(a, b)| function(*a, *b)).collect())])
}

/// [`Operation::ScaleRows`](qwen2c_request::Operation::ScaleRows)
pub(super) fn scale_rows(operands: &Operands<'_>) -> Results {
    let rows = operands.floats(0).chunks_exact(operands.input_width(0)).zip(operands.floats(1));
    let scaled = rows.flat_map(|(row, factor)| row.iter().map(move |x| x * factor));
    Ok(vec![Tensor::Floats(scaled.collect())])
}

/// Applies `$body` to the elements of an input whatever their type.
macro_rules! with_elements {
    ($operands:expr, $input:expr, |$elements:ident| $body:expr) => {
        match $operands.values[$operands.op.inputs[$input].0 as usize] {
            Some(Tensor::Integers(ref $elements)) => Tensor::Integers($body),
            _ => {
                let $elements = $operands.floats($input);
                Tensor::Floats($body)
            }
        }
    };
}

/// [`Operation::GatherRows`](qwen2c_request::Operation::GatherRows)
pub(super) fn gather_rows(operands: &Operands<'_>) -> Results {
    let width = operands.input_width(0);
    let rows = operands.indices(1, operands.rows() as u64)?;
    let gathered = with_elements!(operands, 0, |x| {
        rows.iter().flat_map(|row| &x[row * width..(row + 1) * width]).copied().collect()
    });
    Ok(vec![gathered])
}

/// [`Operation::Slice`](qwen2c_request::Operation::Slice)
pub(super) fn slice(operands: &Operands<'_>, first: usize) -> Results {
    let n = operands.input_extents(0).last().copied().unwrap_or(1);
    let m = operands.output_width(0) / (operands.input_width(0) / n);
    let sliced = with_elements!(operands, 0, |x| {
        x.chunks_exact(n).flat_map(|row| &row[first..first + m]).copied().collect()
    });
    Ok(vec![sliced])
}

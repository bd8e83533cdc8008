//! Root-mean-square normalization (Zhang and Sennrich 2019).

use std::borrow::Cow;

use super::operands::Operands;
use super::{InterpretError, Results, Tensor};

/// `x / sqrt(mean(x²) + epsilon) * w` of each row.
fn normalize(x: &[f32], weight: &[f32], epsilon: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(weight.len()) {
        let squares: f64 = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        let scale = 1.0 / (squares / row.len() as f64 + f64::from(epsilon)).sqrt();
        out.extend(row.iter().zip(weight).map(|(x, w)| (f64::from(*x) * scale * f64::from(*w)) as f32));
    }
    out
}

/// [`Operation::RmsNorm`](qwen2c_request::Operation::RmsNorm)
pub(super) fn rms_norm(operands: &mut Operands<'_>, epsilon: f32) -> Results {
    let x = operands.floats(0);
    Ok(vec![Tensor::Floats(normalize(x, operands.kept_weight(0)?, epsilon))])
}

/// The first input of a product: where it has a norm, normalized with its last weight and rounded to the
/// type of its first.
pub(super) fn normalized_input<'a>(operands: &mut Operands<'a>) -> Result<Cow<'a, [f32]>, InterpretError> {
    let x = operands.floats(0);
    let Some(epsilon) = operands.op.operation.norm() else { return Ok(Cow::Borrowed(x)) };
    let element = operands.weight(0).ty.element;
    let weight = operands.kept_weight(operands.op.weights.len() - 1)?;
    let rows = normalize(x, weight, epsilon.0).into_iter().map(|value| element.round(value));
    Ok(Cow::Owned(rows.collect()))
}

/// [`Operation::AddAndNorm`](qwen2c_request::Operation::AddAndNorm)
pub(super) fn add_and_norm(operands: &mut Operands<'_>, epsilon: f32) -> Results {
    let sum: Vec<f32> = operands.floats(0).iter().zip(operands.floats(1)).map(|(a, b)| a + b).collect();
    let normalized = normalize(&sum, operands.kept_weight(0)?, epsilon);
    Ok(vec![Tensor::Floats(sum), Tensor::Floats(normalized)])
}

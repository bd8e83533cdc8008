//! Embedding, matrix products and biases.

use super::elementwise::silu;
use super::norm::normalized_input;
use super::operands::Operands;
use super::{InterpretError, Results, Tensor};

/// Sums that are kept apart, so that the loop can use vector registers; added up in order at the end.
const LANES: usize = 8;

/// `Σ a·b` in `f64`, always in the same order.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0_f64; LANES];
    let (a_lanes, b_lanes) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a_lanes.remainder().iter().zip(b_lanes.remainder());
    let rest: f64 = rest.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    for (a, b) in a_lanes.zip(b_lanes) {
        for lane in 0..LANES {
            sums[lane] += f64::from(a[lane]) * f64::from(b[lane]);
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// [`Operation::Embed`](qwen2c_request::Operation::Embed)
pub(super) fn embed(operands: &mut Operands<'_>) -> Results {
    let vocabulary = operands.weight(0).rows();
    let tokens = operands.indices(0, vocabulary)?;
    let mut out = operands.zeros(0);
    for (token, row) in tokens.into_iter().zip(out.chunks_exact_mut(operands.output_width(0))) {
        operands.weight_row(0, token as u64, row)?;
    }
    Ok(vec![Tensor::Floats(out)])
}

/// [`Operation::Matmul`](qwen2c_request::Operation::Matmul)
pub(super) fn matmul(
    operands: &mut Operands<'_>,
    bias: bool,
    residual: bool,
    silu_multiply: bool,
) -> Results {
    let n = operands.weight(0).rows() as usize;
    let mut product = product(operands)?;
    if bias {
        add_to_rows(&mut product, operands.kept_weight(1)?);
    }
    if residual {
        product.iter_mut().zip(operands.floats(1)).for_each(|(y, residual)| *y += residual);
    }
    if silu_multiply {
        product = silu_multiply_halves(&product, n);
    }
    Ok(vec![Tensor::Floats(product)])
}

/// The rows of the first input, normalized where the operation says so, times the first weight.
pub(super) fn product(operands: &mut Operands<'_>) -> Result<Vec<f32>, InterpretError> {
    let x = normalized_input(operands)?;
    let k = operands.input_width(0);
    let n = operands.weight(0).rows() as usize;
    let mut product = vec![0.0; operands.rows() * n];
    operands.for_each_weight_row(0, 0, n as u64, |column, weight| {
        for (x, y) in x.chunks_exact(k).zip(product.chunks_exact_mut(n)) {
            y[column] = dot(x, weight) as f32;
        }
    })?;
    Ok(product)
}

/// `silu(first half) * second half` of each row of `width` elements.
pub(super) fn silu_multiply_halves(x: &[f32], width: usize) -> Vec<f32> {
    x.chunks_exact(width)
        .flat_map(|row| {
            let (gates, ups) = row.split_at(width / 2);
            gates.iter().zip(ups).map(|(gate, up)| silu(*gate) * up)
        })
        .collect()
}

/// [`Operation::AddBias`](qwen2c_request::Operation::AddBias)
pub(super) fn add_bias(operands: &mut Operands<'_>) -> Results {
    let mut out = operands.floats(0).to_vec();
    add_to_rows(&mut out, operands.kept_weight(0)?);
    Ok(vec![Tensor::Floats(out)])
}

/// Adds `bias` to each row.
pub(super) fn add_to_rows(rows: &mut [f32], bias: &[f32]) {
    for row in rows.chunks_exact_mut(bias.len()) {
        row.iter_mut().zip(bias).for_each(|(element, bias)| *element += bias);
    }
}

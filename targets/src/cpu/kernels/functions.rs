//! Elementary functions as polynomials: kernels call no libc, so that tokens do not vary with the
//! machine's libm.

use std::f32::consts::LN_2;

use crate::builder::{KernelBuilder, Reduction, Scalar, Val};

/// Below this, `exp` is smaller than the smallest normal number.
const EXP_SMALLEST: f32 = -87.0;
/// Above this, `exp` overflows.
const EXP_LARGEST: f32 = 88.0;

/// `exp(x)` with a relative error below 2e-7, `x` clamped to −87 … 88.
///
/// `x = n·ln 2 + r` with `|r| ≤ ln 2 / 2` (ln 2 in two parts, Cody and Waite), `exp(r)` by the
/// polynomial of Cephes' `expf`, and `n` added to the exponent's bits.
pub(super) fn exp<'k>(k: &'k KernelBuilder<'k>, x: Val<'k>) -> Val<'k> {
    let lanes = x.ty.lanes;
    let constant = |value: f32| k.float(value, lanes);
    let x = x.maximum(constant(EXP_SMALLEST)).minimum(constant(EXP_LARGEST));
    let n = (x * constant(std::f32::consts::LOG2_E)).round_to_even();
    let r = n.multiply_add(constant(-0.693_359_4), x);
    let r = n.multiply_add(constant(2.121_944_4e-4), r);
    let coefficients = [1.987_569_2e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5];
    let mut polynomial = constant(coefficients[0]);
    for coefficient in &coefficients[1..] {
        polynomial = polynomial.multiply_add(r, constant(*coefficient));
    }
    let value = polynomial.multiply_add(r * r, r + constant(1.0));
    let exponent = (n.to_integer() + k.int_vector(Scalar::I32, 127, lanes)).shift_left(23);
    value * exponent.bitcast(Scalar::F32)
}

/// `2^x` for `x ≤ 0` with a relative error below 2e-7, exactly 1 for 0; `x` is at least −125.
///
/// `x = n + r` with `|r| ≤ 1/2`, `2^r` by a polynomial (least largest relative error of those that start
/// with 1 + x ln 2), and `n` added to the exponent's bits. A sum with 1.5 · 2²³ has `n` in its lowest bits. That is 11
/// instructions where [`exp`] has 18.
pub(super) fn exp2_of_negative<'k>(k: &'k KernelBuilder<'k>, x: Val<'k>) -> Val<'k> {
    let lanes = x.ty.lanes;
    let constant = |value: f32| k.float(value, lanes);
    let x = x.maximum(constant(-125.0));
    let shifted = x + constant(12_582_912.0);
    let r = x - (shifted - constant(12_582_912.0));
    let coefficients = [1.330_060_5e-3, 9.669_691e-3, 5.550_558_5e-2, 2.402_228_3e-1, LN_2, 1.0];
    let mut polynomial = constant(coefficients[0]);
    for coefficient in &coefficients[1..] {
        polynomial = polynomial.multiply_add(r, constant(*coefficient));
    }
    let exponent = shifted.bitcast(Scalar::I32).shift_left(23);
    (polynomial.bitcast(Scalar::I32) + exponent).bitcast(Scalar::F32)
}

/// `1 / (1 + exp(−x))`.
pub(super) fn sigmoid<'k>(k: &'k KernelBuilder<'k>, x: Val<'k>) -> Val<'k> {
    let one = k.float(1.0, x.ty.lanes);
    one / (one + exp(k, k.float(0.0, x.ty.lanes) - x))
}

/// `x / (1 + exp(−x))`.
pub(super) fn silu<'k>(k: &'k KernelBuilder<'k>, x: Val<'k>) -> Val<'k> {
    x / (k.float(1.0, x.ty.lanes) + exp(k, k.float(0.0, x.ty.lanes) - x))
}

/// Softmax over `length` elements: `load(offset, lanes)` gives them, `store(offset, value)` takes the
/// results; `store` may overwrite what `load` read at the same offset.
pub(super) fn softmax<'k>(
    k: &'k KernelBuilder<'k>,
    length: Val<'k>,
    lanes: u32,
    load: impl Fn(Val<'k>, u32) -> Val<'k>,
    store: impl Fn(Val<'k>, Val<'k>),
) {
    let largest = k.fold_chunks(length, lanes, f32::MIN, Reduction::Maximum, &load);
    let term = |offset: Val<'k>, lanes: u32| exp(k, load(offset, lanes) - largest.splat(lanes));
    let sum = k.fold_chunks(length, lanes, 0.0, Reduction::Sum, term);
    let inverse = k.float(1.0, 1) / sum;
    k.for_each_chunk(length, lanes, |offset, lanes| {
        store(offset, term(offset, lanes) * inverse.splat(lanes))
    });
}

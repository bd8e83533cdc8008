//! Elementary functions in the device's own approximations, with what they lose said here.

use crate::builder::{KernelBuilder, Val};

/// log₂ e = the `f32` nearest to it + this.
const LOG2_E_REST: f32 = 1.925_963e-8;

/// Below this, `exp` is smaller than the smallest normal number.
const EXP_SMALLEST: f32 = -87.0;
/// Above this, `exp` overflows.
const EXP_LARGEST: f32 = 88.0;

/// `exp(x)` with a relative error below 2⁻²¹, `x` clamped to −87 … 88.
///
/// `2^t` with `t = x · log₂ e` rounded, times `1 + r · ln 2` for what rounding lost: at the ends of the range
/// that is a hundred times more than the device's own error.
pub(super) fn exp<'k>(k: &'k KernelBuilder<'k>, x: Val<'k>) -> Val<'k> {
    let constant = |value: f32| k.float(value, 1);
    let log2_e = constant(std::f32::consts::LOG2_E);
    let x = x.maximum(constant(EXP_SMALLEST)).minimum(constant(EXP_LARGEST));
    let power = x * log2_e;
    let rest = x.multiply_add(log2_e, constant(0.0) - power);
    let rest = x.multiply_add(constant(LOG2_E_REST), rest);
    let value = power.exp2_approximate();
    value.multiply_add(rest * constant(std::f32::consts::LN_2), value)
}

/// `1 / (1 + exp(−x))`.
pub(super) fn sigmoid<'k>(k: &'k KernelBuilder<'k>, x: Val<'k>) -> Val<'k> {
    let one = k.float(1.0, 1);
    one / (one + exp(k, k.float(0.0, 1) - x))
}

/// `x / (1 + exp(−x))`.
pub(super) fn silu<'k>(k: &'k KernelBuilder<'k>, x: Val<'k>) -> Val<'k> {
    x / (k.float(1.0, 1) + exp(k, k.float(0.0, 1) - x))
}

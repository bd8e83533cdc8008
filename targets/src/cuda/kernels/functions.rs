//! Elementary functions in the device's own approximations, with what they lose said here.

use crate::builder::{KernelBuilder, Val};

/// `exp(x)` with a relative error below 2⁻²¹ for |x| ≤ 88: `2^(x · log₂ e)`.
pub(super) fn exp<'k>(k: &'k KernelBuilder<'k>, x: Val<'k>) -> Val<'k> {
    (x * k.float(std::f32::consts::LOG2_E, 1)).exp2_approximate()
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

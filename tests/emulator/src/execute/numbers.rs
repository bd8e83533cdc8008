//! Short floating-point numbers, and sums that are rounded once.

use super::registers::Scalar;
use crate::ptx::decode::convert::Rounding;

/// Half precision: 1 sign bit, 5 of exponent, 10 of mantissa.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Half(pub(crate) u16);

/// The upper half of a single-precision number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Brain(pub(crate) u16);

/// A number of 16 bits that is computed with as a wider one.
pub(crate) trait Short: Copy {
    fn widen(self) -> f32;
    /// The nearest number of this type; `exact` must not have been rounded to even before.
    fn round(exact: f64) -> Self;
    fn from_bits(bits: u16) -> Self;
    fn bits(self) -> u16;
}

impl Short for Half {
    #[inline(always)]
    fn widen(self) -> f32 {
        let sign = u32::from(self.0 & 0x8000) << 16;
        let rest = u32::from(self.0 & 0x7fff);
        // Exponents move by 112; multiplying does it for subnormal numbers too.
        let magnitude = f32::from_bits(rest << 13) * f32::from_bits(0x7780_0000);
        let is_special = rest >= 0x7c00;
        let bits = if is_special { rest << 13 | 0x7f80_0000 } else { magnitude.to_bits() };
        f32::from_bits(bits | sign)
    }
    fn round(exact: f64) -> Half {
        Half(round_to_format(exact, HALF, Rounding::Nearest) as u16)
    }
    fn from_bits(bits: u16) -> Half {
        Half(bits)
    }
    fn bits(self) -> u16 {
        self.0
    }
}

impl Short for Brain {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
    fn round(exact: f64) -> Brain {
        Brain(round_to_format(exact, BRAIN, Rounding::Nearest) as u16)
    }
    fn from_bits(bits: u16) -> Brain {
        Brain(bits)
    }
    fn bits(self) -> u16 {
        self.0
    }
}

impl Brain {
    /// The nearest number, quickly.
    #[inline(always)]
    pub(crate) fn nearest(value: f32) -> Brain {
        let bits = value.to_bits();
        if value.is_nan() {
            return Brain(0x7fff);
        }
        Brain((bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16)
    }
}

macro_rules! short_scalar {
    ($($kind:ident),*) => {$(
        impl Scalar for $kind {
            type Word = u32;
            #[inline(always)]
            fn from_word(word: u32) -> $kind {
                $kind(word as u16)
            }
            #[inline(always)]
            fn into_word(self) -> u32 {
                u32::from(self.0)
            }
        }
    )*};
}

short_scalar!(Half, Brain);

/// A pair of short numbers, the first in the lower half.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair<S>(pub(crate) S, pub(crate) S);

impl<S: Short> Scalar for Pair<S> {
    type Word = u32;
    #[inline(always)]
    fn from_word(word: u32) -> Pair<S> {
        Pair(S::from_bits(word as u16), S::from_bits((word >> 16) as u16))
    }
    #[inline(always)]
    fn into_word(self) -> u32 {
        u32::from(self.0.bits()) | u32::from(self.1.bits()) << 16
    }
}

/// A binary floating-point format up to 32 bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    exponent_bits: u32,
    mantissa_bits: u32,
}

pub(crate) const HALF: Format = Format { exponent_bits: 5, mantissa_bits: 10 };
pub(crate) const BRAIN: Format = Format { exponent_bits: 8, mantissa_bits: 7 };
pub(crate) const SINGLE: Format = Format { exponent_bits: 8, mantissa_bits: 23 };
/// Single precision with the mantissa of half precision; its bits are those of a single, cut.
pub(crate) const TENSOR: Format = Format { exponent_bits: 8, mantissa_bits: 10 };

/// Bits of the number of `format` that `value` is rounded to.
pub(crate) fn round_to_format(value: f64, format: Format, rounding: Rounding) -> u32 {
    let Format { exponent_bits, mantissa_bits } = format;
    let sign = u32::from(value.is_sign_negative()) << (exponent_bits + mantissa_bits);
    let infinity = ((1 << exponent_bits) - 1) << mantissa_bits;
    if value.is_nan() {
        return (1 << (exponent_bits + mantissa_bits)) - 1;
    }
    let magnitude = value.abs();
    if magnitude.is_infinite() {
        return sign | infinity;
    }
    let bias = (1 << (exponent_bits - 1)) - 1;
    let lowest = 1 - bias;
    let exponent = if magnitude == 0.0 { lowest } else { exponent_of(magnitude).max(lowest) };
    // A whole number of units in the last place; scaling by powers of two is exact here.
    let scaled = magnitude * power_of_two(i64::from(mantissa_bits) - exponent);
    let units = round_whole(scaled, rounding, sign != 0);
    let units = units as u64;
    let mut bits = ((exponent - lowest) as u64) << mantissa_bits;
    // The leading one of normal numbers adds one to the exponent; a carry does, too.
    bits += units;
    if bits >= u64::from(infinity) {
        let stays_finite = match rounding {
            Rounding::Zero => true,
            Rounding::Down => sign == 0,
            Rounding::Up => sign != 0,
            Rounding::Nearest | Rounding::NearestAway => false,
        };
        return sign | if stays_finite { infinity - 1 } else { infinity };
    }
    sign | bits as u32
}

/// Exponent of the highest bit.
fn exponent_of(magnitude: f64) -> i64 {
    let bits = magnitude.to_bits();
    let exponent = (bits >> 52) as i64;
    if exponent == 0 { 63 - i64::from(bits.leading_zeros()) - 1074 } else { exponent - 1023 }
}

/// Two to `exponent`, for -1022 … 1023.
fn power_of_two(exponent: i64) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// The whole number that a magnitude is rounded to; `negative` tells its sign.
pub(crate) fn round_whole(magnitude: f64, rounding: Rounding, negative: bool) -> f64 {
    match rounding {
        Rounding::Nearest => magnitude.round_ties_even(),
        Rounding::NearestAway => magnitude.round(),
        Rounding::Zero => magnitude.trunc(),
        Rounding::Down => {
            if negative {
                magnitude.ceil()
            } else {
                magnitude.floor()
            }
        }
        Rounding::Up => {
            if negative {
                magnitude.floor()
            } else {
                magnitude.ceil()
            }
        }
    }
}

/// `first * second + third`, rounded so that a second rounding to a short type finds the right neighbour.
///
/// The product must be exact. Where the sum is not, its last bit is made odd.
pub(crate) fn fused(first: f64, second: f64, third: f64) -> f64 {
    let product = first * second;
    let sum = product + third;
    if !sum.is_finite() {
        return sum;
    }
    let part = sum - product;
    let error = (product - (sum - part)) + (third - part);
    if error == 0.0 || sum.to_bits() & 1 == 1 {
        return sum;
    }
    let grows = (error > 0.0) == (sum > 0.0);
    f64::from_bits(if grows { sum.to_bits() + 1 } else { sum.to_bits() - 1 })
}

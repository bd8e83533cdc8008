//! Executes sums, products, quotients and minima of whole numbers.

use super::registers::{Registers, Scalar};
use crate::ptx::Type;
use crate::ptx::decode::integer::{Integer, IntegerOperation as Is};

/// A whole number with the operations of PTX.
trait Whole: Scalar + Ord {
    type Wide: Scalar;
    fn add(self, other: Self) -> Self;
    fn subtract(self, other: Self) -> Self;
    fn multiply(self, other: Self) -> Self;
    fn multiply_high(self, other: Self) -> Self;
    fn multiply_wide(self, other: Self) -> Self::Wide;
    fn add_wide(first: Self::Wide, second: Self::Wide) -> Self::Wide;
    /// All ones where the divisor is zero, as hardware gives.
    fn divide(self, other: Self) -> Self;
    fn remainder(self, other: Self) -> Self;
    fn absolute(self) -> Self;
    fn negate(self) -> Self;
}

macro_rules! whole {
    ($($kind:ty, $wide:ty, $double:ty, $absolute:ident;)*) => {$(
        impl Whole for $kind {
            type Wide = $wide;
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            fn subtract(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
            fn multiply(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }
            fn multiply_high(self, other: Self) -> Self {
                ((self as $double).wrapping_mul(other as $double) >> <$kind>::BITS) as $kind
            }
            fn multiply_wide(self, other: Self) -> $wide {
                (self as $wide).wrapping_mul(other as $wide)
            }
            fn add_wide(first: $wide, second: $wide) -> $wide {
                first.wrapping_add(second)
            }
            fn divide(self, other: Self) -> Self {
                if other == 0 { !0 } else { self.wrapping_div(other) }
            }
            fn remainder(self, other: Self) -> Self {
                if other == 0 { self } else { self.wrapping_rem(other) }
            }
            fn absolute(self) -> Self {
                self.$absolute()
            }
            fn negate(self) -> Self {
                self.wrapping_neg()
            }
        }
    )*};
}

/// Unsigned numbers are their own absolute value.
trait Unsigned {
    fn itself(self) -> Self;
}

macro_rules! unsigned {
    ($($kind:ty),*) => {$(
        impl Unsigned for $kind {
            fn itself(self) -> $kind {
                self
            }
        }
    )*};
}

unsigned!(u16, u32, u64);

whole! {
    u16, u32, u32, itself;
    i16, i32, i32, wrapping_abs;
    u32, u64, u64, itself;
    i32, i64, i64, wrapping_abs;
    u64, u64, u128, itself;
    i64, i64, i128, wrapping_abs;
}

pub(crate) fn execute(instruction: &Integer, registers: &mut Registers) {
    if let Is::DotBytes { first_signed, second_signed } = instruction.operation {
        let slots = (instruction.first, instruction.second, instruction.third);
        return registers.map_three(instruction.to, slots, |first: u32, second: u32, sum: u32| {
            dot(first, first_signed, second, second_signed, sum)
        });
    }
    match instruction.kind {
        Type::S16 => run::<i16>(instruction, registers),
        Type::U16 | Type::B16 => run::<u16>(instruction, registers),
        Type::S32 => run::<i32>(instruction, registers),
        Type::S64 => run::<i64>(instruction, registers),
        Type::U64 | Type::B64 => run::<u64>(instruction, registers),
        _ => run::<u32>(instruction, registers),
    }
}

fn run<T: Whole>(instruction: &Integer, registers: &mut Registers) {
    let &Integer { operation, to, first, second, third, .. } = instruction;
    let two = (first, second);
    let three = (first, second, third);
    match operation {
        Is::Add => registers.map_two(to, two, T::add),
        Is::Subtract => registers.map_two(to, two, T::subtract),
        Is::MultiplyLow => registers.map_two(to, two, T::multiply),
        Is::MultiplyHigh => registers.map_two(to, two, T::multiply_high),
        Is::MultiplyWide => registers.map_two(to, two, T::multiply_wide),
        Is::MultiplyAddLow => registers.map_three(to, three, |a: T, b: T, c: T| a.multiply(b).add(c)),
        Is::MultiplyAddHigh => registers.map_three(to, three, |a: T, b: T, c: T| a.multiply_high(b).add(c)),
        Is::MultiplyAddWide => {
            registers.map_three(to, three, |a: T, b: T, c: T::Wide| T::add_wide(a.multiply_wide(b), c));
        }
        Is::Divide => registers.map_two(to, two, T::divide),
        Is::Remainder => registers.map_two(to, two, T::remainder),
        Is::Absolute => registers.map(to, first, T::absolute),
        Is::Negate => registers.map(to, first, T::negate),
        Is::Minimum => registers.map_two(to, two, T::min),
        Is::Maximum => registers.map_two(to, two, T::max),
        Is::DotBytes { .. } => {}
    }
}

fn dot(first: u32, first_signed: bool, second: u32, second_signed: bool, sum: u32) -> u32 {
    let byte = |word: u32, at: usize, signed: bool| {
        let byte = word.to_le_bytes()[at];
        if signed { i32::from(byte as i8) } else { i32::from(byte) }
    };
    (0..4).fold(sum, |sum, at| {
        let product = byte(first, at, first_signed) * byte(second, at, second_signed);
        sum.wrapping_add(product as u32)
    })
}

//! Executes conversions.

use super::numbers::{BRAIN, Brain, Format, HALF, Half, SINGLE, Short, TENSOR, round_to_format, round_whole};
use super::registers::{LANES, Lanes, Registers};
use crate::ptx::Type;
use crate::ptx::decode::convert::{Convert, Rounding};
use crate::ptx::registers::Slot;

pub(crate) fn execute(instruction: &Convert, registers: &mut Registers) {
    let is_plain = !instruction.saturates && !instruction.flushes && !instruction.rectifies;
    let is_nearest = instruction.rounding == Rounding::Nearest && !instruction.integral;
    match (instruction.into, instruction.from) {
        // The conversions that kernels are full of, quickly.
        (Type::F32, Type::F16) if is_plain => {
            registers.map(instruction.to, instruction.first, |value: Half| value.widen());
        }
        (Type::F32, Type::BF16) if is_plain => {
            registers.map(instruction.to, instruction.first, |value: Brain| value.widen());
        }
        (Type::BF16, Type::F32) if is_plain && is_nearest && instruction.to_bytes == 2 => {
            registers.map(instruction.to, instruction.first, Brain::nearest);
        }
        (Type::F16x2 | Type::BF16x2, _) => pair(instruction, registers),
        _ => generally(instruction, registers),
    }
}

fn words(registers: &mut Registers, slot: Slot, bytes: u32) -> Lanes<u64> {
    if bytes == 8 { registers.read::<u64>(slot) } else { registers.read::<u32>(slot).map(u64::from) }
}

fn generally(instruction: &Convert, registers: &mut Registers) {
    let from = words(registers, instruction.first, instruction.first_bytes);
    let mut values: Lanes<u64> = [0; LANES];
    for lane in 0..LANES {
        values[lane] = convert(instruction, from[lane]);
    }
    if instruction.to_bytes == 8 {
        registers.write(instruction.to, values);
    } else {
        let mask = if instruction.to_bytes == 2 { 0xffff } else { u32::MAX };
        registers.write(instruction.to, values.map(|value| value as u32 & mask));
    }
}

fn pair(instruction: &Convert, registers: &mut Registers) {
    let high = registers.read::<u32>(instruction.first);
    let low = instruction.second.map_or(high, |slot| registers.read::<u32>(slot));
    let format = if instruction.into == Type::F16x2 { HALF } else { BRAIN };
    let short = |bits: u32| {
        let value = f64::from(f32::from_bits(bits));
        let value = if instruction.rectifies && value < 0.0 { 0.0 } else { value };
        round_to_format(value, format, instruction.rounding)
    };
    let is_quick = instruction.rounding == Rounding::Nearest && instruction.into == Type::BF16x2;
    let quick = |bits: u32| u32::from(Brain::nearest(f32::from_bits(bits)).0);
    registers.write(
        instruction.to,
        std::array::from_fn(|lane| {
            if is_quick && !instruction.rectifies {
                quick(high[lane]) << 16 | quick(low[lane])
            } else {
                short(high[lane]) << 16 | short(low[lane])
            }
        }),
    );
}

/// A value as it is before it is fitted into the destination.
enum Value {
    Whole(i128),
    Number(f64),
}

fn convert(instruction: &Convert, word: u64) -> u64 {
    let flushed =
        |value: f32| if instruction.flushes && value.is_subnormal() { 0f32.copysign(value) } else { value };
    let value = match instruction.from {
        Type::F16 => Value::Number(f64::from(Half(word as u16).widen())),
        Type::BF16 => Value::Number(f64::from(Brain(word as u16).widen())),
        Type::F32 => Value::Number(f64::from(flushed(f32::from_bits(word as u32)))),
        Type::F64 => Value::Number(f64::from_bits(word)),
        kind => {
            let excess = 64 - 8 * kind.bytes();
            let shifted = word << excess;
            Value::Whole(if kind.is_signed() {
                i128::from(shifted as i64 >> excess)
            } else {
                i128::from(shifted >> excess)
            })
        }
    };
    match instruction.into {
        Type::F16 | Type::BF16 | Type::F32 | Type::TF32 | Type::F64 => into_float(instruction, value),
        kind => into_whole(instruction, kind, value),
    }
}

fn into_float(instruction: &Convert, value: Value) -> u64 {
    let number = match value {
        // Up to 2^53 nothing is lost; beyond, the directed roundings of 64-bit integers are not needed.
        Value::Whole(whole) => whole as f64,
        Value::Number(number) if instruction.integral && number.is_finite() => {
            let negative = number.is_sign_negative();
            round_whole(number.abs(), instruction.rounding, negative).copysign(number)
        }
        Value::Number(number) => number,
    };
    let number = if instruction.saturates {
        if number.is_nan() { 0.0 } else { number.clamp(0.0, 1.0) }
    } else if instruction.rectifies && number < 0.0 {
        0.0
    } else {
        number
    };
    let rounded = |format: Format| u64::from(round_to_format(number, format, instruction.rounding));
    match instruction.into {
        Type::F16 => rounded(HALF),
        Type::BF16 => rounded(BRAIN),
        Type::TF32 => {
            let bits = rounded(TENSOR);
            // Sign and exponent lie as in a single, thirteen bits of the mantissa are zero.
            bits << 13
        }
        Type::F32 => {
            let bits = rounded(SINGLE);
            let is_subnormal = f32::from_bits(bits as u32).is_subnormal();
            if instruction.flushes && is_subnormal { bits & 0x8000_0000 } else { bits }
        }
        _ => number.to_bits(),
    }
}

fn into_whole(instruction: &Convert, kind: Type, value: Value) -> u64 {
    let bits = 8 * kind.bytes();
    let (least, greatest) = if kind.is_signed() {
        (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
    } else {
        (0, (1i128 << bits) - 1)
    };
    let whole = match value {
        Value::Whole(whole) if instruction.saturates => whole.clamp(least, greatest),
        Value::Whole(whole) => whole,
        // Conversions from floats stop at the ends of the range; NaN becomes zero, in 64 bits the least.
        Value::Number(number) if number.is_nan() => 0,
        Value::Number(number) => {
            let magnitude = round_whole(number.abs(), instruction.rounding, number.is_sign_negative());
            (magnitude.copysign(number) as i128).clamp(least, greatest)
        }
    };
    // Into the type, then extended to the register as the type's sign demands.
    let excess = 64 - bits;
    let shifted = (whole as u64) << excess;
    if kind.is_signed() { (shifted as i64 >> excess) as u64 } else { shifted >> excess }
}

//! Executes floating-point operations.
//!
//! What PTX calls approximate is computed more exactly than hardware does; a kernel must not rely on that.

use super::numbers::{Brain, Half, Pair, Short, fused};
use super::registers::{Registers, Scalar};
use crate::ptx::Type;
use crate::ptx::decode::float::{Float, FloatOperation as Is};

/// Operations of lanes that the instruction counts as.
pub(crate) fn operations(instruction: &Float) -> u64 {
    let pair = if matches!(instruction.kind, Type::F16x2 | Type::BF16x2 | Type::F32x2) { 2 } else { 1 };
    let each = match instruction.operation {
        Is::MultiplyAdd => 2,
        Is::Absolute | Is::Negate | Is::CopySign => 0,
        _ => 1,
    };
    pair * each
}

pub(crate) fn execute(instruction: &Float, registers: &mut Registers) {
    match instruction.kind {
        Type::F32 => single(instruction, registers),
        Type::F64 => double(instruction, registers),
        Type::F16 => short::<Half>(instruction, registers),
        Type::BF16 => short::<Brain>(instruction, registers),
        Type::F16x2 => pair::<Half>(instruction, registers),
        Type::F32x2 => singles(instruction, registers),
        _ => pair::<Brain>(instruction, registers),
    }
}

fn flush(value: f32) -> f32 {
    if value.is_subnormal() { 0f32.copysign(value) } else { value }
}

fn single(instruction: &Float, registers: &mut Registers) {
    if instruction.flushes || instruction.saturates {
        return single_with_modifiers(instruction, registers);
    }
    let &Float { operation, to, first, second, third, .. } = instruction;
    let two = (first, second);
    match operation {
        Is::Add => registers.map_two(to, two, |a: f32, b: f32| a + b),
        Is::Subtract => registers.map_two(to, two, |a: f32, b: f32| a - b),
        Is::Multiply => registers.map_two(to, two, |a: f32, b: f32| a * b),
        Is::MultiplyAdd => registers.map_three(to, (first, second, third), f32::mul_add),
        Is::Negate => registers.map(to, first, |a: f32| -a),
        Is::Absolute => registers.map(to, first, f32::abs),
        _ => registers.map_three(to, (first, second, third), |a, b, c| of_singles(operation, a, b, c)),
    }
}

fn single_with_modifiers(instruction: &Float, registers: &mut Registers) {
    let &Float { operation, flushes, saturates, to, first, second, third, .. } = instruction;
    registers.map_three(to, (first, second, third), |a: f32, b: f32, c: f32| {
        let input = |value: f32| if flushes { flush(value) } else { value };
        let result = of_singles(operation, input(a), input(b), input(c));
        let result = if flushes { flush(result) } else { result };
        if !saturates {
            result
        } else if result.is_nan() {
            0.0
        } else {
            result.clamp(0.0, 1.0)
        }
    });
}

/// Two singles in one wide register.
fn singles(instruction: &Float, registers: &mut Registers) {
    let &Float { operation, flushes, to, first, second, third, .. } = instruction;
    registers.map_three(to, (first, second, third), |a: u64, b: u64, c: u64| {
        let part = |shift: u32| {
            let [a, b, c] = [a, b, c].map(|word| {
                let value = f32::from_bits((word >> shift) as u32);
                if flushes { flush(value) } else { value }
            });
            let result = of_singles(operation, a, b, c);
            u64::from((if flushes { flush(result) } else { result }).to_bits())
        };
        part(32) << 32 | part(0)
    });
}

/// One result in single precision, rounded once.
fn of_singles(operation: Is, a: f32, b: f32, c: f32) -> f32 {
    let exactly = f64::from(a);
    match operation {
        Is::Add => a + b,
        Is::Subtract => a - b,
        Is::Multiply => a * b,
        Is::MultiplyAdd => a.mul_add(b, c),
        Is::Divide => a / b,
        Is::Absolute => a.abs(),
        Is::Negate => -a,
        Is::Minimum { nan_wins } => least(a, b, nan_wins),
        Is::Maximum { nan_wins } => -least(-a, -b, nan_wins),
        Is::Reciprocal => 1.0 / a,
        Is::SquareRoot => a.sqrt(),
        Is::ReciprocalSquareRoot => (1.0 / exactly.sqrt()) as f32,
        Is::Exponential => exactly.exp2() as f32,
        Is::Logarithm => exactly.log2() as f32,
        Is::Sine => exactly.sin() as f32,
        Is::Cosine => exactly.cos() as f32,
        Is::HyperbolicTangent => exactly.tanh() as f32,
        // The sign of the first on the second.
        Is::CopySign => b.copysign(a),
    }
}

/// The lesser number; -0 is less than +0.
fn least(a: f32, b: f32, nan_wins: bool) -> f32 {
    if a.is_nan() || b.is_nan() {
        let both = a.is_nan() && b.is_nan();
        return if nan_wins || both {
            f32::from_bits(0x7fff_ffff)
        } else if a.is_nan() {
            b
        } else {
            a
        };
    }
    if a < b || (a == b && a.is_sign_negative()) { a } else { b }
}

fn double(instruction: &Float, registers: &mut Registers) {
    let &Float { operation, to, first, second, third, .. } = instruction;
    registers.map_three(to, (first, second, third), |a: f64, b: f64, c: f64| match operation {
        Is::Add => a + b,
        Is::Subtract => a - b,
        Is::Multiply => a * b,
        Is::MultiplyAdd => a.mul_add(b, c),
        Is::Divide => a / b,
        Is::Absolute => a.abs(),
        Is::Negate => -a,
        Is::Minimum { .. } => a.min(b),
        Is::Maximum { .. } => a.max(b),
        Is::Reciprocal => 1.0 / a,
        Is::SquareRoot => a.sqrt(),
        Is::ReciprocalSquareRoot => 1.0 / a.sqrt(),
        Is::CopySign => b.copysign(a),
        Is::Exponential | Is::Logarithm | Is::Sine | Is::Cosine | Is::HyperbolicTangent => f64::NAN,
    });
}

fn short<S: Short + Scalar>(instruction: &Float, registers: &mut Registers) {
    let slots = (instruction.first, instruction.second, instruction.third);
    registers.map_three(instruction.to, slots, |a: S, b: S, c: S| of_shorts(instruction, a, b, c));
}

fn pair<S: Short>(instruction: &Float, registers: &mut Registers) {
    let slots = (instruction.first, instruction.second, instruction.third);
    registers.map_three(instruction.to, slots, |a: Pair<S>, b: Pair<S>, c: Pair<S>| {
        Pair(of_shorts(instruction, a.0, b.0, c.0), of_shorts(instruction, a.1, b.1, c.1))
    });
}

fn of_shorts<S: Short>(instruction: &Float, a: S, b: S, c: S) -> S {
    match instruction.operation {
        // Signs change without rounding, NaNs included.
        Is::Negate => return S::from_bits(a.bits() ^ 0x8000),
        Is::Absolute => return S::from_bits(a.bits() & 0x7fff),
        _ => {}
    }
    let input = |value: S| f64::from(value.widen());
    let (a, b, c) = (input(a), input(b), input(c));
    let exact = match instruction.operation {
        Is::Add => fused(a, 1.0, b),
        Is::Subtract => fused(a, 1.0, -b),
        Is::Multiply => a * b,
        Is::MultiplyAdd => fused(a, b, c),
        operation => f64::from(of_singles(operation, a as f32, b as f32, c as f32)),
    };
    let exact = if instruction.rectifies && (exact < 0.0) { 0.0 } else { exact };
    let exact = if !instruction.saturates {
        exact
    } else if exact.is_nan() {
        0.0
    } else {
        exact.clamp(0.0, 1.0)
    };
    S::round(exact)
}

//! Floating-point numbers and pairs of short ones.

use super::Form;
use crate::ptx::Type;
use crate::ptx::registers::Slot;
use crate::ptx::resolver::Refusal;

/// What to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatOperation {
    Add,
    Subtract,
    Multiply,
    MultiplyAdd,
    Divide,
    Absolute,
    Negate,
    /// Minimum or maximum; whether a NaN wins over a number.
    Minimum {
        nan_wins: bool,
    },
    Maximum {
        nan_wins: bool,
    },
    Reciprocal,
    SquareRoot,
    ReciprocalSquareRoot,
    Exponential,
    Logarithm,
    Sine,
    Cosine,
    HyperbolicTangent,
    CopySign,
}

/// One instruction; operands it does not have repeat the first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Float {
    pub(crate) operation: FloatOperation,
    pub(crate) kind: Type,
    /// Subnormal inputs and results become zero.
    pub(crate) flushes: bool,
    /// The result is clamped to 0 … 1.
    pub(crate) saturates: bool,
    /// Negative results become zero.
    pub(crate) rectifies: bool,
    pub(crate) to: Slot,
    pub(crate) first: Slot,
    pub(crate) second: Slot,
    pub(crate) third: Slot,
}

/// Which precision or rounding an opcode may name, and the types it has.
fn allowed(opcode: &str, kind: Type, mode: &str) -> bool {
    let is_short = matches!(kind, Type::F16 | Type::F16x2 | Type::BF16 | Type::BF16x2);
    let is_single = kind == Type::F32;
    let is_double = kind == Type::F64;
    if kind == Type::F32x2 {
        return matches!((opcode, mode), ("add" | "sub" | "mul", "" | "rn") | ("fma", "rn"));
    }
    match opcode {
        "add" | "sub" | "mul" => matches!(mode, "" | "rn") && kind != Type::TF32,
        "fma" => mode == "rn" && kind != Type::TF32,
        "mad" => mode == "rn" && (is_single || is_double),
        "div" => (is_single && matches!(mode, "rn" | "approx" | "full")) || (is_double && mode == "rn"),
        "abs" | "neg" | "min" | "max" => mode.is_empty() && (is_short || is_single || is_double),
        "rcp" | "sqrt" => (is_single && matches!(mode, "rn" | "approx")) || (is_double && mode == "rn"),
        "rsqrt" => (is_single || is_double) && mode == "approx",
        "ex2" => (is_single || is_short) && mode == "approx",
        "tanh" => (is_single || is_short) && mode == "approx",
        "lg2" | "sin" | "cos" => is_single && mode == "approx",
        _ => mode.is_empty() && (is_single || is_double),
    }
}

pub(crate) fn decode(opcode: &str, form: &mut Form<'_, '_, '_, '_>) -> Result<Float, Refusal> {
    use FloatOperation as Is;
    let mode = form.modifiers.take_one(&["rn", "rz", "rm", "rp", "approx", "full"]).unwrap_or_default();
    let flushes = form.modifiers.take("ftz");
    let nan_wins = matches!(opcode, "min" | "max") && form.modifiers.take("NaN");
    let may_saturate = matches!(opcode, "add" | "sub" | "mul" | "fma" | "mad");
    let saturates = may_saturate && form.modifiers.take("sat");
    let rectifies = opcode == "fma" && form.modifiers.take("relu");
    let kind = form.kind()?;
    if !allowed(opcode, kind, mode) {
        return Err(format!("`{opcode}.{mode}` on {kind:?}"));
    }
    let (operation, sources) = match opcode {
        "add" => (Is::Add, 2),
        "sub" => (Is::Subtract, 2),
        "mul" => (Is::Multiply, 2),
        "fma" | "mad" => (Is::MultiplyAdd, 3),
        "div" => (Is::Divide, 2),
        "abs" => (Is::Absolute, 1),
        "neg" => (Is::Negate, 1),
        "min" => (Is::Minimum { nan_wins }, 2),
        "max" => (Is::Maximum { nan_wins }, 2),
        "rcp" => (Is::Reciprocal, 1),
        "sqrt" => (Is::SquareRoot, 1),
        "rsqrt" => (Is::ReciprocalSquareRoot, 1),
        "ex2" => (Is::Exponential, 1),
        "lg2" => (Is::Logarithm, 1),
        "sin" => (Is::Sine, 1),
        "cos" => (Is::Cosine, 1),
        "tanh" => (Is::HyperbolicTangent, 1),
        _ => (Is::CopySign, 2),
    };
    form.expect(1 + sources)?;
    let to = form.destination(0, kind)?;
    let first = form.source(1, kind)?;
    let second = if sources > 1 { form.source(2, kind)? } else { first };
    let third = if sources > 2 { form.source(3, kind)? } else { first };
    Ok(Float { operation, kind, flushes, saturates, rectifies, to, first, second, third })
}

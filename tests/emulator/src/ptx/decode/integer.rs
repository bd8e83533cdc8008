//! Whole numbers: sums, products, quotients, minima.

use super::Form;
use crate::ptx::Type;
use crate::ptx::registers::Slot;
use crate::ptx::resolver::Refusal;

/// What to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IntegerOperation {
    Add,
    Subtract,
    MultiplyLow,
    MultiplyHigh,
    MultiplyWide,
    MultiplyAddLow,
    MultiplyAddHigh,
    MultiplyAddWide,
    Divide,
    Remainder,
    Absolute,
    Negate,
    Minimum,
    Maximum,
    /// Products of four pairs of bytes, summed; whether each side is signed.
    DotBytes {
        first_signed: bool,
        second_signed: bool,
    },
}

/// One instruction; operands it does not have repeat the first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Integer {
    pub(crate) operation: IntegerOperation,
    pub(crate) kind: Type,
    pub(crate) to: Slot,
    pub(crate) first: Slot,
    pub(crate) second: Slot,
    pub(crate) third: Slot,
}

pub(crate) fn decode(opcode: &str, form: &mut Form<'_, '_, '_, '_>) -> Result<Integer, Refusal> {
    use IntegerOperation as Is;
    if opcode == "dp4a" {
        return dot(form);
    }
    let part = form.modifiers.take_one(&["lo", "hi", "wide"]).unwrap_or_default();
    let kind = form.kind()?;
    if kind.bytes() < 2 || kind.is_float() {
        return Err(format!("`{opcode}` on {kind:?}"));
    }
    let operation = match (opcode, part) {
        ("add", "") => Is::Add,
        ("sub", "") => Is::Subtract,
        ("mul", "lo") => Is::MultiplyLow,
        ("mul", "hi") => Is::MultiplyHigh,
        ("mul", "wide") => Is::MultiplyWide,
        ("mad", "lo") => Is::MultiplyAddLow,
        ("mad", "hi") => Is::MultiplyAddHigh,
        ("mad", "wide") => Is::MultiplyAddWide,
        ("div", "") => Is::Divide,
        ("rem", "") => Is::Remainder,
        ("abs", "") => Is::Absolute,
        ("neg", "") => Is::Negate,
        ("min", "") => Is::Minimum,
        ("max", "") => Is::Maximum,
        _ => return Err(format!("`{opcode}.{part}` is not known")),
    };
    let wide = match (operation, kind) {
        (Is::MultiplyWide | Is::MultiplyAddWide, Type::U16 | Type::S16) => Type::B32,
        (Is::MultiplyWide | Is::MultiplyAddWide, Type::U32 | Type::S32) => Type::B64,
        (Is::MultiplyWide | Is::MultiplyAddWide, _) => return Err(format!("`wide` of {kind:?}")),
        _ => kind,
    };
    let sources = match operation {
        Is::Absolute | Is::Negate => 1,
        Is::MultiplyAddLow | Is::MultiplyAddHigh | Is::MultiplyAddWide => 3,
        _ => 2,
    };
    form.expect(1 + sources)?;
    let to = form.destination(0, wide)?;
    let first = form.source(1, kind)?;
    let second = if sources > 1 { form.source(2, kind)? } else { first };
    let third = if sources > 2 { form.source(3, wide)? } else { first };
    Ok(Integer { operation, kind, to, first, second, third })
}

fn dot(form: &mut Form<'_, '_, '_, '_>) -> Result<Integer, Refusal> {
    form.expect(4)?;
    let (first_kind, second_kind) = (form.kind()?, form.kind()?);
    for kind in [first_kind, second_kind] {
        if !matches!(kind, Type::U32 | Type::S32) {
            return Err(format!("`dp4a` on {kind:?}"));
        }
    }
    let operation = IntegerOperation::DotBytes {
        first_signed: first_kind.is_signed(),
        second_signed: second_kind.is_signed(),
    };
    Ok(Integer {
        operation,
        kind: Type::U32,
        to: form.destination(0, Type::B32)?,
        first: form.source(1, Type::B32)?,
        second: form.source(2, Type::B32)?,
        third: form.source(3, Type::B32)?,
    })
}

//! Conversions between types.

use super::Form;
use crate::ptx::Type;
use crate::ptx::registers::Slot;
use crate::ptx::resolver::Refusal;

/// To which neighbour a result is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    /// The nearest, the even one of two.
    Nearest,
    /// The nearest, the one away from zero of two.
    NearestAway,
    Zero,
    Down,
    Up,
}

/// One conversion.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Convert {
    pub(crate) from: Type,
    pub(crate) into: Type,
    pub(crate) rounding: Rounding,
    /// Whether the result of a conversion between equal float types is to be a whole number.
    pub(crate) integral: bool,
    pub(crate) saturates: bool,
    pub(crate) flushes: bool,
    pub(crate) rectifies: bool,
    pub(crate) to: Slot,
    /// Bytes of the destination register, to which integers are extended.
    pub(crate) to_bytes: u32,
    pub(crate) first: Slot,
    /// Bytes of the source register.
    pub(crate) first_bytes: u32,
    /// The lower half of a pair.
    pub(crate) second: Option<Slot>,
}

pub(crate) fn decode(form: &mut Form<'_, '_, '_, '_>) -> Result<Convert, Refusal> {
    let mode = form.modifiers.take_one(&["rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi"]);
    let flushes = form.modifiers.take("ftz");
    let rectifies = form.modifiers.take("relu");
    let saturates = form.modifiers.take("sat");
    let (into, from) = (form.kind()?, form.kind()?);
    let (rounding, integral) = match mode {
        None => (Rounding::Nearest, false),
        Some("rn") => (Rounding::Nearest, false),
        Some("rna") => (Rounding::NearestAway, false),
        Some("rz") => (Rounding::Zero, false),
        Some("rm") => (Rounding::Down, false),
        Some("rp") => (Rounding::Up, false),
        Some("rni") => (Rounding::Nearest, true),
        Some("rzi") => (Rounding::Zero, true),
        Some("rmi") => (Rounding::Down, true),
        Some(_) => (Rounding::Up, true),
    };
    check(into, from, mode)?;
    let is_pair = matches!(into, Type::F16x2 | Type::BF16x2);
    form.expect(if is_pair { 3 } else { 2 })?;
    let (to, to_bytes) = form.resolver.wide_destination(&form.operands[0], into)?;
    let (first, first_bytes) = form.resolver.wide_source(&form.operands[1], from)?;
    let second = if is_pair { Some(form.source(2, from)?) } else { None };
    Ok(Convert {
        from,
        into,
        rounding,
        integral,
        saturates,
        flushes,
        rectifies,
        to,
        to_bytes,
        first,
        first_bytes,
        second,
    })
}

/// Refuses what PTX does not have, above all a rounding that is missing.
fn check(into: Type, from: Type, mode: Option<&str>) -> Result<(), Refusal> {
    let refusal =
        || Err(format!("`cvt` from {from:?} to {into:?} with rounding `{}`", mode.unwrap_or("none")));
    let is_plain_float = |kind: Type| matches!(kind, Type::F16 | Type::BF16 | Type::F32 | Type::F64);
    let fits = match (into, from) {
        (Type::Pred | Type::B8 | Type::B16 | Type::B32 | Type::B64, _) => false,
        (_, Type::Pred | Type::B8 | Type::B16 | Type::B32 | Type::B64) => false,
        (_, Type::TF32 | Type::F16x2 | Type::BF16x2 | Type::F32x2) | (Type::F32x2, _) => false,
        (Type::TF32, Type::F32) => matches!(mode, Some("rna" | "rn" | "rz")),
        (Type::F16x2 | Type::BF16x2, Type::F32) => matches!(mode, Some("rn" | "rz")),
        (Type::TF32 | Type::F16x2 | Type::BF16x2, _) => false,
        (into, from) if is_plain_float(into) && is_plain_float(from) => {
            let narrows = into.bytes() < from.bytes();
            let widens = into.bytes() > from.bytes();
            match mode {
                None => widens || into == from,
                Some("rni" | "rzi" | "rmi" | "rpi") => into == from,
                Some("rna") => false,
                Some(_) => narrows || (into != from && !widens),
            }
        }
        (into, _) if is_plain_float(into) => matches!(mode, Some("rn" | "rz" | "rm" | "rp")),
        (_, from) if is_plain_float(from) => matches!(mode, Some("rni" | "rzi" | "rmi" | "rpi")),
        _ => mode.is_none(),
    };
    if fits { Ok(()) } else { refusal() }
}

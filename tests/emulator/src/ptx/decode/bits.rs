//! Bits: logic, shifts, fields, permutations.

use super::Form;
use crate::ptx::Type;
use crate::ptx::registers::Slot;
use crate::ptx::resolver::Refusal;

/// What to do with the bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BitOperation {
    And,
    Or,
    Xor,
    Not,
    ShiftLeft,
    ShiftRight,
    /// A double word of `second:first` shifted by `third`; the upper or the lower half of it.
    Funnel {
        left: bool,
        wraps: bool,
    },
    /// Three inputs through the truth table.
    Table(u8),
    ExtractField,
    /// `first` into `second` at `third`, `fourth` bits.
    InsertField,
    Reverse,
    Count,
    LeadingZeros,
    Permute,
}

/// One instruction; operands it does not have repeat the first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bits {
    pub(crate) operation: BitOperation,
    pub(crate) kind: Type,
    pub(crate) to: Slot,
    pub(crate) first: Slot,
    pub(crate) second: Slot,
    pub(crate) third: Slot,
    pub(crate) fourth: Slot,
}

pub(crate) fn decode(opcode: &str, form: &mut Form<'_, '_, '_, '_>) -> Result<Bits, Refusal> {
    use BitOperation as Is;
    let direction = form.modifiers.take_one(&["l", "r"]);
    let excess = form.modifiers.take_one(&["clamp", "wrap"]);
    let kind = form.kind()?;
    let word = Type::B32;
    // The types of the destination and of the sources.
    let (operation, to, sources): (Is, Type, Vec<Type>) = match opcode {
        "and" => (Is::And, kind, vec![kind; 2]),
        "or" => (Is::Or, kind, vec![kind; 2]),
        "xor" => (Is::Xor, kind, vec![kind; 2]),
        "not" => (Is::Not, kind, vec![kind]),
        "shl" => (Is::ShiftLeft, kind, vec![kind, word]),
        "shr" => (Is::ShiftRight, kind, vec![kind, word]),
        "shf" => {
            let left = direction == Some("l");
            if direction.is_none() || excess.is_none() {
                return Err("`shf` says neither its direction nor what to do with large amounts".to_owned());
            }
            (Is::Funnel { left, wraps: excess == Some("wrap") }, kind, vec![kind, kind, word])
        }
        "lop3" => {
            form.expect(5)?;
            (Is::Table(form.literal(4)? as u8), kind, vec![kind; 3])
        }
        "bfe" => (Is::ExtractField, kind, vec![kind, word, word]),
        "bfi" => (Is::InsertField, kind, vec![kind, kind, word, word]),
        "brev" => (Is::Reverse, kind, vec![kind]),
        "popc" => (Is::Count, word, vec![kind]),
        "clz" => (Is::LeadingZeros, word, vec![kind]),
        _ => (Is::Permute, kind, vec![kind; 3]),
    };
    check(opcode, operation, kind)?;
    if !matches!(operation, Is::Table(_)) {
        form.expect(1 + sources.len())?;
    }
    let to = form.destination(0, to)?;
    let mut slots = Vec::with_capacity(4);
    for (at, source) in sources.iter().enumerate() {
        slots.push(form.source(1 + at, *source)?);
    }
    slots.resize(4, slots[0]);
    Ok(Bits { operation, kind, to, first: slots[0], second: slots[1], third: slots[2], fourth: slots[3] })
}

fn check(opcode: &str, operation: BitOperation, kind: Type) -> Result<(), Refusal> {
    use BitOperation as Is;
    let fits = match operation {
        Is::And | Is::Or | Is::Xor | Is::Not => {
            matches!(kind, Type::Pred | Type::B16 | Type::B32 | Type::B64)
        }
        Is::ShiftLeft => matches!(kind, Type::B16 | Type::B32 | Type::B64),
        Is::ShiftRight => kind.bytes() >= 2 && !kind.is_float(),
        Is::Funnel { .. } | Is::Table(_) | Is::Permute => kind == Type::B32,
        Is::ExtractField => matches!(kind, Type::U32 | Type::S32 | Type::U64 | Type::S64),
        Is::InsertField | Is::Reverse | Is::Count | Is::LeadingZeros => matches!(kind, Type::B32 | Type::B64),
    };
    if fits { Ok(()) } else { Err(format!("`{opcode}` on {kind:?}")) }
}

//! Comparisons, and choices by their result.

use super::Form;
use crate::ptx::Type;
use crate::ptx::registers::Slot;
use crate::ptx::resolver::{Predicate, Refusal};
use crate::ptx::statement::Operand;

/// What holds between two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    /// Both are numbers.
    Numbers,
    /// One is NaN.
    NotNumbers,
}

/// How a comparison is joined with a predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Join {
    And,
    Or,
    Xor,
}

/// One instruction of the group.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Compare {
    /// Two predicates: the result and, from the negated comparison, another.
    SetPredicate {
        relation: Relation,
        /// A comparison with NaN holds.
        unordered: bool,
        kind: Type,
        flushes: bool,
        join: Option<(Join, Predicate)>,
        to: Slot,
        other: Option<Slot>,
        first: Slot,
        second: Slot,
    },
    /// All ones or zero, or 1.0 or 0.0.
    SetNumber {
        relation: Relation,
        unordered: bool,
        kind: Type,
        flushes: bool,
        truth: u32,
        to: Slot,
        first: Slot,
        second: Slot,
    },
    /// `first` where the predicate holds.
    Select { kind: Type, by: Predicate, to: Slot, first: Slot, second: Slot },
}

const RELATIONS: [&str; 18] = [
    "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu",
    "num", "nan",
];

pub(crate) fn decode(opcode: &str, form: &mut Form<'_, '_, '_, '_>) -> Result<Compare, Refusal> {
    if opcode == "selp" {
        return select(form);
    }
    let relation = form.modifiers.take_one(&RELATIONS).ok_or("no comparison that is known")?;
    let join = form.modifiers.take_one(&["and", "or", "xor"]);
    let flushes = form.modifiers.take("ftz");
    let (relation, unordered) = relation_of(relation);
    if opcode == "set" {
        return set_number(form, relation, unordered, flushes);
    }
    let kind = form.kind()?;
    form.expect(if join.is_some() { 4 } else { 3 })?;
    if matches!(kind, Type::F16x2 | Type::BF16x2 | Type::F32x2 | Type::Pred | Type::TF32) || kind.bytes() < 2
    {
        return Err(format!("`setp` on {kind:?}"));
    }
    let (to, other) = match &form.operands[0] {
        Operand::Pair(pair) => {
            let to = form.resolver.destination(&pair[0], Type::Pred)?;
            (to, Some(form.resolver.destination(&pair[1], Type::Pred)?))
        }
        single => (form.resolver.destination(single, Type::Pred)?, None),
    };
    let first = form.source(1, kind)?;
    let second = form.source(2, kind)?;
    let join = match join {
        Some("and") => Some((Join::And, form.resolver.predicate(&form.operands[3])?)),
        Some("or") => Some((Join::Or, form.resolver.predicate(&form.operands[3])?)),
        Some(_) => Some((Join::Xor, form.resolver.predicate(&form.operands[3])?)),
        None => None,
    };
    Ok(Compare::SetPredicate { relation, unordered, kind, flushes, join, to, other, first, second })
}

fn relation_of(name: &str) -> (Relation, bool) {
    match name {
        "eq" => (Relation::Equal, false),
        "equ" => (Relation::Equal, true),
        "ne" => (Relation::NotEqual, false),
        "neu" => (Relation::NotEqual, true),
        "lt" | "lo" => (Relation::Less, false),
        "ltu" => (Relation::Less, true),
        "le" | "ls" => (Relation::LessEqual, false),
        "leu" => (Relation::LessEqual, true),
        "gt" | "hi" => (Relation::Greater, false),
        "gtu" => (Relation::Greater, true),
        "ge" | "hs" => (Relation::GreaterEqual, false),
        "geu" => (Relation::GreaterEqual, true),
        "num" => (Relation::Numbers, false),
        _ => (Relation::NotNumbers, false),
    }
}

fn set_number(
    form: &mut Form<'_, '_, '_, '_>,
    relation: Relation,
    unordered: bool,
    flushes: bool,
) -> Result<Compare, Refusal> {
    let (result, kind) = (form.kind()?, form.kind()?);
    let truth = match result {
        Type::U32 | Type::S32 => u32::MAX,
        Type::F32 => 1f32.to_bits(),
        _ => return Err(format!("`set` to {result:?}")),
    };
    if matches!(kind, Type::F16x2 | Type::BF16x2 | Type::F32x2 | Type::Pred | Type::TF32) || kind.bytes() < 2
    {
        return Err(format!("`set` on {kind:?}"));
    }
    form.expect(3)?;
    let to = form.destination(0, Type::B32)?;
    let (first, second) = (form.source(1, kind)?, form.source(2, kind)?);
    Ok(Compare::SetNumber { relation, unordered, kind, flushes, truth, to, first, second })
}

fn select(form: &mut Form<'_, '_, '_, '_>) -> Result<Compare, Refusal> {
    let kind = form.kind()?;
    if kind.bytes() < 2 {
        return Err(format!("`selp` on {kind:?}"));
    }
    form.expect(4)?;
    let to = form.destination(0, kind)?;
    let (first, second) = (form.source(1, kind)?, form.source(2, kind)?);
    let by = form.resolver.predicate(&form.operands[3])?;
    Ok(Compare::Select { kind, by, to, first, second })
}

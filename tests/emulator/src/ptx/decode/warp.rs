//! Exchanges between the lanes of a warp.

use super::Form;
use crate::ptx::Type;
use crate::ptx::registers::Slot;
use crate::ptx::resolver::{Predicate, Refusal};
use crate::ptx::statement::Operand;

/// From which lane a shuffle reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// What a vote gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Same,
    Ballot,
}

/// What a reduction over lanes computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Combine {
    Add,
    Minimum,
    Maximum,
    And,
    Or,
    Xor,
}

/// One instruction of the group.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Warp {
    Shuffle {
        mode: Shuffle,
        to: Slot,
        valid: Option<Slot>,
        from: Slot,
        lane: Slot,
        clamp: Slot,
        mask: Slot,
    },
    Vote {
        vote: Vote,
        to: Slot,
        by: Predicate,
        mask: Slot,
    },
    /// The lanes with the same value; `all` wants one value in every lane.
    Match {
        all: bool,
        kind: Type,
        to: Slot,
        holds: Option<Slot>,
        from: Slot,
        mask: Slot,
    },
    Reduce {
        combine: Combine,
        kind: Type,
        to: Slot,
        from: Slot,
        mask: Slot,
    },
    ActiveMask {
        to: Slot,
    },
}

pub(crate) fn decode(opcode: &str, form: &mut Form<'_, '_, '_, '_>) -> Result<Warp, Refusal> {
    if opcode == "activemask" {
        form.expect(1)?;
        form.kind()?;
        return Ok(Warp::ActiveMask { to: form.destination(0, Type::B32)? });
    }
    if !form.modifiers.take("sync") {
        return Err(format!("`{opcode}` without `sync`"));
    }
    match opcode {
        "shfl" => shuffle(form),
        "vote" => vote(form),
        "match" => equal(form),
        _ => reduce(form),
    }
}

/// The destination of `d|p`.
fn pair(form: &mut Form<'_, '_, '_, '_>) -> Result<(Slot, Option<Slot>), Refusal> {
    match &form.operands[0] {
        Operand::Pair(pair) => {
            let to = form.resolver.destination(&pair[0], Type::B32)?;
            Ok((to, Some(form.resolver.destination(&pair[1], Type::Pred)?)))
        }
        single => Ok((form.resolver.destination(single, Type::B32)?, None)),
    }
}

fn shuffle(form: &mut Form<'_, '_, '_, '_>) -> Result<Warp, Refusal> {
    let mode = match form.modifiers.take_one(&["up", "down", "bfly", "idx"]) {
        Some("up") => Shuffle::Up,
        Some("down") => Shuffle::Down,
        Some("bfly") => Shuffle::Butterfly,
        Some(_) => Shuffle::Index,
        None => return Err("a shuffle without a mode".to_owned()),
    };
    form.kind()?;
    form.expect(5)?;
    let (to, valid) = pair(form)?;
    let from = form.source(1, Type::B32)?;
    let lane = form.source(2, Type::B32)?;
    let clamp = form.source(3, Type::B32)?;
    Ok(Warp::Shuffle { mode, to, valid, from, lane, clamp, mask: form.source(4, Type::B32)? })
}

fn vote(form: &mut Form<'_, '_, '_, '_>) -> Result<Warp, Refusal> {
    let vote = match form.modifiers.take_one(&["all", "any", "uni", "ballot"]) {
        Some("all") => Vote::All,
        Some("any") => Vote::Any,
        Some("uni") => Vote::Same,
        Some(_) => Vote::Ballot,
        None => return Err("a vote without a mode".to_owned()),
    };
    let kind = form.kind()?;
    if (kind == Type::B32) != (vote == Vote::Ballot) {
        return Err(format!("{vote:?} to {kind:?}"));
    }
    form.expect(3)?;
    let to = form.destination(0, kind)?;
    let by = form.resolver.predicate(&form.operands[1])?;
    Ok(Warp::Vote { vote, to, by, mask: form.source(2, Type::B32)? })
}

fn equal(form: &mut Form<'_, '_, '_, '_>) -> Result<Warp, Refusal> {
    let all = match form.modifiers.take_one(&["all", "any"]) {
        Some(name) => name == "all",
        None => return Err("a match without a mode".to_owned()),
    };
    let kind = form.kind()?;
    form.expect(3)?;
    let (to, holds) = pair(form)?;
    let from = form.source(1, kind)?;
    Ok(Warp::Match { all, kind, to, holds, from, mask: form.source(2, Type::B32)? })
}

fn reduce(form: &mut Form<'_, '_, '_, '_>) -> Result<Warp, Refusal> {
    let combine = match form.modifiers.take_one(&["add", "min", "max", "and", "or", "xor"]) {
        Some("add") => Combine::Add,
        Some("min") => Combine::Minimum,
        Some("max") => Combine::Maximum,
        Some("and") => Combine::And,
        Some("or") => Combine::Or,
        Some(_) => Combine::Xor,
        None => return Err("a reduction that is not known".to_owned()),
    };
    let kind = form.kind()?;
    if !matches!(kind, Type::U32 | Type::S32 | Type::B32) {
        return Err(format!("a reduction of {kind:?}"));
    }
    form.expect(3)?;
    let to = form.destination(0, Type::B32)?;
    let from = form.source(1, Type::B32)?;
    Ok(Warp::Reduce { combine, kind, to, from, mask: form.source(2, Type::B32)? })
}

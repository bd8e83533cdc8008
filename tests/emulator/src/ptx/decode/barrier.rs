//! Barriers of a block or a warp, and fences.

use super::Form;
use super::memory::Scope;
use crate::ptx::Type;
use crate::ptx::registers::Slot;
use crate::ptx::resolver::{Predicate, Refusal};

/// What a barrier computes from a predicate of every thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reduction {
    Count,
    All,
    Any,
}

/// One instruction of the group.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Barrier {
    /// Threads of the block wait for each other, or only note that they came.
    Block {
        number: Slot,
        threads: Option<Slot>,
        waits: bool,
        reduction: Option<(Reduction, Slot, Predicate)>,
    },
    /// Lanes of the mask wait for each other.
    Warp {
        mask: Slot,
    },
    Fence(Scope),
}

pub(crate) fn decode(opcode: &str, form: &mut Form<'_, '_, '_, '_>) -> Result<Barrier, Refusal> {
    match opcode {
        "membar" => {
            form.expect(0)?;
            match form.modifiers.take_one(&["cta", "gl", "sys"]) {
                Some("cta") => Ok(Barrier::Fence(Scope::Block)),
                Some(_) => Ok(Barrier::Fence(Scope::Device)),
                None => Err("a fence without a level".to_owned()),
            }
        }
        "fence" => {
            form.expect(0)?;
            form.modifiers.take_one(&["sc", "acq_rel"]);
            match form.modifiers.take_one(&["cta", "cluster", "gpu", "sys"]) {
                Some("cta") => Ok(Barrier::Fence(Scope::Block)),
                Some(_) => Ok(Barrier::Fence(Scope::Device)),
                None => Err("a fence without a scope".to_owned()),
            }
        }
        _ => block(opcode, form),
    }
}

fn block(opcode: &str, form: &mut Form<'_, '_, '_, '_>) -> Result<Barrier, Refusal> {
    if opcode == "bar" && form.modifiers.take("warp") {
        if !form.modifiers.take("sync") {
            return Err("`bar.warp` without `sync`".to_owned());
        }
        form.expect(1)?;
        return Ok(Barrier::Warp { mask: form.source(0, Type::B32)? });
    }
    form.modifiers.take("cta");
    form.modifiers.take("aligned");
    match form.modifiers.take_one(&["sync", "arrive", "red"]) {
        Some("red") => reduce(form),
        Some(name) => {
            let waits = name == "sync";
            if !(1..=2).contains(&form.operands.len()) || (!waits && form.operands.len() != 2) {
                return Err(format!("{} operands of a barrier", form.operands.len()));
            }
            let number = form.source(0, Type::B32)?;
            let threads = if form.operands.len() == 2 { Some(form.source(1, Type::B32)?) } else { None };
            Ok(Barrier::Block { number, threads, waits, reduction: None })
        }
        None => Err("a form of barrier that is not known".to_owned()),
    }
}

fn reduce(form: &mut Form<'_, '_, '_, '_>) -> Result<Barrier, Refusal> {
    let (reduction, result) = match form.modifiers.take_one(&["popc", "and", "or"]) {
        Some("popc") => (Reduction::Count, Type::U32),
        Some("and") => (Reduction::All, Type::Pred),
        Some(_) => (Reduction::Any, Type::Pred),
        None => return Err("a reduction that is not known".to_owned()),
    };
    if form.kind()? != result || !(3..=4).contains(&form.operands.len()) {
        return Err("a reduction with other types or operands".to_owned());
    }
    let to = form.destination(0, result)?;
    let number = form.source(1, Type::B32)?;
    let threads = if form.operands.len() == 4 { Some(form.source(2, Type::B32)?) } else { None };
    let by = form.resolver.predicate(&form.operands[form.operands.len() - 1])?;
    Ok(Barrier::Block { number, threads, waits: true, reduction: Some((reduction, to, by)) })
}

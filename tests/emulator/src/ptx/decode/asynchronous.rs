//! Copies from global to shared memory that land later.

use super::Form;
use crate::ptx::Type;
use crate::ptx::registers::Slot;
use crate::ptx::resolver::{Address, Predicate, Refusal, Space};
use crate::ptx::statement::Operand;

/// One instruction of the group.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asynchronous {
    Copy {
        to: Address,
        from: Address,
        bytes: u32,
        /// Bytes that are read; the others become zero.
        source_bytes: Option<Slot>,
        /// Where it holds, nothing is read and all becomes zero.
        ignores: Option<Predicate>,
    },
    /// The copies so far become a group.
    Commit,
    /// Until at most so many of the youngest groups are on their way.
    Wait(u32),
    /// Until nothing is on its way.
    WaitAll,
}

pub(crate) fn decode(form: &mut Form<'_, '_, '_, '_>) -> Result<Asynchronous, Refusal> {
    if !form.modifiers.take("async") {
        return Err("`cp` without `async`".to_owned());
    }
    match form.modifiers.take_one(&["commit_group", "wait_group", "wait_all", "ca", "cg"]) {
        Some("commit_group") => form.expect(0).map(|()| Asynchronous::Commit),
        Some("wait_all") => form.expect(0).map(|()| Asynchronous::WaitAll),
        Some("wait_group") => {
            form.expect(1)?;
            Ok(Asynchronous::Wait(form.literal(0)? as u32))
        }
        Some(cached) => copy(form, cached == "cg"),
        None => Err("a form of `cp.async` that is not known".to_owned()),
    }
}

fn copy(form: &mut Form<'_, '_, '_, '_>, bypasses_l1: bool) -> Result<Asynchronous, Refusal> {
    let is_into_shared = form.modifiers.take_one(&["shared", "shared::cta"]).is_some();
    if !is_into_shared || !form.modifiers.take("global") {
        return Err("`cp.async` copies from global to shared memory".to_owned());
    }
    form.modifiers.take_prefixed("L2::");
    if !(3..=4).contains(&form.operands.len()) {
        return Err(format!("{} operands where 3 or 4 are due", form.operands.len()));
    }
    let to = form.resolver.address(&form.operands[0], Space::Shared)?;
    let from = form.resolver.address(&form.operands[1], Space::Global)?;
    let bytes = form.literal(2)? as u32;
    let fits = if bypasses_l1 { bytes == 16 } else { matches!(bytes, 4 | 8 | 16) };
    if !fits {
        return Err(format!("a copy of {bytes} bytes"));
    }
    let mut source_bytes = None;
    let mut ignores = None;
    if let Some(operand) = form.operands.get(3) {
        let is_predicate = match operand {
            Operand::Not(_) => true,
            Operand::Name(name) => {
                let found = form.resolver.registers.find(name);
                found.is_some_and(|register| register.file == crate::ptx::registers::File::Predicate)
            }
            _ => false,
        };
        if is_predicate {
            ignores = Some(form.resolver.predicate(operand)?);
        } else {
            source_bytes = Some(form.resolver.source(operand, Type::B32)?);
        }
    }
    Ok(Asynchronous::Copy { to, from, bytes, source_bytes, ignores })
}

//! Moves: copies, packing and unpacking, address spaces, clocks.

use super::Form;
use crate::ptx::Type;
use crate::ptx::registers::Slot;
use crate::ptx::resolver::{Refusal, Space};
use crate::ptx::statement::Operand;

/// One instruction of the group.
#[derive(Clone, Debug)]
pub(crate) enum Motion {
    Copy {
        kind: Type,
        to: Slot,
        from: Slot,
    },
    /// Elements into one register, the first lowest.
    Pack {
        element: Type,
        to: Slot,
        from: Vec<Slot>,
    },
    /// One register into elements, the first lowest.
    Unpack {
        element: Type,
        to: Vec<Slot>,
        from: Slot,
    },
    /// Between an address in `space` and a generic one.
    Address {
        space: Space,
        to_space: bool,
        to: Slot,
        from: Slot,
    },
    /// A counter that only grows, 32 or 64 bits of it.
    Clock {
        kind: Type,
        to: Slot,
    },
}

pub(crate) fn decode(opcode: &str, form: &mut Form<'_, '_, '_, '_>) -> Result<Motion, Refusal> {
    form.expect(2)?;
    if opcode == "cvta" {
        return address(form);
    }
    let kind = form.kind()?;
    let element = |count: usize| match (kind.bytes(), count) {
        (8, 2) => Ok(Type::B32),
        (8, 4) | (4, 2) => Ok(Type::B16),
        _ => Err(format!("{count} elements in {kind:?}")),
    };
    match (&form.operands[0], &form.operands[1]) {
        (to, Operand::Vector(elements)) => {
            let element = element(elements.len())?;
            let mut from = Vec::new();
            for operand in elements {
                from.push(form.resolver.source(operand, element)?);
            }
            Ok(Motion::Pack { element, to: form.resolver.destination(to, kind)?, from })
        }
        (Operand::Vector(elements), from) => {
            let element = element(elements.len())?;
            let mut to = Vec::new();
            for operand in elements {
                to.push(form.resolver.destination(operand, element)?);
            }
            Ok(Motion::Unpack { element, to, from: form.resolver.source(from, kind)? })
        }
        (to, Operand::Name("%clock" | "%clock_hi" | "%clock64" | "%globaltimer" | "%globaltimer_lo")) => {
            Ok(Motion::Clock { kind, to: form.resolver.destination(to, kind)? })
        }
        (to, from) => {
            if kind.bytes() == 1 {
                return Err(format!("`mov` of {kind:?}"));
            }
            let to = form.resolver.destination(to, kind)?;
            Ok(Motion::Copy { kind, to, from: form.resolver.source(from, kind)? })
        }
    }
}

fn address(form: &mut Form<'_, '_, '_, '_>) -> Result<Motion, Refusal> {
    let to_space = form.modifiers.take("to");
    let space = match form.modifiers.take_one(&["global", "const", "shared", "local", "shared::cta"]) {
        Some("global" | "const") => Space::Global,
        Some("local") => Space::Local,
        Some(_) => Space::Shared,
        None => return Err("`cvta` between memories that are not known".to_owned()),
    };
    if form.kind()?.bytes() != 8 {
        return Err("`cvta` of addresses without 64 bits".to_owned());
    }
    let to = form.destination(0, Type::B64)?;
    Ok(Motion::Address { space, to_space, to, from: form.source(1, Type::B64)? })
}

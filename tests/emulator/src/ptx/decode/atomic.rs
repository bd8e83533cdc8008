//! Atomic operations, with and without a result.

use super::Form;
use super::memory::{Order, Scope, order, space};
use crate::ptx::Type;
use crate::ptx::registers::Slot;
use crate::ptx::resolver::{Address, Refusal, Space};

/// What to do with the old value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtomicOperation {
    Add,
    Minimum,
    Maximum,
    Exchange,
    CompareAndSwap,
    /// Up to the operand, then zero.
    Increment,
    /// Down from the operand.
    Decrement,
    And,
    Or,
    Xor,
}

/// One atomic operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Atomic {
    pub(crate) operation: AtomicOperation,
    pub(crate) kind: Type,
    pub(crate) space: Space,
    pub(crate) order: Order,
    pub(crate) address: Address,
    pub(crate) to: Option<Slot>,
    pub(crate) first: Slot,
    pub(crate) second: Slot,
}

pub(crate) fn decode(opcode: &str, form: &mut Form<'_, '_, '_, '_>) -> Result<Atomic, Refusal> {
    use AtomicOperation as Is;
    let space = space(&mut form.modifiers)?;
    let order = order(&mut form.modifiers, Order::Relaxed(Scope::Device));
    let names = ["add", "min", "max", "exch", "cas", "inc", "dec", "and", "or", "xor"];
    let operation = match form.modifiers.take_one(&names) {
        Some("add") => Is::Add,
        Some("min") => Is::Minimum,
        Some("max") => Is::Maximum,
        Some("exch") => Is::Exchange,
        Some("cas") => Is::CompareAndSwap,
        Some("inc") => Is::Increment,
        Some("dec") => Is::Decrement,
        Some("and") => Is::And,
        Some("or") => Is::Or,
        Some(_) => Is::Xor,
        None => return Err(format!("`{opcode}` does not say what to do")),
    };
    form.modifiers.take("noftz");
    form.modifiers.take_prefixed("L2::");
    let kind = form.kind()?;
    if !fits(operation, kind) || matches!(space, Space::Local | Space::Parameter | Space::Constant) {
        return Err(format!("{operation:?} on {kind:?} in {space:?} memory"));
    }
    let result = usize::from(opcode == "atom");
    let sources = if operation == Is::CompareAndSwap { 2 } else { 1 };
    form.expect(result + 1 + sources)?;
    let to = if result == 1 { Some(form.destination(0, kind)?) } else { None };
    let address = form.resolver.address(&form.operands[result], space)?;
    let first = form.source(result + 1, kind)?;
    let second = if sources == 2 { form.source(result + 2, kind)? } else { first };
    Ok(Atomic { operation, kind, space, order, address, to, first, second })
}

fn fits(operation: AtomicOperation, kind: Type) -> bool {
    use AtomicOperation as Is;
    match operation {
        Is::Add => {
            !matches!(kind, Type::TF32 | Type::F32x2 | Type::Pred | Type::B32 | Type::B64)
                && kind.bytes() >= 2
        }
        Is::Minimum | Is::Maximum => matches!(kind, Type::U32 | Type::S32 | Type::U64 | Type::S64),
        Is::Increment | Is::Decrement => kind == Type::U32,
        Is::CompareAndSwap => matches!(kind, Type::B16 | Type::B32 | Type::B64),
        Is::Exchange | Is::And | Is::Or | Is::Xor => matches!(kind, Type::B32 | Type::B64),
    }
}

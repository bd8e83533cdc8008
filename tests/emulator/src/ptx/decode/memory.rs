//! Loads and stores.

use super::Form;
use crate::ptx::Type;
use crate::ptx::registers::Slot;
use crate::ptx::resolver::{Address, Refusal, Space};
use crate::ptx::statement::Modifiers;

/// How far an ordered access or a fence reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    Block,
    Device,
}

/// What an access orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Nothing: it must not meet another access to the same bytes.
    Weak,
    /// Nothing, but it may meet others of its kind.
    Relaxed(Scope),
    Acquire(Scope),
    Release(Scope),
    AcquireRelease(Scope),
}

/// An element of a vector: its register and the size of that.
pub(crate) type Element = (Slot, u32);

/// One instruction of the group.
#[derive(Clone, Debug)]
pub(crate) enum Access {
    Load {
        space: Space,
        order: Order,
        constant: bool,
        kind: Type,
        to: Vec<Element>,
        address: Address,
    },
    Store {
        space: Space,
        order: Order,
        kind: Type,
        from: Vec<Element>,
        address: Address,
    },
    /// A hint without effect.
    Prefetch,
}

/// The memory that the modifiers name.
pub(crate) fn space(modifiers: &mut Modifiers<'_>) -> Result<Space, Refusal> {
    let names = ["global", "shared", "shared::cta", "local", "param", "const"];
    Ok(match modifiers.take_one(&names) {
        Some("global") => Space::Global,
        Some("shared" | "shared::cta") => Space::Shared,
        Some("local") => Space::Local,
        Some("const") => Space::Constant,
        Some(_) => Space::Parameter,
        None => Space::Generic,
    })
}

/// The order and scope that the modifiers name; `unordered` where they name none.
pub(crate) fn order(modifiers: &mut Modifiers<'_>, unordered: Order) -> Order {
    let name = modifiers.take_one(&["weak", "volatile", "relaxed", "acquire", "release", "acq_rel"]);
    let scope = match modifiers.take_one(&["cta", "cluster", "gpu", "sys"]) {
        Some("cta") => Scope::Block,
        _ => Scope::Device,
    };
    match name {
        None if unordered == Order::Weak => Order::Weak,
        Some("weak") => Order::Weak,
        None | Some("volatile" | "relaxed") => Order::Relaxed(scope),
        Some("acquire") => Order::Acquire(scope),
        Some("release") => Order::Release(scope),
        Some(_) => Order::AcquireRelease(scope),
    }
}

pub(crate) fn decode(opcode: &str, form: &mut Form<'_, '_, '_, '_>) -> Result<Access, Refusal> {
    if opcode == "prefetch" {
        form.modifiers.take_one(&["global"]);
        form.modifiers.take_one(&["L1", "L2"]);
        form.modifiers.take_prefixed("L2::");
        form.expect(1)?;
        form.resolver.address(&form.operands[0], Space::Global)?;
        return Ok(Access::Prefetch);
    }
    let is_load = opcode == "ld";
    let space = space(&mut form.modifiers)?;
    let order = order(&mut form.modifiers, Order::Weak);
    let constant = is_load && form.modifiers.take("nc");
    form.modifiers.take_one(&["ca", "cg", "cs", "lu", "cv", "wb", "wt"]);
    form.modifiers.take_prefixed("L1::");
    form.modifiers.take_prefixed("L2::");
    let count = match form.modifiers.take_one(&["v2", "v4", "v8"]) {
        Some("v2") => 2,
        Some("v4") => 4,
        Some(_) => 8,
        None => 1,
    };
    let kind = form.kind()?;
    form.expect(2)?;
    if kind.bytes() == 0 || kind.bytes() * count as u32 > 32 {
        return Err(format!("`{opcode}` of {count} {kind:?}"));
    }
    let (value, place) = if is_load { (0, 1) } else { (1, 0) };
    let elements = form.elements(value).to_vec();
    if elements.len() != count {
        return Err(format!("{} registers where {count} are due", elements.len()));
    }
    let address = form.resolver.address(&form.operands[place], space)?;
    if space == Space::Constant && !is_load {
        return Err("constants are not written".to_owned());
    }
    if space == Space::Parameter && (!is_load || address.base.is_some()) {
        return Err("parameters are read at fixed addresses only".to_owned());
    }
    let mut registers = Vec::with_capacity(count);
    for element in &elements {
        registers.push(if is_load {
            form.resolver.wide_destination(element, kind)?
        } else {
            form.resolver.wide_source(element, kind)?
        });
    }
    let fits = match order {
        Order::Acquire(_) => is_load,
        Order::Release(_) => !is_load,
        Order::AcquireRelease(_) => false,
        _ => true,
    };
    if !fits {
        return Err(format!("`{opcode}` with {order:?}"));
    }
    Ok(if is_load {
        Access::Load { space, order, constant, kind, to: registers, address }
    } else {
        Access::Store { space, order, kind, from: registers, address }
    })
}

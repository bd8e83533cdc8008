//! From names to numbers: what the operands of an instruction mean inside their entry.

use std::collections::HashMap;

use super::registers::{File, Register, Registers, Slot, immediate};
use super::statement::Operand;
use super::types::Type;

/// Where the shared memory of a block begins in its window; the first KiB belongs to the system.
pub(crate) const SHARED_BASE: u64 = 1024;
/// Where a thread's local memory begins in its window.
pub(crate) const LOCAL_BASE: u64 = 256;

/// Where the constants of a module lie.
pub(crate) const CONSTANT_BASE: u64 = 0x0000_0c00_0000_0000;

/// A memory that instructions name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Parameter,
    /// What the module brings along, at addresses of its own among those of global memory.
    Constant,
}

/// A variable or parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Symbol {
    pub(crate) space: Space,
    /// Address in its space.
    pub(crate) address: u64,
}

/// An address operand: an optional register and a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) base: Option<(File, Slot)>,
    pub(crate) offset: u64,
}

/// A predicate operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Predicate {
    pub(crate) slot: Slot,
    pub(crate) negated: bool,
}

/// Knows the names of one entry.
pub(crate) struct Resolver<'text> {
    pub(crate) registers: Registers,
    pub(crate) symbols: HashMap<&'text str, Symbol>,
    pub(crate) labels: HashMap<&'text str, u32>,
}

/// What is wrong with an instruction; its line is added by who knows it.
pub(crate) type Refusal = String;

impl Resolver<'_> {
    fn register(&self, name: &str) -> Result<Register, Refusal> {
        self.registers.find(name).ok_or_else(|| format!("`{name}` is not a register of this entry"))
    }

    /// The register that receives a value of exactly the size of `kind`.
    pub(crate) fn destination(&mut self, operand: &Operand<'_>, kind: Type) -> Result<Slot, Refusal> {
        let (slot, bytes) = self.wide_destination(operand, kind)?;
        if bytes != kind.bytes() {
            return Err(format!("{operand:?} holds {bytes} bytes, not the {} of the type", kind.bytes()));
        }
        Ok(slot)
    }

    /// The register that receives a value of `kind`, and its size, which may be larger.
    pub(crate) fn wide_destination(
        &mut self,
        operand: &Operand<'_>,
        kind: Type,
    ) -> Result<(Slot, u32), Refusal> {
        let file = match kind.bytes() {
            0 => File::Predicate,
            8 => File::Wide,
            _ => File::Narrow,
        };
        match operand {
            Operand::Name("_") => Ok((self.registers.sink(file), kind.bytes())),
            Operand::Name(name) => {
                let register = self.register(name)?;
                let fits = register.bytes >= kind.bytes()
                    && (register.file == File::Predicate) == (file == File::Predicate);
                if fits { Ok((register.slot, register.bytes)) } else { Err(format!("`{name}` is too small")) }
            }
            _ => Err(format!("{operand:?} cannot be written")),
        }
    }

    /// The register that holds a value of exactly the size of `kind`.
    pub(crate) fn source(&mut self, operand: &Operand<'_>, kind: Type) -> Result<Slot, Refusal> {
        let (slot, bytes) = self.wide_source(operand, kind)?;
        if bytes != kind.bytes() {
            return Err(format!("{operand:?} holds {bytes} bytes, not the {} of the type", kind.bytes()));
        }
        Ok(slot)
    }

    /// The register that holds a value of `kind`, and its size, which may be larger.
    pub(crate) fn wide_source(&mut self, operand: &Operand<'_>, kind: Type) -> Result<(Slot, u32), Refusal> {
        let file = match kind.bytes() {
            0 => File::Predicate,
            8 => File::Wide,
            _ => File::Narrow,
        };
        if let Some(bits) = immediate(operand, kind) {
            return Ok((self.registers.constant(file, bits), kind.bytes()));
        }
        let Operand::Name(name) = operand else {
            return Err(format!("{operand:?} is not a value of this type"));
        };
        if let Some(symbol) = self.symbols.get(name) {
            if symbol.space == Space::Parameter || file == File::Predicate {
                return Err(format!("the address of `{name}` cannot be taken"));
            }
            return Ok((self.registers.constant(file, symbol.address), kind.bytes()));
        }
        if let Some(register) = self.registers.find(name) {
            let is_predicate = register.file == File::Predicate;
            if register.bytes < kind.bytes() || is_predicate != (file == File::Predicate) {
                return Err(format!("`{name}` does not hold a value of this type"));
            }
            return Ok((register.slot, register.bytes));
        }
        match self.registers.special(name) {
            Some(slot) if file == File::Narrow => Ok((slot, kind.bytes())),
            Some(_) => Err(format!("`{name}` has 32 bits")),
            None => Err(format!("`{name}` is not known")),
        }
    }

    /// A predicate, perhaps negated.
    pub(crate) fn predicate(&mut self, operand: &Operand<'_>) -> Result<Predicate, Refusal> {
        match operand {
            Operand::Not(name) => {
                Ok(Predicate { slot: self.source(&Operand::Name(name), Type::Pred)?, negated: true })
            }
            other => Ok(Predicate { slot: self.source(other, Type::Pred)?, negated: false }),
        }
    }

    /// An address in brackets.
    pub(crate) fn address(&mut self, operand: &Operand<'_>, space: Space) -> Result<Address, Refusal> {
        let Operand::Address(base, offset) = operand else {
            return Err(format!("{operand:?} where an address is due"));
        };
        let offset = *offset as u64;
        let Some(name) = base else { return Ok(Address { base: None, offset }) };
        if let Some(symbol) = self.symbols.get(name) {
            let is_constant = symbol.space == Space::Constant && space == Space::Global;
            if symbol.space != space && !is_constant {
                return Err(format!("`{name}` lies in another memory"));
            }
            return Ok(Address { base: None, offset: symbol.address.wrapping_add(offset) });
        }
        let register = self.register(name)?;
        if register.bytes < 4 {
            return Err(format!("`{name}` is too small for an address"));
        }
        Ok(Address { base: Some((register.file, register.slot)), offset })
    }

    /// The number of the instruction behind a label.
    pub(crate) fn label(&self, operand: &Operand<'_>) -> Result<u32, Refusal> {
        match operand {
            Operand::Name(name) => {
                self.labels.get(name).copied().ok_or_else(|| format!("`{name}` is not a label of this entry"))
            }
            other => Err(format!("{other:?} where a label is due")),
        }
    }
}

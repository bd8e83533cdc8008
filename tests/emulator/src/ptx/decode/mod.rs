//! From instructions as written to a compact form with numbered registers, one file per group.

pub(crate) mod asynchronous;
pub(crate) mod atomic;
pub(crate) mod barrier;
pub(crate) mod bits;
pub(crate) mod compare;
pub(crate) mod control;
pub(crate) mod convert;
pub(crate) mod float;
pub(crate) mod integer;
pub(crate) mod matrix;
pub(crate) mod memory;
pub(crate) mod motion;
pub(crate) mod warp;

use std::collections::HashMap;

use super::resolver::{Predicate, Refusal, Resolver};
use super::statement::{Modifiers, Operand, Statement};

pub(crate) use control::Control;

/// A decoded instruction.
#[derive(Debug)]
pub(crate) struct Instruction {
    pub(crate) operation: Operation,
    pub(crate) guard: Option<Predicate>,
    pub(crate) line: u32,
}

/// What an instruction does, by group.
#[derive(Debug)]
pub(crate) enum Operation {
    Integer(integer::Integer),
    Bits(bits::Bits),
    Float(float::Float),
    Compare(compare::Compare),
    Convert(convert::Convert),
    Motion(motion::Motion),
    Memory(memory::Access),
    Atomic(atomic::Atomic),
    Asynchronous(asynchronous::Asynchronous),
    Barrier(barrier::Barrier),
    Warp(warp::Warp),
    Matrix(Box<matrix::Matrix>),
    Control(Control),
}

impl Instruction {
    /// The end of an entry that the text may fall into.
    pub(crate) fn end(line: u32) -> Instruction {
        Instruction { operation: Operation::Control(Control::Exit), guard: None, line }
    }
}

/// Tables of labels for indexed branches.
pub(crate) type Tables<'text> = HashMap<&'text str, Vec<&'text str>>;

/// Decodes one instruction; whatever of it is unknown is refused.
pub(crate) fn decode(
    statement: &Statement<'_>,
    resolver: &mut Resolver<'_>,
    tables: &Tables<'_>,
) -> Result<Instruction, Refusal> {
    let guard = match statement.guard {
        Some((name, true)) => Some(resolver.predicate(&Operand::Not(name))?),
        Some((name, false)) => Some(resolver.predicate(&Operand::Name(name))?),
        None => None,
    };
    let mut form = Form { operands: &statement.operands, modifiers: Modifiers::of(statement), resolver };
    let operation = operation(statement.opcode(), &mut form, tables)?;
    match form.modifiers.left() {
        [] => Ok(Instruction { operation, guard, line: statement.line }),
        left => Err(format!("modifiers that are not known here: .{}", left.join("."))),
    }
}

/// An instruction while it is being decoded.
pub(crate) struct Form<'statement, 'text, 'entry, 'resolver> {
    pub(crate) operands: &'statement [Operand<'text>],
    pub(crate) modifiers: Modifiers<'text>,
    pub(crate) resolver: &'resolver mut Resolver<'entry>,
}

impl<'text> Form<'_, 'text, '_, '_> {
    /// Refuses all but `count` operands.
    pub(crate) fn expect(&self, count: usize) -> Result<(), Refusal> {
        match self.operands.len() {
            found if found == count => Ok(()),
            found => Err(format!("{found} operands where {count} are due")),
        }
    }

    /// The type among the modifiers.
    pub(crate) fn kind(&mut self) -> Result<super::Type, Refusal> {
        self.modifiers.take_type().ok_or_else(|| "no type that is known".to_owned())
    }

    /// A whole number that is part of the instruction.
    pub(crate) fn literal(&self, at: usize) -> Result<u64, Refusal> {
        match self.operands.get(at) {
            Some(Operand::Integer(value)) => Ok(*value),
            other => Err(format!("{other:?} where a number is due")),
        }
    }

    /// The elements of `{a, b}`, or a single operand as one element.
    pub(crate) fn elements(&self, at: usize) -> &[Operand<'text>] {
        match &self.operands[at] {
            Operand::Vector(elements) => elements,
            single => std::slice::from_ref(single),
        }
    }

    /// Source at `at`.
    pub(crate) fn source(&mut self, at: usize, kind: super::Type) -> Result<u32, Refusal> {
        self.resolver.source(&self.operands[at], kind)
    }

    /// Destination at `at`.
    pub(crate) fn destination(&mut self, at: usize, kind: super::Type) -> Result<u32, Refusal> {
        self.resolver.destination(&self.operands[at], kind)
    }
}

fn operation(
    opcode: &str,
    form: &mut Form<'_, '_, '_, '_>,
    tables: &Tables<'_>,
) -> Result<Operation, Refusal> {
    Ok(match opcode {
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "abs" | "neg" | "min" | "max" => {
            let is_float = opcode == "fma" || names_float(form.modifiers.left());
            if is_float {
                Operation::Float(float::decode(opcode, form)?)
            } else {
                Operation::Integer(integer::decode(opcode, form)?)
            }
        }
        "rem" | "dp4a" | "dp2a" => Operation::Integer(integer::decode(opcode, form)?),
        "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" | "copysign" => {
            Operation::Float(float::decode(opcode, form)?)
        }
        "and" | "or" | "xor" | "not" | "shl" | "shr" | "shf" | "lop3" | "bfe" | "bfi" | "brev" | "popc"
        | "clz" | "prmt" => Operation::Bits(bits::decode(opcode, form)?),
        "setp" | "set" | "selp" => Operation::Compare(compare::decode(opcode, form)?),
        "cvt" => Operation::Convert(convert::decode(form)?),
        "mov" | "cvta" => Operation::Motion(motion::decode(opcode, form)?),
        "ld" | "st" | "prefetch" => Operation::Memory(memory::decode(opcode, form)?),
        "atom" | "red" => Operation::Atomic(atomic::decode(opcode, form)?),
        "cp" => Operation::Asynchronous(asynchronous::decode(form)?),
        // `bar.warp.sync` and `barrier.cta.sync` alike; fences order memory.
        "bar" | "barrier" | "membar" | "fence" => Operation::Barrier(barrier::decode(opcode, form)?),
        "shfl" | "vote" | "match" | "redux" | "activemask" => Operation::Warp(warp::decode(opcode, form)?),
        "mma" | "ldmatrix" | "stmatrix" | "movmatrix" => {
            Operation::Matrix(Box::new(matrix::decode(opcode, form)?))
        }
        "bra" | "brx" | "ret" | "exit" | "trap" | "nanosleep" => {
            Operation::Control(control::decode(opcode, form, tables)?)
        }
        _ => return Err(format!("the instruction `{opcode}` is not known")),
    })
}

fn names_float(modifiers: &[&str]) -> bool {
    modifiers.iter().any(|name| super::Type::parse(name).is_some_and(super::Type::is_float))
}

//! Executes comparisons and choices.

use super::numbers::{Brain, Half, Short};
use super::registers::{LANES, Registers, Scalar};
use crate::ptx::Type;
use crate::ptx::decode::compare::{Compare, Join, Relation};
use crate::ptx::registers::Slot;
use crate::ptx::resolver::Predicate;

pub(crate) fn execute(instruction: &Compare, registers: &mut Registers) {
    match *instruction {
        Compare::SetPredicate { relation, unordered, kind, flushes, join, to, other, first, second } => {
            let holds = mask(registers, relation, unordered, flushes, kind, (first, second));
            let joined = |holds: u32, registers: &mut Registers| match join {
                None => holds,
                Some((Join::And, with)) => holds & registers.predicate(with),
                Some((Join::Or, with)) => holds | registers.predicate(with),
                Some((Join::Xor, with)) => holds ^ registers.predicate(with),
            };
            let result = joined(holds, registers);
            let opposite = joined(!holds, registers);
            registers.set_predicate(to, result);
            if let Some(other) = other {
                registers.set_predicate(other, opposite);
            }
        }
        Compare::SetNumber { relation, unordered, kind, flushes, truth, to, first, second } => {
            let holds = mask(registers, relation, unordered, flushes, kind, (first, second));
            registers.write(to, std::array::from_fn(|lane| if holds >> lane & 1 == 1 { truth } else { 0 }));
        }
        Compare::Select { kind, by, to, first, second } => {
            if kind.bytes() == 8 {
                select::<u64>(registers, by, to, first, second);
            } else {
                select::<u32>(registers, by, to, first, second);
            }
        }
    }
}

fn select<S: Scalar>(registers: &mut Registers, by: Predicate, to: Slot, first: Slot, second: Slot) {
    use super::registers::Word;
    let holds = registers.predicate(by);
    let active = registers.active;
    // Only the operand that is chosen has to be there.
    registers.active = active & holds;
    let chosen = registers.read::<S::Word>(first);
    registers.active = active & !holds;
    let otherwise = registers.read::<S::Word>(second);
    registers.active = active;
    let mut values = [S::Word::default(); LANES];
    for lane in 0..LANES {
        let (chosen, otherwise) = (chosen[lane].to_u64(), otherwise[lane].to_u64());
        values[lane] = S::Word::from_u64(if holds >> lane & 1 == 1 { chosen } else { otherwise });
    }
    registers.write(to, values);
}

fn mask(
    registers: &mut Registers,
    relation: Relation,
    unordered: bool,
    flushes: bool,
    kind: Type,
    (first, second): (Slot, Slot),
) -> u32 {
    match kind {
        Type::S16 => of_ordered::<i16>(registers, relation, first, second),
        Type::U16 | Type::B16 => of_ordered::<u16>(registers, relation, first, second),
        Type::S32 => of_ordered::<i32>(registers, relation, first, second),
        Type::U32 | Type::B32 => of_ordered::<u32>(registers, relation, first, second),
        Type::S64 => of_ordered::<i64>(registers, relation, first, second),
        Type::U64 | Type::B64 => of_ordered::<u64>(registers, relation, first, second),
        Type::F16 => registers.compare(first, second, |a: Half, b: Half| {
            of_numbers(relation, unordered, f64::from(a.widen()), f64::from(b.widen()))
        }),
        Type::BF16 => registers.compare(first, second, |a: Brain, b: Brain| {
            of_numbers(relation, unordered, f64::from(a.widen()), f64::from(b.widen()))
        }),
        Type::F64 => registers.compare(first, second, |a, b| of_numbers(relation, unordered, a, b)),
        _ => registers.compare(first, second, |a: f32, b: f32| {
            let flushed = |value: f32| if flushes && value.is_subnormal() { 0.0 } else { value };
            of_numbers(relation, unordered, f64::from(flushed(a)), f64::from(flushed(b)))
        }),
    }
}

fn of_ordered<S: Scalar + Ord>(
    registers: &mut Registers,
    relation: Relation,
    first: Slot,
    second: Slot,
) -> u32 {
    match relation {
        Relation::Equal => registers.compare(first, second, |a: S, b: S| a == b),
        Relation::NotEqual => registers.compare(first, second, |a: S, b: S| a != b),
        Relation::Less => registers.compare(first, second, |a: S, b: S| a < b),
        Relation::LessEqual => registers.compare(first, second, |a: S, b: S| a <= b),
        Relation::Greater => registers.compare(first, second, |a: S, b: S| a > b),
        Relation::GreaterEqual => registers.compare(first, second, |a: S, b: S| a >= b),
        Relation::Numbers => u32::MAX,
        Relation::NotNumbers => 0,
    }
}

fn of_numbers(relation: Relation, unordered: bool, a: f64, b: f64) -> bool {
    let is_nan = a.is_nan() || b.is_nan();
    let holds = match relation {
        Relation::Equal => a == b,
        // Like the others, false for NaN unless unordered.
        Relation::NotEqual => a != b && !is_nan,
        Relation::Less => a < b,
        Relation::LessEqual => a <= b,
        Relation::Greater => a > b,
        Relation::GreaterEqual => a >= b,
        Relation::Numbers => return !is_nan,
        Relation::NotNumbers => return is_nan,
    };
    holds || (unordered && is_nan)
}

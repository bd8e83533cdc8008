//! Executes logic, shifts, fields and permutations.

use super::registers::Registers;
use crate::ptx::Type;
use crate::ptx::decode::bits::{BitOperation as Is, Bits};
use crate::ptx::resolver::Predicate;

pub(crate) fn execute(instruction: &Bits, registers: &mut Registers) {
    match instruction.kind {
        Type::Pred => logic_of_predicates(instruction, registers),
        Type::B16 | Type::U16 | Type::S16 => short(instruction, registers),
        Type::B32 | Type::U32 | Type::S32 => narrow(instruction, registers),
        _ => wide(instruction, registers),
    }
}

fn logic_of_predicates(instruction: &Bits, registers: &mut Registers) {
    let first = registers.predicate(Predicate { slot: instruction.first, negated: false });
    let second = registers.predicate(Predicate { slot: instruction.second, negated: false });
    let result = match instruction.operation {
        Is::And => first & second,
        Is::Or => first | second,
        Is::Xor => first ^ second,
        _ => !first,
    };
    registers.set_predicate(instruction.to, result);
}

fn short(instruction: &Bits, registers: &mut Registers) {
    let &Bits { to, first, second, kind, .. } = instruction;
    let two = (first, second);
    match instruction.operation {
        Is::And => registers.map_two(to, two, |a: u16, b: u16| a & b),
        Is::Or => registers.map_two(to, two, |a: u16, b: u16| a | b),
        Is::Xor => registers.map_two(to, two, |a: u16, b: u16| a ^ b),
        Is::ShiftLeft => registers.map_two(to, two, |a: u16, by: u32| a.checked_shl(by).unwrap_or(0)),
        Is::ShiftRight if kind.is_signed() => registers.map_two(to, two, |a: i16, by: u32| a >> by.min(15)),
        Is::ShiftRight => registers.map_two(to, two, |a: u16, by: u32| a.checked_shr(by).unwrap_or(0)),
        _ => registers.map(to, first, |a: u16| !a),
    }
}

fn narrow(instruction: &Bits, registers: &mut Registers) {
    let &Bits { to, first, second, third, fourth, kind, .. } = instruction;
    let two = (first, second);
    let three = (first, second, third);
    match instruction.operation {
        Is::And => registers.map_two(to, two, |a: u32, b: u32| a & b),
        Is::Or => registers.map_two(to, two, |a: u32, b: u32| a | b),
        Is::Xor => registers.map_two(to, two, |a: u32, b: u32| a ^ b),
        Is::Not => registers.map(to, first, |a: u32| !a),
        Is::ShiftLeft => {
            registers.map_two(to, two, |a: u32, by: u32| if by < 32 { a << (by & 31) } else { 0 });
        }
        Is::ShiftRight if kind.is_signed() => registers.map_two(to, two, |a: i32, by: u32| a >> by.min(31)),
        Is::ShiftRight => {
            registers.map_two(to, two, |a: u32, by: u32| if by < 32 { a >> (by & 31) } else { 0 });
        }
        Is::Funnel { left, wraps } => registers.map_three(to, three, |low: u32, high: u32, by: u32| {
            let by = if wraps { by & 31 } else { by.min(32) };
            let both = u64::from(high) << 32 | u64::from(low);
            if left { (both << by >> 32) as u32 } else { (both >> by) as u32 }
        }),
        Is::Table(table) => registers.map_three(to, three, |a: u32, b: u32, c: u32| {
            let choose = |at: u32, bits: u32| if table >> at & 1 == 1 { bits } else { 0 };
            choose(7, a & b & c)
                | choose(6, a & b & !c)
                | choose(5, a & !b & c)
                | choose(4, a & !b & !c)
                | choose(3, !a & b & c)
                | choose(2, !a & b & !c)
                | choose(1, !a & !b & c)
                | choose(0, !a & !b & !c)
        }),
        Is::ExtractField => registers.map_three(to, three, |a: u32, from: u32, length: u32| {
            let extended = if kind.is_signed() { i64::from(a as i32) as u64 } else { u64::from(a) };
            extract(extended, 32, kind.is_signed(), from, length) as u32
        }),
        Is::InsertField => {
            let lengths = registers.read::<u32>(fourth);
            let places = registers.read::<u32>(third);
            let (what, into) = (registers.read::<u32>(first), registers.read::<u32>(second));
            registers.write(
                to,
                std::array::from_fn(|lane| {
                    let (what, into) = (u64::from(what[lane]), u64::from(into[lane]));
                    insert(what, into, 32, places[lane], lengths[lane]) as u32
                }),
            );
        }
        Is::Reverse => registers.map(to, first, u32::reverse_bits),
        Is::Count => registers.map(to, first, u32::count_ones),
        Is::LeadingZeros => registers.map(to, first, u32::leading_zeros),
        Is::Permute => registers.map_three(to, three, permute),
    }
}

fn wide(instruction: &Bits, registers: &mut Registers) {
    let &Bits { to, first, second, third, fourth, kind, .. } = instruction;
    let two = (first, second);
    match instruction.operation {
        Is::And => registers.map_two(to, two, |a: u64, b: u64| a & b),
        Is::Or => registers.map_two(to, two, |a: u64, b: u64| a | b),
        Is::Xor => registers.map_two(to, two, |a: u64, b: u64| a ^ b),
        Is::ShiftLeft => registers.map_two(to, two, |a: u64, by: u32| a.checked_shl(by).unwrap_or(0)),
        Is::ShiftRight if kind.is_signed() => registers.map_two(to, two, |a: i64, by: u32| a >> by.min(63)),
        Is::ShiftRight => registers.map_two(to, two, |a: u64, by: u32| a.checked_shr(by).unwrap_or(0)),
        Is::ExtractField => {
            registers.map_three(to, (first, second, third), |a: u64, from: u32, length: u32| {
                extract(a, 64, kind.is_signed(), from, length)
            })
        }
        Is::InsertField => {
            let lengths = registers.read::<u32>(fourth);
            let places = registers.read::<u32>(third);
            let (what, into) = (registers.read::<u64>(first), registers.read::<u64>(second));
            registers.write(
                to,
                std::array::from_fn(|lane| insert(what[lane], into[lane], 64, places[lane], lengths[lane])),
            );
        }
        Is::Reverse => registers.map(to, first, u64::reverse_bits),
        Is::Count => registers.map(to, first, u64::count_ones),
        Is::LeadingZeros => registers.map(to, first, u64::leading_zeros),
        _ => registers.map(to, first, |a: u64| !a),
    }
}

/// The field of `length` bits from bit `from` on; a signed one is filled with its highest bit.
fn extract(value: u64, width: u32, signed: bool, from: u32, length: u32) -> u64 {
    let (from, length) = (from & 255, length & 255);
    if length == 0 {
        return 0;
    }
    let highest = (from + length - 1).min(width - 1);
    let sign = signed && value >> highest & 1 == 1;
    let filled = if sign { u64::MAX } else { 0 };
    let field = if from < width { value >> from } else { 0 };
    // Bits that the word has of the field.
    let there = (from + length).min(width).saturating_sub(from);
    let mask = if there >= 64 { u64::MAX } else { (1 << there) - 1 };
    (field & mask) | (filled & !mask)
}

fn insert(what: u64, into: u64, width: u32, place: u32, length: u32) -> u64 {
    let (place, length) = (place & 255, length & 255);
    if place >= width || length == 0 {
        return into;
    }
    let field = if length >= 64 { u64::MAX } else { (1 << length) - 1 } << place;
    (into & !field) | (what << place & field)
}

/// Four bytes out of eight; the highest bit of a selector repeats the sign of its byte.
fn permute(low: u32, high: u32, selectors: u32) -> u32 {
    let bytes = (u64::from(high) << 32 | u64::from(low)).to_le_bytes();
    let choose = |at: u32| {
        let selector = selectors >> (4 * at) & 15;
        let byte = bytes[(selector & 7) as usize];
        if selector & 8 == 0 {
            byte
        } else if byte & 0x80 == 0 {
            0
        } else {
            0xff
        }
    };
    u32::from_le_bytes([choose(0), choose(1), choose(2), choose(3)])
}

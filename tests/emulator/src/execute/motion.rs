//! Executes copies, packing and unpacking, and changes of address space.

use super::registers::{LANES, Registers};
use super::windows;
use crate::ptx::decode::motion::Motion;

/// Executes one move; `clock` is what clocks show now.
pub(crate) fn execute(instruction: &Motion, registers: &mut Registers, clock: u64) {
    match instruction {
        Motion::Copy { kind, to, from } => match kind.bytes() {
            0 => registers.copy_predicate(*to, *from),
            8 => registers.copy::<u64>(*to, *from),
            _ => registers.copy::<u32>(*to, *from),
        },
        Motion::Pack { element, to, from } => {
            let bits = 8 * element.bytes();
            let mut packed = [0u64; LANES];
            let mut defined = u32::MAX;
            for (at, slot) in from.iter().enumerate() {
                // What was never written makes the whole unwritten, and is noticed where that is used.
                defined &= registers.defined::<u32>(*slot);
                let part = registers.peek::<u32>(*slot);
                let mask = if bits == 16 { 0xffff } else { u32::MAX };
                for lane in 0..LANES {
                    packed[lane] |= u64::from(part[lane] & mask) << (bits * at as u32);
                }
            }
            if bits * from.len() as u32 == 64 {
                registers.write(*to, packed);
                registers.undefine::<u64>(*to, !defined);
            } else {
                registers.write(*to, packed.map(|word| word as u32));
                registers.undefine::<u32>(*to, !defined);
            }
        }
        Motion::Unpack { element, to, from } => {
            let bits = 8 * element.bytes();
            let (word, defined) = if bits * to.len() as u32 == 64 {
                (*registers.peek::<u64>(*from), registers.defined::<u64>(*from))
            } else {
                (registers.peek::<u32>(*from).map(u64::from), registers.defined::<u32>(*from))
            };
            let mask = if bits == 16 { 0xffff } else { u64::from(u32::MAX) };
            for (at, slot) in to.iter().enumerate() {
                let part = word.map(|word| (word >> (bits * at as u32) & mask) as u32);
                registers.write(*slot, part);
                registers.undefine::<u32>(*slot, !defined);
            }
        }
        Motion::Address { space, to_space, to, from } => {
            let base = windows::base(*space);
            if *to_space {
                registers.map(*to, *from, |address: u64| address.wrapping_sub(base));
            } else {
                registers.map(*to, *from, |address: u64| address.wrapping_add(base));
            }
        }
        Motion::Clock { kind, to } => {
            if kind.bytes() == 8 {
                registers.write(*to, [clock; LANES]);
            } else {
                registers.write(*to, [clock as u32; LANES]);
            }
        }
    }
}

//! Executes atomic operations, lane after lane.

use super::access::Deed;
use super::numbers::{Brain, Half, Short, fused};
use super::registers::{Word, lanes_of};
use super::traffic;
use super::trouble::Outcome;
use super::turn::{Next, Turn};
use crate::ptx::Type;
use crate::ptx::decode::atomic::{Atomic, AtomicOperation as Is};
use crate::ptx::registers::Slot;
use crate::ptx::resolver::Space;

impl Turn<'_, '_> {
    pub(crate) fn atomic(&mut self, atomic: &Atomic) -> Outcome<Next> {
        let length = atomic.kind.bytes() as usize;
        let addresses = self.addresses(&atomic.address);
        let (addresses, masks) = self.resolve(atomic.space, addresses);
        for (space, mask) in masks.into_iter().filter(|(_, mask)| *mask != 0) {
            match space {
                Space::Shared => traffic::note_shared(&mut self.machine.counts, &addresses, mask, length),
                _ => traffic::note_global(&mut self.machine.counts, Deed::Modify, &addresses, mask, length),
            }
            for lane in lanes_of(mask) {
                let start = self.check(space, Deed::Modify, atomic.order, lane, addresses[lane], length)?;
                self.synchronise(space, lane, addresses[lane], atomic.order, Deed::Modify);
                let mut word = [0; 8];
                word[..length].copy_from_slice(&self.bytes(space, start)[..length]);
                let old = u64::from_le_bytes(word);
                let first = self.operand(atomic.first, lane, length);
                let second = self.operand(atomic.second, lane, length);
                let new = apply(atomic.operation, atomic.kind, old, first, second);
                self.bytes_mut(space, start)[..length].copy_from_slice(&new.to_le_bytes()[..length]);
                if new != old {
                    self.machine.progress();
                }
                match atomic.to {
                    Some(to) if length == 8 => self.warp.registers.write_lane(to, lane, old),
                    Some(to) => self.warp.registers.write_lane(to, lane, old as u32),
                    None => {}
                }
            }
        }
        Ok(self.after(atomic.order))
    }

    fn operand(&mut self, slot: Slot, lane: usize, length: usize) -> u64 {
        match length {
            8 => self.warp.registers.read_lane::<u64>(slot, lane),
            _ => self.warp.registers.read_lane::<u32>(slot, lane).to_u64(),
        }
    }
}

/// What replaces `old`.
fn apply(operation: Is, kind: Type, old: u64, first: u64, second: u64) -> u64 {
    match operation {
        Is::Add => add(kind, old, first),
        Is::Exchange => first,
        Is::CompareAndSwap => {
            if old == first {
                second
            } else {
                old
            }
        }
        Is::And => old & first,
        Is::Or => old | first,
        Is::Xor => old ^ first,
        Is::Increment => {
            if old >= first {
                0
            } else {
                old + 1
            }
        }
        Is::Decrement => {
            if old == 0 || old > first {
                first
            } else {
                old - 1
            }
        }
        Is::Minimum | Is::Maximum => {
            let is_less = match kind {
                Type::S32 => (old as i32) < (first as i32),
                Type::S64 => (old as i64) < (first as i64),
                _ => old < first,
            };
            if is_less == (operation == Is::Minimum) { old } else { first }
        }
    }
}

fn add(kind: Type, old: u64, first: u64) -> u64 {
    match kind {
        Type::F32 => u64::from((f32::from_bits(old as u32) + f32::from_bits(first as u32)).to_bits()),
        Type::F64 => (f64::from_bits(old) + f64::from_bits(first)).to_bits(),
        Type::F16 => u64::from(add_short::<Half>(old as u16, first as u16)),
        Type::BF16 => u64::from(add_short::<Brain>(old as u16, first as u16)),
        Type::F16x2 => add_pair::<Half>(old, first),
        Type::BF16x2 => add_pair::<Brain>(old, first),
        kind if kind.bytes() == 8 => old.wrapping_add(first),
        _ => u64::from((old as u32).wrapping_add(first as u32)),
    }
}

fn add_short<S: Short>(first: u16, second: u16) -> u16 {
    let widen = |bits| f64::from(S::from_bits(bits).widen());
    S::round(fused(widen(first), 1.0, widen(second))).bits()
}

fn add_pair<S: Short>(first: u64, second: u64) -> u64 {
    let low = add_short::<S>(first as u16, second as u16);
    let high = add_short::<S>((first >> 16) as u16, (second >> 16) as u16);
    u64::from(low) | u64::from(high) << 16
}

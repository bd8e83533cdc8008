//! Executes exchanges between the lanes of a warp.
//!
//! None of them orders memory: only `bar.warp.sync` and barriers of the block do, as CUDA's documentation says.

use super::registers::{LANES, Lanes, Word, lanes_of};
use super::trouble::{Outcome, trouble};
use super::turn::Turn;
use crate::ptx::Type;
use crate::ptx::decode::warp::{Combine, Shuffle, Vote, Warp};
use crate::ptx::registers::Slot;

impl Turn<'_, '_> {
    pub(crate) fn exchange(&mut self, instruction: &Warp) -> Outcome {
        match *instruction {
            Warp::Shuffle { mode, to, valid, from, lane, clamp, mask } => {
                self.converged(mask, "`shfl.sync`")?;
                let (result, holds) = self.shuffle(mode, from, lane, clamp)?;
                self.warp.registers.write(to, result);
                if let Some(valid) = valid {
                    self.warp.registers.set_predicate(valid, holds);
                }
            }
            Warp::Vote { vote, to, by, mask } => {
                self.converged(mask, "`vote.sync`")?;
                let registers = &mut self.warp.registers;
                let active = registers.active;
                let holds = registers.predicate(by);
                let all = |yes: bool| if yes { u32::MAX } else { 0 };
                match vote {
                    Vote::Ballot => registers.write(to, [holds; LANES]),
                    Vote::All => registers.set_predicate(to, all(holds == active)),
                    Vote::Any => registers.set_predicate(to, all(holds != 0)),
                    Vote::Same => registers.set_predicate(to, all(holds == active || holds == 0)),
                }
            }
            Warp::Match { all, kind, to, holds, from, mask } => {
                self.converged(mask, "`match.sync`")?;
                let values = if kind.bytes() == 8 {
                    self.warp.registers.read::<u64>(from)
                } else {
                    self.warp.registers.read::<u32>(from).map(Word::to_u64)
                };
                let registers = &mut self.warp.registers;
                let matches = matching(&values, registers.active);
                let is_one = lanes_of(registers.active).all(|lane| matches[lane] == registers.active);
                registers.write(to, if all && !is_one { [0; LANES] } else { matches });
                if let Some(holds) = holds {
                    registers.set_predicate(holds, if is_one { u32::MAX } else { 0 });
                }
            }
            Warp::Reduce { combine, kind, to, from, mask } => {
                self.converged(mask, "`redux.sync`")?;
                let registers = &mut self.warp.registers;
                let values = registers.read::<u32>(from);
                let combined = lanes_of(registers.active).map(|lane| values[lane]);
                let result = combined.reduce(|first, second| join(combine, kind, first, second));
                registers.write(to, [result.unwrap_or_default(); LANES]);
            }
            Warp::ActiveMask { to } => {
                let active = self.warp.registers.active;
                self.warp.registers.write(to, [active; LANES]);
            }
        }
        Ok(())
    }

    /// What every lane reads, and the lanes whose source lies in their segment.
    fn shuffle(&mut self, mode: Shuffle, from: Slot, lane: Slot, clamp: Slot) -> Outcome<(Lanes<u32>, u32)> {
        let registers = &mut self.warp.registers;
        let active = registers.active;
        let values = registers.read::<u32>(from);
        let offsets = registers.read::<u32>(lane);
        let clamps = registers.read::<u32>(clamp);
        let mut result = [0; LANES];
        let mut holds = 0;
        for lane in lanes_of(active) {
            let (source, is_valid) = source_of(mode, lane as u32, offsets[lane], clamps[lane]);
            if active >> source & 1 == 0 {
                return trouble(lane, format!("`shfl.sync` reads lane {source}, which takes no part"));
            }
            result[lane] = values[source as usize];
            holds |= u32::from(is_valid) << lane;
        }
        Ok((result, holds))
    }
}

/// The lane that a lane reads from, and whether that lies in its segment.
fn source_of(mode: Shuffle, lane: u32, offset: u32, clamp: u32) -> (u32, bool) {
    let offset = offset & 31;
    let segment = clamp >> 8 & 31;
    let bound = clamp & 31;
    let last = (lane & segment) | (bound & !segment);
    let (source, is_valid) = match mode {
        Shuffle::Up => (lane.wrapping_sub(offset), lane as i32 - offset as i32 >= last as i32),
        Shuffle::Down => (lane + offset, lane + offset <= last),
        Shuffle::Butterfly => (lane ^ offset, lane ^ offset <= last),
        Shuffle::Index => {
            let source = (lane & segment) | (offset & !segment);
            (source, source <= last)
        }
    };
    if is_valid { (source, true) } else { (lane, false) }
}

/// For every lane the lanes with its value.
fn matching(values: &Lanes<u64>, active: u32) -> Lanes<u32> {
    std::array::from_fn(|lane| {
        lanes_of(active)
            .filter(|other| values[*other] == values[lane])
            .fold(0, |mask, other| mask | 1 << other)
    })
}

fn join(combine: Combine, kind: Type, first: u32, second: u32) -> u32 {
    let signed = kind.is_signed();
    match combine {
        Combine::Add => first.wrapping_add(second),
        Combine::Minimum if signed => (first as i32).min(second as i32) as u32,
        Combine::Maximum if signed => (first as i32).max(second as i32) as u32,
        Combine::Minimum => first.min(second),
        Combine::Maximum => first.max(second),
        Combine::And => first & second,
        Combine::Or => first | second,
        Combine::Xor => first ^ second,
    }
}

//! Executes barriers and fences.
//!
//! All live lanes of a warp arrive together, and all threads of a block at the same instruction; hardware counts
//! warps and forgives more, until it hangs or goes on too early.

use std::rc::Rc;

use super::block::{BARRIERS, BlockState};
use super::registers::{LANES, lanes_of};
use super::trouble::{Outcome, trouble};
use super::turn::{Next, Turn};
use super::warps::Warp;
use crate::ptx::decode::barrier::{Barrier, Reduction};
use crate::ptx::registers::Slot;
use crate::races::Knowledge;

/// A barrier of a block.
#[derive(Debug, Default)]
pub(crate) struct BlockBarrier {
    /// Threads that came.
    arrived: u32,
    /// Threads that must come; `None` for all of the block.
    expected: Option<u32>,
    /// Instruction at which the first came.
    at: u32,
    /// Threads that came with a predicate that holds.
    holding: u32,
    waiting: Vec<usize>,
    /// What those that came know.
    told: Knowledge,
}

/// A warp that a barrier let go, with what the barrier found.
#[derive(Clone, Debug)]
pub(crate) struct Woken {
    pub(crate) warp: usize,
    arrived: u32,
    holding: u32,
    told: Rc<Knowledge>,
}

impl Warp {
    /// Goes on behind a barrier.
    pub(crate) fn wake(&mut self, woken: &Woken) {
        self.waits_at = None;
        self.order.learn(self.live, &woken.told);
        let Some((reduction, to)) = self.wants.take() else { return };
        self.registers.active = self.live;
        match reduction {
            Reduction::Count => self.registers.write(to, [woken.holding; LANES]),
            Reduction::All => {
                self.registers.set_predicate(to, if woken.holding == woken.arrived { u32::MAX } else { 0 });
            }
            Reduction::Any => self.registers.set_predicate(to, if woken.holding > 0 { u32::MAX } else { 0 }),
        }
    }
}

impl BlockState {
    /// Lets the warps at a barrier go if everybody came.
    fn release(&mut self, number: usize) {
        let barrier = &mut self.barriers[number];
        if barrier.arrived == 0 || barrier.arrived < barrier.expected.unwrap_or(self.live_threads) {
            return;
        }
        let barrier = std::mem::take(barrier);
        let (arrived, holding) = (barrier.arrived, barrier.holding);
        let told = Rc::new(barrier.told);
        let wake = |warp| Woken { warp, arrived, holding, told: Rc::clone(&told) };
        self.woken.extend(barrier.waiting.into_iter().map(wake));
    }
}

impl Turn<'_, '_> {
    pub(crate) fn barrier(&mut self, barrier: &Barrier) -> Outcome<Next> {
        match barrier {
            Barrier::Fence(scope) => {
                self.fence(*scope);
                Ok(Next::Yield)
            }
            Barrier::Warp { mask } => {
                let lanes = self.converged(*mask, "`bar.warp.sync`")?;
                self.join_lanes(lanes);
                Ok(Next::Accessed)
            }
            Barrier::Block { number, threads, waits, reduction } => {
                let number = self.uniform(*number, "the number of a barrier")?;
                let expected = match threads {
                    Some(slot) => Some(self.uniform(*slot, "the number of threads at a barrier")?),
                    None => None,
                };
                let holding = match reduction {
                    Some((_, _, by)) => self.warp.registers.predicate(*by).count_ones(),
                    None => 0,
                };
                self.warp.wants = reduction.map(|(reduction, to, _): (_, Slot, _)| (reduction, to));
                self.arrive(number as usize, expected, *waits, holding)
            }
        }
    }

    /// The value that all active lanes have in a register.
    fn uniform(&mut self, slot: Slot, name: &str) -> Outcome<u32> {
        let values = self.warp.registers.read::<u32>(slot);
        let active = self.warp.registers.active;
        let first = active.trailing_zeros() as usize;
        match lanes_of(active).find(|lane| values[*lane] != values[first]) {
            Some(lane) => trouble(lane, format!("{name} differs between lanes")),
            None => Ok(values[first]),
        }
    }

    fn arrive(&mut self, number: usize, expected: Option<u32>, waits: bool, holding: u32) -> Outcome<Next> {
        let active = self.warp.registers.active;
        let lane = active.trailing_zeros() as usize;
        let at = self.warp.frames.last().map_or(0, |top| top.at);
        if number >= BARRIERS {
            return trouble(lane, format!("barrier {number} of {BARRIERS}"));
        }
        if active != self.warp.live {
            let what = format!(
                "divergent barrier: {} of the {} live lanes of the warp arrive",
                active.count_ones(),
                self.warp.live.count_ones()
            );
            return trouble(lane, what);
        }
        if expected.is_some_and(|threads| threads == 0 || !threads.is_multiple_of(LANES as u32)) {
            return trouble(lane, "a barrier for threads that are not whole warps".to_owned());
        }
        let threads = if expected.is_some() { LANES as u32 } else { active.count_ones() };
        let barrier = &mut self.state.barriers[number];
        if barrier.arrived == 0 {
            barrier.at = at;
            barrier.expected = expected;
        } else if barrier.expected != expected {
            return trouble(lane, format!("barrier {number} is for other numbers of threads"));
        } else if expected.is_none() && barrier.at != at {
            let line = self.machine.entry.code[barrier.at as usize].line;
            let what = format!(
                "divergent barrier: other threads of the block wait at barrier {number} in line {line}"
            );
            return trouble(lane, what);
        }
        let mut told = std::mem::take(&mut barrier.told);
        self.warp.order.tell(active, self.warp.number, self.state, &mut told);
        let barrier = &mut self.state.barriers[number];
        barrier.told = told;
        barrier.arrived += threads;
        barrier.holding += holding;
        if expected.is_some_and(|expected| barrier.arrived > expected) {
            return trouble(lane, format!("more threads arrive at barrier {number} than it is for"));
        }
        self.machine.counts.barriers += 1;
        self.machine.progress();
        if waits {
            barrier.waiting.push(self.warp.number);
            self.warp.waits_at = Some((number, at));
        }
        self.state.release(number);
        Ok(if waits { Next::Wait } else { Next::Yield })
    }

    /// Called when threads exit: those at barriers for the whole block may have waited for them.
    pub(crate) fn release_barriers(&mut self) -> Outcome {
        for number in 0..BARRIERS {
            if self.state.barriers[number].expected.is_none() {
                self.state.release(number);
            }
        }
        Ok(())
    }

    /// The lanes that an instruction names that wants them together; all that live must be here.
    pub(crate) fn converged(&mut self, mask: Slot, name: &str) -> Outcome<u32> {
        let named = self.uniform(mask, "the mask of lanes")?;
        let active = self.warp.registers.active;
        if active & !named != 0 {
            let lane = (active & !named).trailing_zeros() as usize;
            return trouble(lane, format!("{name} by a lane that its mask {named:#010x} does not name"));
        }
        let absent = named & self.warp.live & !active;
        if absent != 0 {
            let what = format!(
                "{name} names the lanes {named:#010x}, of which {absent:#010x} do not arrive converged"
            );
            return trouble(active.trailing_zeros() as usize, what);
        }
        if named & !self.warp.live != 0 {
            let gone = named & !self.warp.live;
            let what = format!("{name} names the lanes {gone:#010x}, which do not exist or have exited");
            return trouble(active.trailing_zeros() as usize, what);
        }
        Ok(named)
    }
}

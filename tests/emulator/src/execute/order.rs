//! What a warp's lanes know of others, and how instructions tell and learn it.

use std::rc::Rc;

use super::access::{Deed, verb};
use super::block::BlockState;
use super::grid::coordinates;
use super::registers::{LANES, lanes_of};
use super::trouble::{Outcome, trouble};
use super::turn::Turn;
use crate::ptx::decode::memory::{Order, Scope};
use crate::ptx::resolver::Space;
use crate::races::{Conflict, Epoch, Knowledge, Observer, Reach, Release, Touch};

/// Clocks and knowledge of the lanes of a warp.
#[derive(Debug)]
pub(crate) struct WarpOrder {
    clocks: [u32; LANES],
    knowledge: [Rc<Knowledge>; LANES],
    /// What each lane told with its last fence; relaxed writes behind it carry it.
    fences: [Option<Box<Release>>; LANES],
    /// What relaxed reads saw; the next fence learns it.
    pending: [Option<Box<Knowledge>>; LANES],
    /// What each lane learnt last, because those that poll learn the same again and again.
    learnt: [[Option<Rc<Knowledge>>; 2]; LANES],
}

impl Default for WarpOrder {
    fn default() -> WarpOrder {
        let nothing = Rc::new(Knowledge::default());
        WarpOrder {
            clocks: [1; LANES],
            knowledge: std::array::from_fn(|_| Rc::clone(&nothing)),
            fences: std::array::from_fn(|_| None),
            pending: std::array::from_fn(|_| None),
            learnt: std::array::from_fn(|_| [None, None]),
        }
    }
}

impl WarpOrder {
    /// Adds what `lanes` know to `told`, and lets their clocks go on.
    pub(crate) fn tell(&mut self, lanes: u32, warp: usize, state: &BlockState, told: &mut Knowledge) {
        let mut last: Option<&Rc<Knowledge>> = None;
        for lane in lanes_of(lanes) {
            let own = &self.knowledge[lane];
            if !last.is_some_and(|last| Rc::ptr_eq(last, own)) {
                told.join(own);
                last = Some(own);
            }
            told.learn(state.number, state.threads, warp * LANES + lane, self.clocks[lane]);
        }
        for lane in lanes_of(lanes) {
            self.clocks[lane] += 1;
        }
    }

    /// Replaces what `lanes` know by something that includes it.
    pub(crate) fn learn(&mut self, lanes: u32, told: &Rc<Knowledge>) {
        for lane in lanes_of(lanes) {
            self.knowledge[lane] = Rc::clone(told);
        }
    }

    fn release(&mut self, lane: usize, warp: usize, state: &BlockState, scope: Scope) -> Release {
        let release = Release {
            knowledge: Rc::clone(&self.knowledge[lane]),
            block: state.number,
            threads: state.threads,
            thread: warp * LANES + lane,
            clock: self.clocks[lane],
            reach: reach_of(scope, state),
        };
        self.clocks[lane] += 1;
        release
    }
}

fn reach_of(scope: Scope, state: &BlockState) -> Reach {
    match scope {
        Scope::Block => Reach::Block(state.number),
        Scope::Device => Reach::Device,
    }
}

impl Turn<'_, '_> {
    /// `bar.warp.sync`: its lanes know of each other.
    pub(crate) fn join_lanes(&mut self, lanes: u32) {
        let mut told = Knowledge::default();
        self.warp.order.tell(lanes, self.warp.number, self.state, &mut told);
        self.warp.order.learn(lanes, &Rc::new(told));
    }

    /// A fence: what was read relaxed is acquired, what is written relaxed from now on releases.
    pub(crate) fn fence(&mut self, scope: Scope) {
        for lane in lanes_of(self.warp.registers.active) {
            if let Some(seen) = self.warp.order.pending[lane].take() {
                Rc::make_mut(&mut self.warp.order.knowledge[lane]).join(&seen);
            }
            let release = self.warp.order.release(lane, self.warp.number, self.state, scope);
            self.warp.order.fences[lane] = Some(Box::new(release));
        }
    }

    /// What an access that synchronises tells and learns.
    pub(crate) fn synchronise(&mut self, space: Space, lane: usize, address: u64, order: Order, deed: Deed) {
        let (scope, acquires, releases) = match order {
            Order::Weak => return,
            Order::Relaxed(scope) => (scope, false, false),
            Order::Acquire(scope) => (scope, true, false),
            Order::Release(scope) => (scope, false, true),
            Order::AcquireRelease(scope) => (scope, true, true),
        };
        let (block, reach) = (self.state.number, reach_of(scope, self.state));
        if deed != Deed::Write {
            let is_shared = space == Space::Shared;
            let variables = if is_shared { &self.state.variables } else { &self.machine.variables };
            for (at, told) in variables.read(address, block, reach).into_iter().enumerate() {
                let Some(told) = told else { continue };
                let order = &mut self.warp.order;
                if !acquires {
                    order.pending[lane].get_or_insert_default().join(told);
                } else if !order.learnt[lane][at].as_ref().is_some_and(|learnt| Rc::ptr_eq(learnt, told)) {
                    Rc::make_mut(&mut order.knowledge[lane]).join(told);
                    order.learnt[lane][at] = Some(Rc::clone(told));
                }
            }
        }
        if matches!(deed, Deed::Write | Deed::Modify) {
            let release = if releases {
                Some(Box::new(self.warp.order.release(lane, self.warp.number, self.state, scope)))
            } else {
                self.warp.order.fences[lane].clone()
            };
            let is_shared = space == Space::Shared;
            let variables = if is_shared { &mut self.state.variables } else { &mut self.machine.variables };
            variables.write(address, release.as_deref(), block, deed == Deed::Modify);
        }
    }

    /// Checks that nothing that others did to these bytes is unordered with what a lane does now.
    #[inline]
    pub(crate) fn touch(
        &mut self,
        space: Space,
        deed: Deed,
        order: Order,
        lane: usize,
        start: usize,
        length: usize,
    ) -> Outcome {
        let (at, line) = (self.warp.number * LANES + lane, self.line);
        let is_atomic = order != Order::Weak || deed == Deed::Modify;
        let observer = Observer {
            epoch: Epoch::new(self.state.number, at, self.warp.order.clocks[lane], is_atomic),
            knowledge: &self.warp.order.knowledge[lane],
            line,
            blocks_synchronise: self.machine.blocks_synchronise,
        };
        let touch = match deed {
            Deed::Read => Touch::Read,
            Deed::ReadConstant => Touch::ReadConstant,
            Deed::Write | Deed::Modify => Touch::Write,
        };
        let generation = self.machine.memory.generation;
        let region = match space {
            Space::Shared => &mut self.state.shared,
            _ => &mut self.machine.memory.allocations[self.machine.recent],
        };
        match region.shadow.touch(generation, start, length, touch, &observer) {
            Ok(()) => Ok(()),
            Err(conflict) => {
                let address = region.address + start as u64;
                self.race(space, deed, lane, (address, length), &conflict)
            }
        }
    }

    #[cold]
    fn race(
        &self,
        space: Space,
        deed: Deed,
        lane: usize,
        (address, length): (u64, usize),
        conflict: &Conflict,
    ) -> Outcome {
        let memory = if space == Space::Shared { "shared" } else { "global" };
        let access = if conflict.wrote { "write" } else { "read" };
        let who = match conflict.epoch {
            None => "threads of several blocks".to_owned(),
            Some(epoch) => {
                let [x, y, z] = coordinates(epoch.thread() as u64, self.machine.shape.block);
                let [block_x, block_y, block_z] =
                    coordinates(u64::from(epoch.block()), self.machine.shape.grid);
                format!("thread ({x}, {y}, {z}) of block ({block_x}, {block_y}, {block_z})")
            }
        };
        let because = if deed == Deed::ReadConstant && conflict.wrote {
            "the read promises that nobody writes while the kernel runs"
        } else {
            "nothing orders the two"
        };
        let what = format!(
            "race: {} {length} bytes of {memory} memory at {address:#x} and the {access} by {who} in line {}: {because}",
            verb(deed),
            conflict.line
        );
        trouble(lane, what)
    }
}

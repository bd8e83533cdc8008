//! A warp: its registers and where its lanes are.
//!
//! Lanes part at branches and meet again at the branch's immediate post-dominator. The parts lie on a stack; the
//! top one runs until it arrives where it is to meet the others.

use super::asynchronous::Copies;
use super::order::WarpOrder;
use super::registers::{LANES, Registers};
use crate::ptx::NOWHERE;
use crate::ptx::decode::barrier::Reduction;
use crate::ptx::registers::Slot;

/// Lanes that run together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    /// Number of the next instruction.
    pub(crate) at: u32,
    /// Where these lanes wait for others.
    pub(crate) meeting: u32,
    pub(crate) lanes: u32,
}

/// A warp of a resident block.
#[derive(Debug)]
pub(crate) struct Warp {
    /// Number in its block.
    pub(crate) number: usize,
    pub(crate) registers: Registers,
    pub(crate) frames: Vec<Frame>,
    /// Lanes that have not exited.
    pub(crate) live: u32,
    /// Barrier of the block that it waits at, and the instruction.
    pub(crate) waits_at: Option<(usize, u32)>,
    /// What the barrier is to give it.
    pub(crate) wants: Option<(Reduction, Slot)>,
    /// Asynchronous copies of every lane.
    pub(crate) copies: [Copies; LANES],
    /// Local memory of all lanes, one behind the other, and which bytes of it were written.
    pub(crate) local: Vec<u8>,
    pub(crate) local_written: Vec<bool>,
    pub(crate) order: WarpOrder,
    /// Instructions it has executed.
    pub(crate) instructions: u64,
}

impl Warp {
    /// A warp before its first instruction, with lanes 0 … `threads - 1`.
    pub(crate) fn new(number: usize, threads: usize, registers: Registers, local_bytes: usize) -> Warp {
        let live = if threads >= LANES { u32::MAX } else { (1 << threads) - 1 };
        Warp {
            number,
            registers,
            frames: vec![Frame { at: 0, meeting: NOWHERE, lanes: live }],
            live,
            waits_at: None,
            wants: None,
            copies: std::array::from_fn(|_| Copies::default()),
            local: vec![0; local_bytes * LANES],
            local_written: vec![false; local_bytes * LANES],
            order: WarpOrder::default(),
            instructions: 0,
        }
    }

    /// The lanes that run next, after those have been joined that met; `None` after the end.
    pub(crate) fn current(&mut self) -> Option<Frame> {
        loop {
            let frame = *self.frames.last()?;
            if frame.lanes != 0 && frame.at != frame.meeting {
                return Some(frame);
            }
            self.frames.pop();
        }
    }

    /// Sends the lanes of the top frame on; `jumping` ones to `target`, the others to the next instruction.
    ///
    /// Where they part, `jumps_first` decides who runs first.
    pub(crate) fn branch(&mut self, target: u32, meeting: u32, jumping: u32, jumps_first: bool) {
        let Some(top) = self.frames.last_mut() else { return };
        let staying = top.lanes & !jumping;
        let next = top.at + 1;
        if staying == 0 || jumping == 0 {
            top.at = if jumping == 0 { next } else { target };
            return;
        }
        self.part([(next, staying), (target, jumping)], meeting, jumps_first);
    }

    /// Replaces the top frame by two that meet at `meeting`.
    fn part(&mut self, sides: [(u32, u32); 2], meeting: u32, second_first: bool) {
        let Some(mut top) = self.frames.pop() else { return };
        let meets = if meeting == NOWHERE { top.meeting } else { meeting };
        // Where the lanes below wait at the same place, they wait for these too.
        if meets != top.meeting {
            top.at = meets;
            self.frames.push(top);
        }
        let order = if second_first { [sides[0], sides[1]] } else { [sides[1], sides[0]] };
        for (at, lanes) in order {
            if at != meets || meets == NOWHERE {
                self.frames.push(Frame { at, meeting: meets, lanes });
            }
        }
    }

    /// Sends the lanes of the top frame to several targets.
    pub(crate) fn scatter(&mut self, groups: &[(u32, u32)], meeting: u32) {
        let Some(mut top) = self.frames.pop() else { return };
        let meets = if meeting == NOWHERE { top.meeting } else { meeting };
        if meets != top.meeting {
            top.at = meets;
            self.frames.push(top);
        }
        for &(at, lanes) in groups.iter().filter(|(at, _)| *at != meets || meets == NOWHERE) {
            self.frames.push(Frame { at, meeting: meets, lanes });
        }
    }

    /// Ends `lanes`.
    pub(crate) fn exit(&mut self, lanes: u32) {
        self.live &= !lanes;
        for frame in &mut self.frames {
            frame.lanes &= !lanes;
        }
    }
}

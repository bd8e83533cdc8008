//! Executes asynchronous copies as late as their wait allows.
//!
//! Until then the destination is in flight: reading or writing it is a fault, whoever does it. The source is read
//! when the copy begins and compared when it lands, because hardware may read it at any time between.

use std::collections::VecDeque;

use super::access::Deed;
use super::registers::{LANES, lanes_of};
use super::traffic;
use super::trouble::{Outcome, trouble};
use super::turn::{Next, Turn};
use crate::ptx::decode::asynchronous::Asynchronous;
use crate::ptx::decode::memory::Order;
use crate::ptx::resolver::Space;

/// A copy on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copy {
    /// Where in shared memory.
    to: usize,
    bytes: usize,
    content: [u8; 16],
    /// Address and length of what it was read from.
    source: (u64, usize),
}

/// What a lane has on its way.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    open: Vec<Copy>,
    groups: VecDeque<Vec<Copy>>,
}

impl Turn<'_, '_> {
    pub(crate) fn asynchronous(&mut self, instruction: &Asynchronous) -> Outcome<Next> {
        let active = self.warp.registers.active;
        match instruction {
            Asynchronous::Copy { .. } => self.begin_copies(instruction),
            Asynchronous::Commit => {
                for lane in lanes_of(active) {
                    let copies = &mut self.warp.copies[lane];
                    let group = std::mem::take(&mut copies.open);
                    copies.groups.push_back(group);
                }
                Ok(Next::Step)
            }
            Asynchronous::Wait(most) => {
                for lane in lanes_of(active) {
                    while self.warp.copies[lane].groups.len() > *most as usize {
                        let group = self.warp.copies[lane].groups.pop_front();
                        self.land(lane, &group.unwrap_or_default())?;
                    }
                }
                Ok(Next::Accessed)
            }
            Asynchronous::WaitAll => {
                for lane in lanes_of(active) {
                    let copies = std::mem::take(&mut self.warp.copies[lane]);
                    for group in copies.groups.iter().chain([&copies.open]) {
                        self.land(lane, group)?;
                    }
                }
                Ok(Next::Accessed)
            }
        }
    }

    fn begin_copies(&mut self, instruction: &Asynchronous) -> Outcome<Next> {
        let Asynchronous::Copy { to, from, bytes, source_bytes, ignores } = instruction else {
            return Ok(Next::Step);
        };
        let length = *bytes as usize;
        let active = self.warp.registers.active;
        let targets = self.addresses(to);
        let sources = self.addresses(from);
        let read = match source_bytes {
            Some(slot) => self.warp.registers.read::<u32>(*slot),
            None => [*bytes; LANES],
        };
        let ignored = ignores.map_or(0, |predicate| self.warp.registers.predicate(predicate));
        let reading =
            lanes_of(active & !ignored).filter(|lane| read[*lane] > 0).fold(0, |all, lane| all | 1 << lane);
        traffic::note_global(&mut self.machine.counts, Deed::Read, &sources, reading, length);
        traffic::note_shared(&mut self.machine.counts, &targets, active, length);
        for lane in lanes_of(active) {
            let wanted = read[lane] as usize;
            if wanted > length {
                return trouble(lane, format!("a copy of {length} bytes that reads {wanted}"));
            }
            let mut content = [0; 16];
            let mut source = (sources[lane], 0);
            if reading >> lane & 1 == 1 {
                source.1 = wanted;
                self.read_source(lane, sources[lane], length, wanted, &mut content)?;
            }
            let start = self.check(Space::Shared, Deed::Write, Order::Weak, lane, targets[lane], length)?;
            for at in start..start + length {
                self.state.in_flight[at / 16] |= 1 << (at % 16);
            }
            self.warp.copies[lane].open.push(Copy { to: start, bytes: length, content, source });
        }
        self.machine.progress();
        Ok(Next::Accessed)
    }

    /// Reads the first `wanted` of `length` bytes; the address is aligned to `length` all the same.
    fn read_source(
        &mut self,
        lane: usize,
        address: u64,
        length: usize,
        wanted: usize,
        into: &mut [u8; 16],
    ) -> Outcome {
        if !address.is_multiple_of(length as u64) {
            return trouble(lane, format!("copying {length} bytes from {address:#x} is misaligned"));
        }
        let start = self.check_global(Deed::Read, Order::Weak, lane, address, wanted)?;
        into[..wanted].copy_from_slice(&self.bytes(Space::Global, start)[..wanted]);
        Ok(())
    }

    fn land(&mut self, lane: usize, copies: &[Copy]) -> Outcome {
        for copy in copies {
            let (address, length) = copy.source;
            if length > 0 {
                let mut now = [0; 16];
                let start = self.check_global(Deed::Read, Order::Weak, lane, address, length)?;
                now[..length].copy_from_slice(&self.bytes(Space::Global, start)[..length]);
                if now != copy.content {
                    let what =
                        format!("the {length} bytes at {address:#x} changed while they were being copied");
                    return trouble(lane, what);
                }
            }
            for at in copy.to..copy.to + copy.bytes {
                self.state.in_flight[at / 16] &= !(1 << (at % 16));
            }
            self.touch(Space::Shared, Deed::Write, Order::Weak, lane, copy.to, copy.bytes)?;
            self.bytes_mut(Space::Shared, copy.to)[..copy.bytes].copy_from_slice(&copy.content[..copy.bytes]);
            self.note_written(Space::Shared, copy.to, copy.bytes);
        }
        Ok(())
    }
}

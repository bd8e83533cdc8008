//! Executes loads and stores: every lane's address is checked, then the bytes move.

use super::registers::{LANES, Lanes, Word, lanes_of};
use super::trouble::{Outcome, trouble};
use super::turn::{Next, Turn};
use super::{traffic, windows};
use crate::memory::Allocation;
use crate::ptx::Type;
use crate::ptx::decode::memory::{Access, Element, Order};
use crate::ptx::registers::File;
use crate::ptx::resolver::{Address, CONSTANT_BASE, LOCAL_BASE, Space};

/// Bytes of the widest access.
pub(crate) const WIDEST_BYTES: usize = 32;

/// The bytes of one lane's access.
pub(crate) type Bytes = [u8; WIDEST_BYTES];

/// What a lane does to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    Read,
    /// A read that promises that nobody writes.
    ReadConstant,
    Write,
    /// Reads and writes at once.
    Modify,
}

impl Turn<'_, '_> {
    pub(crate) fn access(&mut self, access: &Access) -> Outcome<Next> {
        match access {
            Access::Load { space: Space::Parameter, kind, to, address, .. } => {
                self.load_parameter(*kind, to, address)?;
                Ok(Next::Step)
            }
            Access::Load { space, order, constant, kind, to, address } => {
                let deed = if *constant { Deed::ReadConstant } else { Deed::Read };
                self.load(*space, *order, deed, *kind, to, address)
            }
            Access::Store { space, order, kind, from, address } => {
                self.store(*space, *order, *kind, from, address)
            }
            Access::Prefetch => Ok(Next::Step),
        }
    }

    /// The address of every lane.
    pub(crate) fn addresses(&mut self, address: &Address) -> Lanes<u64> {
        let base = match address.base {
            None => return [address.offset; LANES],
            Some((File::Wide, slot)) => self.warp.registers.read::<u64>(slot),
            Some((_, slot)) => self.warp.registers.read::<u32>(slot).map(u64::from),
        };
        base.map(|base| base.wrapping_add(address.offset))
    }

    /// Splits the active lanes by the memory that their addresses lie in, and gives addresses there.
    pub(crate) fn resolve(&self, space: Space, mut addresses: Lanes<u64>) -> (Lanes<u64>, [(Space, u32); 3]) {
        let active = self.warp.registers.active;
        let mut masks = [(Space::Global, 0), (Space::Shared, 0), (Space::Local, 0)];
        match space {
            Space::Generic => {
                for lane in lanes_of(active) {
                    let (space, address) = windows::resolve(addresses[lane]);
                    addresses[lane] = address;
                    masks
                        .iter_mut()
                        .filter(|(other, _)| *other == space)
                        .for_each(|(_, mask)| *mask |= 1 << lane);
                }
            }
            Space::Constant => masks[0].1 = active,
            space => {
                masks.iter_mut().filter(|(other, _)| *other == space).for_each(|(_, mask)| *mask = active)
            }
        }
        (addresses, masks)
    }

    fn load_parameter(&mut self, kind: Type, to: &[Element], address: &Address) -> Outcome {
        let start = address.offset as usize;
        let length = kind.bytes() as usize * to.len();
        let Some(bytes) = self.machine.parameters.get(start..start + length) else {
            return trouble(0, format!("{length} bytes at {start} lie outside the parameters"));
        };
        let mut buffer = [0; WIDEST_BYTES];
        buffer[..length].copy_from_slice(bytes);
        for lane in lanes_of(self.warp.registers.active) {
            self.put(kind, to, lane, &buffer);
        }
        Ok(())
    }

    fn load(
        &mut self,
        space: Space,
        order: Order,
        deed: Deed,
        kind: Type,
        to: &[Element],
        address: &Address,
    ) -> Outcome<Next> {
        let length = kind.bytes() as usize * to.len();
        let addresses = self.addresses(address);
        let (addresses, masks) = self.resolve(space, addresses);
        for (space, mask) in masks.into_iter().filter(|(_, mask)| *mask != 0) {
            self.note_traffic(space, deed, &addresses, mask, length);
            let mut places = [(0, 0); LANES];
            for lane in lanes_of(mask) {
                let start = self.check(space, deed, order, lane, addresses[lane], length)?;
                places[lane] = (self.machine.recent, start);
                if order != Order::Weak {
                    self.synchronise(space, lane, addresses[lane], order, deed);
                }
            }
            self.fill(space, kind, to, mask, &places);
        }
        Ok(self.after(order))
    }

    fn store(
        &mut self,
        space: Space,
        order: Order,
        kind: Type,
        from: &[Element],
        address: &Address,
    ) -> Outcome<Next> {
        let length = kind.bytes() as usize * from.len();
        let addresses = self.addresses(address);
        let (addresses, masks) = self.resolve(space, addresses);
        for (space, mask) in masks.into_iter().filter(|(_, mask)| *mask != 0) {
            self.note_traffic(space, Deed::Write, &addresses, mask, length);
            for lane in lanes_of(mask) {
                let start = self.check(space, Deed::Write, order, lane, addresses[lane], length)?;
                if order != Order::Weak {
                    self.synchronise(space, lane, addresses[lane], order, Deed::Write);
                }
                let buffer = self.take(kind, from, lane);
                self.bytes_mut(space, start)[..length].copy_from_slice(&buffer[..length]);
                self.note_written(space, start, length);
            }
        }
        self.machine.progress();
        Ok(self.after(order))
    }

    /// Whose turn it is after an access: one that synchronises gives others a chance to answer.
    pub(crate) fn after(&mut self, order: Order) -> Next {
        if order == Order::Weak {
            self.machine.progress();
            Next::Accessed
        } else {
            Next::Yield
        }
    }

    /// The elements of a load into the registers of all lanes of `mask`; a place is an allocation and a start.
    fn fill(
        &mut self,
        space: Space,
        kind: Type,
        to: &[Element],
        mask: u32,
        places: &[(usize, usize); LANES],
    ) {
        if kind.bytes() != 4 || to.iter().any(|(_, held)| *held != 4) {
            for lane in lanes_of(mask) {
                let (recent, start) = places[lane];
                self.machine.recent = recent;
                let length = kind.bytes() as usize * to.len();
                let mut buffer = [0; WIDEST_BYTES];
                buffer[..length].copy_from_slice(&self.bytes(space, start)[..length]);
                self.put(kind, to, lane, &buffer);
            }
            return;
        }
        for (at, (slot, _)) in to.iter().enumerate() {
            let into = self.warp.registers.begin_write(*slot, mask);
            for lane in lanes_of(mask) {
                let (recent, start) = places[lane];
                let bytes: &[u8] = match space {
                    Space::Shared => &self.state.shared.bytes,
                    Space::Local => &self.warp.local,
                    _ => &self.machine.memory.allocations[recent].bytes,
                };
                let start = start + 4 * at;
                let word = bytes[start..start + 4].try_into().expect("four bytes");
                into[lane] = u32::from_le_bytes(word);
            }
        }
    }

    /// The elements of a load into the registers of a lane, extended as the type's sign demands.
    fn put(&mut self, kind: Type, to: &[Element], lane: usize, bytes: &Bytes) {
        let size = kind.bytes() as usize;
        for (at, (slot, held)) in to.iter().enumerate() {
            let mut word = [0; 8];
            word[..size].copy_from_slice(&bytes[at * size..(at + 1) * size]);
            let excess = 64 - 8 * size as u32;
            let shifted = u64::from_le_bytes(word) << excess;
            let value = if kind.is_signed() { (shifted as i64 >> excess) as u64 } else { shifted >> excess };
            match held {
                8 => self.warp.registers.write_lane(*slot, lane, value),
                2 => self.warp.registers.write_lane(*slot, lane, u32::from(value as u16)),
                _ => self.warp.registers.write_lane(*slot, lane, value as u32),
            }
        }
    }

    /// The elements of a store from the registers of a lane.
    fn take(&mut self, kind: Type, from: &[Element], lane: usize) -> Bytes {
        let size = kind.bytes() as usize;
        let mut bytes = [0; WIDEST_BYTES];
        for (at, (slot, held)) in from.iter().enumerate() {
            let value = match held {
                8 => self.warp.registers.read_lane::<u64>(*slot, lane),
                _ => self.warp.registers.read_lane::<u32>(*slot, lane).to_u64(),
            };
            bytes[at * size..(at + 1) * size].copy_from_slice(&value.to_le_bytes()[..size]);
        }
        bytes
    }

    /// Memory from `start` on, where `check` said it is.
    #[inline]
    pub(crate) fn bytes(&self, space: Space, start: usize) -> &[u8] {
        match space {
            Space::Shared => &self.state.shared.bytes[start..],
            Space::Local => &self.warp.local[start..],
            _ => &self.machine.memory.allocations[self.machine.recent].bytes[start..],
        }
    }

    /// The same to be written.
    #[inline]
    pub(crate) fn bytes_mut(&mut self, space: Space, start: usize) -> &mut [u8] {
        match space {
            Space::Shared => &mut self.state.shared.bytes[start..],
            Space::Local => &mut self.warp.local[start..],
            _ => &mut self.machine.memory.allocations[self.machine.recent].bytes[start..],
        }
    }

    /// Notes that bytes are initialised from now on.
    pub(crate) fn note_written(&mut self, space: Space, start: usize, length: usize) {
        match space {
            Space::Shared => self.state.shared.initialise(start, length),
            Space::Local => self.warp.local_written[start..start + length].fill(true),
            _ => self.machine.memory.allocations[self.machine.recent].initialise(start, length),
        }
    }

    fn note_traffic(&mut self, space: Space, deed: Deed, addresses: &Lanes<u64>, mask: u32, length: usize) {
        match space {
            Space::Global => traffic::note_global(&mut self.machine.counts, deed, addresses, mask, length),
            Space::Shared => traffic::note_shared(&mut self.machine.counts, addresses, mask, length),
            _ => {}
        }
    }

    /// Checks the access of a lane in every way there is; where in its memory it begins.
    pub(crate) fn check(
        &mut self,
        space: Space,
        deed: Deed,
        order: Order,
        lane: usize,
        address: u64,
        length: usize,
    ) -> Outcome<usize> {
        // Every access is as long as a power of two.
        if address & (length as u64 - 1) != 0 {
            let what = format!("{} {length} bytes at {address:#x} is misaligned", verb(deed));
            return trouble(lane, what);
        }
        match space {
            Space::Shared => self.check_shared(deed, order, lane, address, length),
            Space::Local => self.check_local(deed, lane, address, length),
            _ => self.check_global(deed, order, lane, address, length),
        }
    }

    pub(crate) fn check_global(
        &mut self,
        deed: Deed,
        order: Order,
        lane: usize,
        address: u64,
        length: usize,
    ) -> Outcome<usize> {
        let is_in = |allocation: &Allocation| {
            let start = address.wrapping_sub(allocation.address);
            start.checked_add(length as u64).is_some_and(|end| end <= allocation.bytes.len() as u64)
        };
        let allocations = &self.machine.memory.allocations;
        if !allocations.get(self.machine.recent).is_some_and(is_in) {
            let behind = allocations.partition_point(|allocation| allocation.address <= address);
            match behind.checked_sub(1) {
                Some(at) if is_in(&allocations[at]) => self.machine.recent = at,
                before => {
                    let near = before.map(|at| &allocations[at]);
                    return trouble(lane, outside(deed, address, length, near));
                }
            }
        }
        let allocation = &self.machine.memory.allocations[self.machine.recent];
        if allocation.address == CONSTANT_BASE && !matches!(deed, Deed::Read | Deed::ReadConstant) {
            return trouble(lane, format!("{} {length} bytes of a constant", verb(deed)));
        }
        let start = (address - allocation.address) as usize;
        if deed != Deed::Write && !allocation.are_initialised(start, length) {
            let what = format!("{} {length} bytes at {address:#x}, which nobody wrote", verb(deed));
            return trouble(lane, what);
        }
        self.touch(Space::Global, deed, order, lane, start, length)?;
        Ok(start)
    }

    fn check_shared(
        &mut self,
        deed: Deed,
        order: Order,
        lane: usize,
        address: u64,
        length: usize,
    ) -> Outcome<usize> {
        let shared = &self.state.shared;
        let start = address.wrapping_sub(shared.address);
        let end = start.checked_add(length as u64);
        if end.is_none_or(|end| end > shared.bytes.len() as u64) {
            let what = format!(
                "{} {length} bytes at {address:#x} lies outside the {} bytes of shared memory, which begin at {:#x}",
                verb(deed),
                shared.bytes.len(),
                shared.address
            );
            return trouble(lane, what);
        }
        let start = start as usize;
        if any_set(&self.state.in_flight, start, length) {
            let what = format!(
                "{} {length} bytes of shared memory at {address:#x}, where an asynchronous copy has not landed",
                verb(deed)
            );
            return trouble(lane, what);
        }
        if deed != Deed::Write && !shared.are_initialised(start, length) {
            let what =
                format!("{} {length} bytes of shared memory at {address:#x}, which nobody wrote", verb(deed));
            return trouble(lane, what);
        }
        self.touch(Space::Shared, deed, order, lane, start, length)?;
        Ok(start)
    }

    fn check_local(&mut self, deed: Deed, lane: usize, address: u64, length: usize) -> Outcome<usize> {
        let each = self.machine.entry.local_bytes;
        let offset = address.wrapping_sub(LOCAL_BASE);
        if offset.checked_add(length as u64).is_none_or(|end| end > each) {
            let what = format!(
                "{} {length} bytes at {address:#x} lies outside the local memory of a thread",
                verb(deed)
            );
            return trouble(lane, what);
        }
        let start = lane * each as usize + offset as usize;
        if deed != Deed::Write
            && !self.warp.local_written[start..start + length].iter().all(|written| *written)
        {
            let what = format!("{} {length} bytes of local memory, which nobody wrote", verb(deed));
            return trouble(lane, what);
        }
        Ok(start)
    }
}

/// How a sentence about an access begins.
pub(crate) fn verb(deed: Deed) -> &'static str {
    match deed {
        Deed::Read | Deed::ReadConstant => "reading",
        Deed::Write => "writing",
        Deed::Modify => "modifying",
    }
}

#[cold]
fn outside(deed: Deed, address: u64, length: usize, near: Option<&Allocation>) -> String {
    let mut what = format!("{} {length} bytes at {address:#x} lies in no allocation", verb(deed));
    if let Some(near) = near {
        let end = near.address + near.bytes.len() as u64;
        let part = if address < end {
            "reaches over the end of".to_owned()
        } else {
            format!("is {} bytes behind", address - end)
        };
        what += &format!("; it {part} the {} bytes at {:#x}", near.bytes.len(), near.address);
    }
    what
}

/// Whether one of the bits from `start` on is set, 16 to a word.
fn any_set(words: &[u16], start: usize, length: usize) -> bool {
    let bit = start % 16;
    if bit + length <= 16 {
        let mask = (((1u32 << length) - 1) << bit) as u16;
        return words[start / 16] & mask != 0;
    }
    (start..start + length).any(|at| words[at / 16] >> (at % 16) & 1 == 1)
}

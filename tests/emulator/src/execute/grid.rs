//! A launch: which blocks are resident, whose turn it is, when it is over.
//!
//! Blocks start in a random order, some at a time; a random warp of theirs runs until it has accessed memory a
//! few times or waits. Where all resident warps only poll, waiting for a block that has not begun, more blocks
//! are let in, up to what a device would hold; so grids that synchronise work as far as they would on hardware.

use super::barrier::BlockBarrier;
use super::block::{Block, BlockState};
use super::random::Random;
use super::registers::{LANES, Registers};
use super::turn::{After, Turn};
use super::warps::Warp;
use super::{LaunchShape, Schedule};
use crate::memory::Allocation;
use crate::ptx::decode::Operation;
use crate::ptx::decode::barrier::Barrier;
use crate::ptx::decode::memory::{Access, Order, Scope};
use crate::ptx::registers::Special;
use crate::ptx::resolver::SHARED_BASE;
use crate::races::Variables;
use crate::{Counts, Entry, Fault, Memory};

/// Blocks that are resident at the same time, unless they wait for more.
const RESIDENT_BLOCKS: usize = 4;
/// Multiprocessors of the device, as those of an A100.
pub(crate) const MULTIPROCESSORS: u32 = 108;
/// Shared memory of one of them, of which the system takes one KiB a block.
const SHARED_BYTES_OF_MULTIPROCESSOR: u32 = 228 * 1024;
const THREADS_OF_MULTIPROCESSOR: u32 = 2048;
const BLOCKS_OF_MULTIPROCESSOR: u32 = 32;
/// Rounds in which every warp that can run polled and none got further, after which a launch is stuck.
const MOST_IDLE_ROUNDS: u32 = 200;
/// Instructions without any access to memory after which a launch is stuck.
const MOST_IDLE_INSTRUCTIONS: u64 = 50_000_000;

/// Everything of a launch that is not one block's.
pub(crate) struct Machine<'launch> {
    pub(crate) entry: &'launch Entry,
    pub(crate) shape: &'launch LaunchShape,
    pub(crate) parameters: &'launch [u8],
    pub(crate) memory: &'launch mut Memory,
    pub(crate) counts: Counts,
    pub(crate) random: Random,
    /// Allocation that was accessed last.
    pub(crate) recent: usize,
    /// Instructions since something other than polling happened.
    pub(crate) idle: u64,
    /// Whether something other than polling happened since all that can run ran.
    progressed: bool,
    /// What is released through global memory.
    pub(crate) variables: Variables,
    /// Whether the kernel has anything that orders blocks.
    pub(crate) blocks_synchronise: bool,
    fresh: Registers,
    spare: Vec<Registers>,
}

/// A launch in progress.
pub(crate) struct Grid<'launch> {
    machine: Machine<'launch>,
    blocks: Vec<Option<Block>>,
    /// Numbers of the blocks that have not begun, the next one last.
    pending: Vec<u32>,
    /// Warps that can run: place of the block, number of the warp.
    ready: Vec<(usize, usize)>,
    /// Those whose last access may have been in vain; they run when nobody else can.
    polling: Vec<(usize, usize)>,
    idle_rounds: u32,
    resident: usize,
    most_resident: usize,
}

impl<'launch> Grid<'launch> {
    pub(crate) fn new(
        entry: &'launch Entry,
        shape: &'launch LaunchShape,
        parameters: &'launch [u8],
        memory: &'launch mut Memory,
        schedule: Schedule,
    ) -> Grid<'launch> {
        let mut random = Random::new(schedule.seed);
        let blocks: u32 = shape.grid.iter().product();
        let mut pending: Vec<u32> = (0..blocks).collect();
        for at in (1..pending.len()).rev() {
            let other = random.below(at + 1);
            pending.swap(at, other);
        }
        let fresh = Registers::new(&entry.layout);
        memory.generation += 1;
        memory.lend_constants(&entry.constants);
        let machine = Machine {
            entry,
            shape,
            parameters,
            memory,
            counts: Counts { launches: 1, ..Counts::default() },
            random,
            recent: 0,
            idle: 0,
            progressed: false,
            variables: Variables::default(),
            blocks_synchronise: synchronises_blocks(entry),
            fresh,
            spare: Vec::new(),
        };
        let most_resident = most_resident(entry, shape);
        Grid {
            machine,
            blocks: Vec::new(),
            pending,
            ready: Vec::new(),
            polling: Vec::new(),
            idle_rounds: 0,
            resident: 0,
            most_resident,
        }
    }

    /// Runs every block to its end.
    pub(crate) fn run(mut self) -> Result<Counts, Fault> {
        let result = self.run_blocks();
        let memory = &*self.machine.memory;
        for allocation in &memory.allocations {
            let fresh = allocation.shadow.fresh(memory.generation);
            self.machine.counts.global_distinct_read_bytes += fresh.read_bytes;
            self.machine.counts.global_distinct_written_bytes += fresh.written_bytes;
        }
        self.machine.memory.take_constants_back();
        result.map(|()| self.machine.counts)
    }

    fn run_blocks(&mut self) -> Result<(), Fault> {
        while self.resident < RESIDENT_BLOCKS.min(self.most_resident) && self.admit() {}
        loop {
            if self.ready.is_empty() {
                if self.resident == 0 && !self.admit() {
                    return Ok(());
                }
                self.refill()?;
            }
            let chosen = self.machine.random.below(self.ready.len());
            let (place, number) = self.ready.swap_remove(chosen);
            self.turn(place, number)?;
            if self.machine.idle > MOST_IDLE_INSTRUCTIONS {
                let what = format!("{MOST_IDLE_INSTRUCTIONS} instructions without any access to memory");
                return Err(self.fault_of(place, number, what));
            }
        }
    }

    fn turn(&mut self, place: usize, number: usize) -> Result<(), Fault> {
        let Some(block) = &mut self.blocks[place] else { return Ok(()) };
        let Block { warps, state } = block;
        let after = Turn { machine: &mut self.machine, state, warp: &mut warps[number], line: 0 }.run()?;
        match after {
            After::Ready => self.ready.push((place, number)),
            After::Polling => self.polling.push((place, number)),
            After::Waiting | After::Ended => {}
        }
        for woken in state.woken.drain(..) {
            warps[woken.warp].wake(&woken);
            self.ready.push((place, woken.warp));
        }
        if state.live_threads == 0 {
            if let Some(block) = self.blocks[place].take() {
                let registers = block.warps.into_iter().map(|warp| warp.registers);
                self.machine.spare.extend(registers);
            }
            self.resident -= 1;
            if self.resident < RESIDENT_BLOCKS {
                self.admit();
            }
        }
        Ok(())
    }

    /// Lets the next block begin, if there is one.
    fn admit(&mut self) -> bool {
        let Some(number) = self.pending.pop() else { return false };
        let block = self.machine.block(number);
        let place = self.blocks.iter().position(Option::is_none).unwrap_or(self.blocks.len());
        self.ready.extend((0..block.warps.len()).map(|warp| (place, warp)));
        if place == self.blocks.len() {
            self.blocks.push(Some(block));
        } else {
            self.blocks[place] = Some(block);
        }
        self.resident += 1;
        self.machine.progress();
        true
    }

    /// Finds somebody who can run when nobody else can: those that poll, or another block.
    fn refill(&mut self) -> Result<(), Fault> {
        if !self.ready.is_empty() {
            return Ok(());
        }
        let Some(&(place, number)) = self.polling.first() else {
            let may_admit = self.resident < self.most_resident;
            return if may_admit && self.admit() { Ok(()) } else { Err(self.deadlock()) };
        };
        self.idle_rounds =
            if std::mem::take(&mut self.machine.progressed) { 0 } else { self.idle_rounds + 1 };
        if self.idle_rounds > 1 {
            // As many as there are: a whole grid comes in within a few rounds.
            let most = self.most_resident.min(2 * self.resident);
            while self.resident < most && self.admit() {
                self.idle_rounds = 0;
            }
        }
        if self.idle_rounds > MOST_IDLE_ROUNDS {
            let what = match self.pending.len() {
                0 => "every warp polls or waits and none makes progress".to_owned(),
                left => format!(
                    "every warp polls or waits; {left} blocks have not begun, and no more than {} fit on the device",
                    self.most_resident
                ),
            };
            return Err(self.fault_of(place, number, what));
        }
        self.ready.append(&mut self.polling);
        Ok(())
    }

    /// Nobody can run, yet not everybody ended.
    fn deadlock(&self) -> Fault {
        let mut waiting = Vec::new();
        let mut first = None;
        for (place, block) in self.blocks.iter().enumerate() {
            for warp in block.iter().flat_map(|block| &block.warps) {
                let Some((barrier, at)) = warp.waits_at else { continue };
                first.get_or_insert((place, warp.number));
                let line = self.machine.entry.code[at as usize].line;
                waiting.push(format!("warp {} at barrier {barrier} in line {line}", warp.number));
            }
        }
        waiting.truncate(8);
        let what = format!("deadlock: {} wait for threads that never come", waiting.join(", "));
        let (place, number) = first.unwrap_or_default();
        self.fault_of(place, number, what)
    }

    fn fault_of(&self, place: usize, number: usize, what: String) -> Fault {
        let entry = self.machine.entry;
        let block = self.blocks.get(place).and_then(Option::as_ref);
        let warp = block.map(|block| &block.warps[number]);
        let at =
            warp.and_then(|warp| warp.waits_at.map(|(_, at)| at).or(warp.frames.last().map(|top| top.at)));
        let line = at.map_or(0, |at| entry.code[at as usize].line);
        Fault {
            kernel: entry.name().to_owned(),
            line,
            instruction: entry.line(line),
            block: block.map_or([0; 3], |block| block.state.coordinates),
            thread: coordinates((number * LANES) as u64, self.machine.shape.block),
            what,
        }
    }
}

/// The place of number `at` in a box of `extents`, x fastest.
pub(crate) fn coordinates(at: u64, extents: [u32; 3]) -> [u32; 3] {
    let [width, height, _] = extents.map(u64::from);
    [(at % width) as u32, (at / width % height) as u32, (at / (width * height)) as u32]
}

/// Whether an instruction of the entry can make an order between blocks.
fn synchronises_blocks(entry: &Entry) -> bool {
    entry.code.iter().any(|instruction| match &instruction.operation {
        Operation::Memory(Access::Load { order, .. } | Access::Store { order, .. }) => orders(*order),
        Operation::Atomic(atomic) => orders(atomic.order),
        Operation::Barrier(Barrier::Fence(scope)) => *scope == Scope::Device,
        _ => false,
    })
}

fn orders(order: Order) -> bool {
    matches!(order, Order::Acquire(_) | Order::Release(_) | Order::AcquireRelease(_))
}

/// Blocks that the device holds at the same time.
fn most_resident(entry: &Entry, shape: &LaunchShape) -> usize {
    let threads: u32 = shape.block.iter().product::<u32>().next_multiple_of(LANES as u32);
    let shared = entry.static_shared_bytes() + shape.shared_bytes + SHARED_BASE as u32;
    let each = (THREADS_OF_MULTIPROCESSOR / threads).min(SHARED_BYTES_OF_MULTIPROCESSOR / shared);
    let each = each.clamp(1, BLOCKS_OF_MULTIPROCESSOR);
    (each * MULTIPROCESSORS) as usize
}

impl Machine<'_> {
    /// Notes that something other than polling happened.
    #[inline]
    pub(crate) fn progress(&mut self) {
        self.idle = 0;
        self.progressed = true;
    }

    /// A block before its first instruction.
    fn block(&mut self, number: u32) -> Block {
        let threads: u32 = self.shape.block.iter().product();
        let coordinates = coordinates(u64::from(number), self.shape.grid);
        let shared_end = self.entry.dynamic_shared_base + u64::from(self.shape.shared_bytes);
        let bytes = (shared_end - SHARED_BASE) as usize;
        let state = BlockState {
            number,
            threads: threads as usize,
            coordinates,
            shared: Allocation::new(SHARED_BASE, bytes),
            in_flight: vec![0; bytes.div_ceil(16)],
            barriers: std::array::from_fn(|_| BlockBarrier::default()),
            live_threads: threads,
            variables: Variables::default(),
            woken: Vec::new(),
        };
        let warps = (0..(threads as usize).div_ceil(LANES)).map(|warp| {
            let registers = self.registers(warp, coordinates);
            let lanes = threads as usize - warp * LANES;
            Warp::new(warp, lanes, registers, self.entry.local_bytes as usize)
        });
        Block { warps: warps.collect(), state }
    }

    /// Registers of a warp with constants and special registers in place.
    fn registers(&mut self, warp: usize, block: [u32; 3]) -> Registers {
        let mut registers = match self.spare.pop() {
            Some(mut used) => {
                used.reset(&self.fresh);
                used
            }
            None => self.fresh.clone(),
        };
        let shape = self.shape;
        let threads: u32 = shape.block.iter().product();
        for &(special, slot) in &self.entry.layout.specials {
            let of_lane = |lane: usize| {
                let bit = 1u32 << lane;
                match special {
                    Special::Thread(axis) => coordinates((warp * LANES + lane) as u64, shape.block)[axis],
                    Special::Threads(axis) => shape.block[axis],
                    Special::Block(axis) => block[axis],
                    Special::Blocks(axis) => shape.grid[axis],
                    Special::Lane => lane as u32,
                    Special::Warp => warp as u32,
                    Special::Warps => threads.div_ceil(LANES as u32),
                    Special::Multiprocessor => block[0] % MULTIPROCESSORS,
                    Special::Multiprocessors => MULTIPROCESSORS,
                    Special::Grid => 1,
                    Special::MaskEqual => bit,
                    Special::MaskLess => bit - 1,
                    Special::MaskLessEqual => bit | (bit - 1),
                    Special::MaskGreater => !(bit | (bit - 1)),
                    Special::MaskGreaterEqual => !(bit - 1),
                    Special::DynamicSharedBytes => shape.shared_bytes,
                    Special::TotalSharedBytes => self.entry.static_shared_bytes() + shape.shared_bytes,
                }
            };
            registers.write::<u32>(slot, std::array::from_fn(of_lane));
        }
        registers
    }
}

//! A warp's turn: instruction after instruction, until somebody else should run.

use super::block::BlockState;
use super::grid::{Machine, coordinates};
use super::registers::LANES;
use super::trouble::{Outcome, Trouble, trouble};
use super::warps::Warp;
use super::{bits, compare, convert, float, integer, motion};
use crate::Fault;
use crate::ptx::decode::control::Control;
use crate::ptx::decode::{Instruction, Operation};

/// Accesses to memory after which another warp may run, at most.
const MOST_ACCESSES: usize = 16;
/// Instructions after which a warp that accesses nothing is interrupted.
const MOST_INSTRUCTIONS: u64 = 4096;

/// Instructions after which a warp is taken to run for ever.
const MOST_INSTRUCTIONS_OF_WARP: u64 = 1 << 30;

/// What becomes of the warp after its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    Ready,
    /// It can go on, but others should first: it may be waiting for them.
    Polling,
    Waiting,
    Ended,
}

/// What becomes of it after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The next instruction.
    Step,
    /// The next instruction, which accessed memory before it.
    Accessed,
    /// Elsewhere: the frames say where.
    Moved,
    /// Somebody else, then the next instruction.
    Yield,
    /// Wait at a barrier, then the next instruction.
    Wait,
}

/// A warp with what it needs to run.
pub(crate) struct Turn<'turn, 'launch> {
    pub(crate) machine: &'turn mut Machine<'launch>,
    pub(crate) state: &'turn mut BlockState,
    pub(crate) warp: &'turn mut Warp,
    /// Line of the instruction that executes.
    pub(crate) line: u32,
}

impl Turn<'_, '_> {
    /// Runs the warp until it ends, waits, or has run long enough.
    pub(crate) fn run(mut self) -> Result<After, Fault> {
        let entry = self.machine.entry;
        let mut accesses = 1 + self.machine.random.below(MOST_ACCESSES);
        let mut instructions = 0;
        loop {
            let Some(frame) = self.warp.current() else { return Ok(After::Ended) };
            let instruction = &entry.code[frame.at as usize];
            self.line = instruction.line;
            self.warp.registers.active = frame.lanes;
            let mut active = frame.lanes;
            if let Some(guard) = instruction.guard {
                active = self.warp.registers.predicate(guard);
                self.warp.registers.active = active;
            }
            instructions += 1;
            self.machine.counts.instructions += 1;
            self.machine.counts.lane_instructions += u64::from(active.count_ones());
            self.machine.idle += 1;
            self.warp.instructions += 1;
            let is_branch = matches!(instruction.operation, Operation::Control(Control::Branch { .. }));
            let next = if active == 0 && !is_branch { Ok(Next::Step) } else { self.execute(instruction) };
            let next = next.and_then(|next| self.check_registers(next));
            let next = next.map_err(|trouble| self.fault(instruction, *trouble))?;
            if next != Next::Moved
                && let Some(top) = self.warp.frames.last_mut()
            {
                top.at = frame.at + 1;
            }
            match next {
                Next::Step | Next::Moved if instructions < MOST_INSTRUCTIONS => {}
                Next::Accessed if accesses > 1 => accesses -= 1,
                Next::Wait => {
                    // The last one to arrive wakes itself, too.
                    return Ok(After::Waiting);
                }
                _ if self.warp.live == 0 => return Ok(After::Ended),
                Next::Yield => return Ok(After::Polling),
                _ => return Ok(After::Ready),
            }
        }
    }

    fn check_registers(&mut self, next: Next) -> Outcome<Next> {
        if self.warp.instructions > MOST_INSTRUCTIONS_OF_WARP {
            let lane = self.warp.registers.active.trailing_zeros() as usize % LANES;
            return trouble(lane, format!("{MOST_INSTRUCTIONS_OF_WARP} instructions and no end"));
        }
        let missing = self.warp.registers.missing;
        if missing == 0 {
            return Ok(next);
        }
        trouble(missing.trailing_zeros() as usize, "a register is read that was never written".to_owned())
    }

    #[cold]
    fn fault(&self, instruction: &Instruction, trouble: Trouble) -> Fault {
        let thread = (self.warp.number * LANES + trouble.lane) as u64;
        Fault {
            kernel: self.machine.entry.name().to_owned(),
            line: instruction.line,
            instruction: self.machine.entry.line(instruction.line),
            block: self.state.coordinates,
            thread: coordinates(thread, self.machine.shape.block),
            what: trouble.what,
        }
    }

    fn execute(&mut self, instruction: &Instruction) -> Outcome<Next> {
        let registers = &mut self.warp.registers;
        match &instruction.operation {
            Operation::Integer(operation) => integer::execute(operation, registers),
            Operation::Bits(operation) => bits::execute(operation, registers),
            Operation::Float(operation) => {
                let lanes = u64::from(registers.active.count_ones());
                self.machine.counts.scalar_operations += lanes * float::operations(operation);
                float::execute(operation, registers);
            }
            Operation::Compare(operation) => compare::execute(operation, registers),
            Operation::Convert(operation) => convert::execute(operation, registers),
            Operation::Motion(operation) => {
                motion::execute(operation, registers, self.machine.counts.instructions)
            }
            Operation::Memory(operation) => return self.access(operation),
            Operation::Atomic(operation) => return self.atomic(operation),
            Operation::Asynchronous(operation) => return self.asynchronous(operation),
            Operation::Barrier(operation) => return self.barrier(operation),
            Operation::Warp(operation) => self.exchange(operation)?,
            Operation::Matrix(operation) => return self.matrix(operation),
            Operation::Control(operation) => return self.control(operation),
        }
        Ok(Next::Step)
    }

    fn control(&mut self, operation: &Control) -> Outcome<Next> {
        let active = self.warp.registers.active;
        let first = active.trailing_zeros() as usize;
        match operation {
            Control::Branch { target, meeting, uniform } => {
                let lanes = self.warp.frames.last().map_or(0, |top| top.lanes);
                if *uniform && active != 0 && active != lanes {
                    return trouble(first, "`bra.uni` parts the lanes of a warp".to_owned());
                }
                let jumps_first = active != 0 && active != lanes && self.machine.random.next() & 1 == 0;
                self.warp.branch(*target, *meeting, active, jumps_first);
                Ok(Next::Moved)
            }
            Control::Table { index, targets, meeting } => self.branch_by_table(*index, targets, *meeting),
            Control::Exit => {
                self.state.live_threads -= active.count_ones();
                self.machine.progress();
                let at = self.warp.frames.last().map_or(0, |top| top.at);
                self.warp.exit(active);
                if let Some(top) = self.warp.frames.last_mut() {
                    top.at = at + 1;
                }
                self.release_barriers()?;
                Ok(if self.warp.live == 0 { Next::Yield } else { Next::Moved })
            }
            Control::Trap => trouble(first, "the kernel trapped".to_owned()),
            Control::Pause => Ok(Next::Yield),
        }
    }

    fn branch_by_table(&mut self, index: u32, targets: &[u32], meeting: u32) -> Outcome<Next> {
        let active = self.warp.registers.active;
        let indices = self.warp.registers.read::<u32>(index);
        let mut groups: Vec<(u32, u32)> = Vec::new();
        for lane in super::registers::lanes_of(active) {
            let Some(target) = targets.get(indices[lane] as usize) else {
                return trouble(lane, format!("branch {} of a table of {}", indices[lane], targets.len()));
            };
            match groups.iter_mut().find(|(at, _)| at == target) {
                Some((_, lanes)) => *lanes |= 1 << lane,
                None => groups.push((*target, 1 << lane)),
            }
        }
        let (at, lanes) = self.warp.frames.last().map_or((0, 0), |top| (top.at, top.lanes));
        if lanes != active {
            groups.push((at + 1, lanes & !active));
        }
        self.warp.scatter(&groups, meeting);
        Ok(Next::Moved)
    }
}

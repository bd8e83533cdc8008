//! The registers of an entry: declared ones, constants and special registers, all numbered.
//!
//! A warp holds three files: predicates (a mask of lanes each), narrow registers (up to 32 bits a lane) and wide
//! ones (64 bits). Immediates and special registers are registers too, filled before the first instruction, so
//! that execution reads every operand in the same way.

use std::collections::HashMap;

use super::Type;
use super::statement::Operand;

/// Number of a register in its file; the instruction knows which file.
pub(crate) type Slot = u32;

/// One of the three files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum File {
    Predicate,
    Narrow,
    Wide,
}

/// A register of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Register {
    pub(crate) file: File,
    pub(crate) slot: Slot,
    /// Bytes it was declared with; 0 for a predicate.
    pub(crate) bytes: u32,
}

/// A read-only register that the hardware fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    Thread(usize),
    Threads(usize),
    Block(usize),
    Blocks(usize),
    Lane,
    Warp,
    Warps,
    Multiprocessor,
    Multiprocessors,
    Grid,
    MaskEqual,
    MaskLess,
    MaskLessEqual,
    MaskGreater,
    MaskGreaterEqual,
    DynamicSharedBytes,
    TotalSharedBytes,
}

impl Special {
    fn parse(name: &str) -> Option<Special> {
        let axis = |suffix: &str| ["x", "y", "z"].iter().position(|axis| *axis == suffix);
        let (stem, suffix) = name.strip_prefix('%')?.split_once('.').unwrap_or((&name[1..], ""));
        Some(match (stem, suffix) {
            ("tid", suffix) => Special::Thread(axis(suffix)?),
            ("ntid", suffix) => Special::Threads(axis(suffix)?),
            ("ctaid", suffix) => Special::Block(axis(suffix)?),
            ("nctaid", suffix) => Special::Blocks(axis(suffix)?),
            ("laneid", "") => Special::Lane,
            ("warpid", "") => Special::Warp,
            ("nwarpid", "") => Special::Warps,
            ("smid", "") => Special::Multiprocessor,
            ("nsmid", "") => Special::Multiprocessors,
            ("gridid", "") => Special::Grid,
            ("lanemask_eq", "") => Special::MaskEqual,
            ("lanemask_lt", "") => Special::MaskLess,
            ("lanemask_le", "") => Special::MaskLessEqual,
            ("lanemask_gt", "") => Special::MaskGreater,
            ("lanemask_ge", "") => Special::MaskGreaterEqual,
            ("dynamic_smem_size", "") => Special::DynamicSharedBytes,
            ("total_smem_size", "") => Special::TotalSharedBytes,
            _ => return None,
        })
    }
}

/// All registers of an entry and what they are called.
#[derive(Debug, Default)]
pub(crate) struct Registers {
    names: HashMap<String, Register>,
    /// `%r` of `.reg .b32 %r<14>`: count, first slot.
    ranges: HashMap<String, (u32, Register)>,
    constants: HashMap<(File, u64), Slot>,
    specials: HashMap<String, Slot>,
    /// What is left for execution.
    pub(crate) layout: Layout,
}

/// Sizes of the files and what is in them at the start.
#[derive(Debug, Default, Clone)]
pub(crate) struct Layout {
    pub(crate) predicates: u32,
    pub(crate) narrow: u32,
    pub(crate) wide: u32,
    pub(crate) constants: Vec<(File, Slot, u64)>,
    pub(crate) specials: Vec<(Special, Slot)>,
}

impl Registers {
    fn next(&mut self, file: File, count: u32) -> Slot {
        let length = match file {
            File::Predicate => &mut self.layout.predicates,
            File::Narrow => &mut self.layout.narrow,
            File::Wide => &mut self.layout.wide,
        };
        let first = *length;
        *length += count;
        first
    }

    /// Declares `name`, or `name0` to `name{count-1}`.
    pub(crate) fn declare(&mut self, kind: Type, name: &str, count: Option<u32>) {
        let file = match kind.bytes() {
            0 => File::Predicate,
            8 => File::Wide,
            _ => File::Narrow,
        };
        let slot = self.next(file, count.unwrap_or(1));
        let register = Register { file, slot, bytes: kind.bytes() };
        match count {
            Some(count) => drop(self.ranges.insert(name.to_owned(), (count, register))),
            None => drop(self.names.insert(name.to_owned(), register)),
        }
    }

    /// The declared register called `name`.
    pub(crate) fn find(&self, name: &str) -> Option<Register> {
        if let Some(register) = self.names.get(name) {
            return Some(*register);
        }
        let stem = name.trim_end_matches(|digit: char| digit.is_ascii_digit());
        let number: u32 = name[stem.len()..].parse().ok()?;
        let (count, first) = self.ranges.get(stem)?;
        (number < *count).then(|| Register { slot: first.slot + number, ..*first })
    }

    /// A register that holds `bits` in every lane.
    pub(crate) fn constant(&mut self, file: File, bits: u64) -> Slot {
        if let Some(slot) = self.constants.get(&(file, bits)) {
            return *slot;
        }
        let slot = self.next(file, 1);
        self.constants.insert((file, bits), slot);
        self.layout.constants.push((file, slot, bits));
        slot
    }

    /// A register that is written and never read, for `_`.
    pub(crate) fn sink(&mut self, file: File) -> Slot {
        self.next(file, 1)
    }

    /// The narrow register that holds the special register called `name`.
    pub(crate) fn special(&mut self, name: &str) -> Option<Slot> {
        if let Some(slot) = self.specials.get(name) {
            return Some(*slot);
        }
        let special = Special::parse(name)?;
        let slot = self.next(File::Narrow, 1);
        self.specials.insert(name.to_owned(), slot);
        self.layout.specials.push((special, slot));
        Some(slot)
    }
}

/// The bits of an immediate read as `kind`; `None` where it is no immediate of that type.
pub(crate) fn immediate(operand: &Operand<'_>, kind: Type) -> Option<u64> {
    match *operand {
        Operand::Integer(value) => Some(match kind.bytes() {
            0 => u64::from(value != 0),
            8 => value,
            bytes => value & ((1 << (8 * bytes)) - 1),
        }),
        Operand::Float32(bits) if kind.bytes() == 4 => Some(u64::from(bits)),
        Operand::Float64(bits) if kind.bytes() == 8 => Some(bits),
        _ => None,
    }
}

//! The registers of a warp, 32 lanes each, and how instructions go over them.

use crate::ptx::registers::{File, Layout, Slot};
use crate::ptx::resolver::Predicate;

/// Lanes of a warp.
pub(crate) const LANES: usize = 32;

/// The bits of a register in every lane.
pub(crate) type Lanes<Word> = [Word; LANES];

/// Registers of one warp; `active` lanes are those that the current instruction is for.
#[derive(Clone, Debug)]
pub(crate) struct Registers {
    pub(crate) active: u32,
    /// Lanes that read something that was never written, in the current instruction.
    pub(crate) missing: u32,
    predicates: Vec<u32>,
    narrow: Vec<Lanes<u32>>,
    wide: Vec<Lanes<u64>>,
    /// Per file and register the lanes that were ever written.
    defined: [Vec<u32>; 3],
}

/// Narrow or wide words.
pub(crate) trait Word: Copy + Default {
    const FILE: File;
    fn of(registers: &Registers, slot: Slot) -> &Lanes<Self>;
    fn of_mut(registers: &mut Registers, slot: Slot) -> &mut Lanes<Self>;
    fn to_u64(self) -> u64;
    fn from_u64(value: u64) -> Self;
}

impl Word for u32 {
    const FILE: File = File::Narrow;
    fn of(registers: &Registers, slot: Slot) -> &Lanes<u32> {
        &registers.narrow[slot as usize]
    }
    fn of_mut(registers: &mut Registers, slot: Slot) -> &mut Lanes<u32> {
        &mut registers.narrow[slot as usize]
    }
    fn to_u64(self) -> u64 {
        u64::from(self)
    }
    fn from_u64(value: u64) -> u32 {
        value as u32
    }
}

impl Word for u64 {
    const FILE: File = File::Wide;
    fn of(registers: &Registers, slot: Slot) -> &Lanes<u64> {
        &registers.wide[slot as usize]
    }
    fn of_mut(registers: &mut Registers, slot: Slot) -> &mut Lanes<u64> {
        &mut registers.wide[slot as usize]
    }
    fn to_u64(self) -> u64 {
        self
    }
    fn from_u64(value: u64) -> u64 {
        value
    }
}

/// A type that lies in the words of a file.
pub(crate) trait Scalar: Copy {
    type Word: Word;
    fn from_word(word: Self::Word) -> Self;
    fn into_word(self) -> Self::Word;
}

macro_rules! whole_scalar {
    ($($kind:ty, $unsigned:ty, $word:ty;)*) => {$(
        impl Scalar for $kind {
            type Word = $word;
            #[inline(always)]
            fn from_word(word: $word) -> $kind {
                word as $kind
            }
            #[inline(always)]
            fn into_word(self) -> $word {
                self as $unsigned as $word
            }
        }
    )*};
}

whole_scalar! {
    u16, u16, u32;
    i16, u16, u32;
    u32, u32, u32;
    i32, u32, u32;
    u64, u64, u64;
    i64, u64, u64;
}

impl Scalar for f32 {
    type Word = u32;
    #[inline(always)]
    fn from_word(word: u32) -> f32 {
        f32::from_bits(word)
    }
    #[inline(always)]
    fn into_word(self) -> u32 {
        self.to_bits()
    }
}

impl Scalar for f64 {
    type Word = u64;
    #[inline(always)]
    fn from_word(word: u64) -> f64 {
        f64::from_bits(word)
    }
    #[inline(always)]
    fn into_word(self) -> u64 {
        self.to_bits()
    }
}

impl Registers {
    /// Registers of `layout` with its constants in place and nothing else.
    pub(crate) fn new(layout: &Layout) -> Registers {
        let mut registers = Registers {
            active: u32::MAX,
            missing: 0,
            predicates: vec![0; layout.predicates as usize],
            narrow: vec![[0; LANES]; layout.narrow as usize],
            wide: vec![[0; LANES]; layout.wide as usize],
            defined: [layout.predicates, layout.narrow, layout.wide].map(|length| vec![0; length as usize]),
        };
        for &(file, slot, bits) in &layout.constants {
            match file {
                File::Predicate => registers.set_predicate(slot, if bits == 0 { 0 } else { u32::MAX }),
                File::Narrow => registers.write(slot, [bits as u32; LANES]),
                File::Wide => registers.write(slot, [bits; LANES]),
            }
        }
        registers
    }

    /// Forgets everything that was not in place in `fresh`.
    pub(crate) fn reset(&mut self, fresh: &Registers) {
        for (defined, fresh) in self.defined.iter_mut().zip(&fresh.defined) {
            defined.copy_from_slice(fresh);
        }
        self.active = u32::MAX;
        self.missing = 0;
    }

    /// The lanes of a register; those that were never written are noted.
    #[inline(always)]
    pub(crate) fn read<W: Word>(&mut self, slot: Slot) -> Lanes<W> {
        self.missing |= self.active & !self.defined[W::FILE as usize][slot as usize];
        *W::of(self, slot)
    }

    /// Writes the active lanes of a register.
    #[inline(always)]
    pub(crate) fn write<W: Word>(&mut self, slot: Slot, values: Lanes<W>) {
        let active = self.active;
        self.defined[W::FILE as usize][slot as usize] |= active;
        let into = W::of_mut(self, slot);
        if active == u32::MAX {
            *into = values;
        } else {
            for lane in lanes_of(active) {
                into[lane] = values[lane];
            }
        }
    }

    /// The lanes of a narrow register, of which `lanes` are to be written.
    #[inline(always)]
    pub(crate) fn begin_write(&mut self, slot: Slot, lanes: u32) -> &mut Lanes<u32> {
        self.defined[File::Narrow as usize][slot as usize] |= lanes;
        &mut self.narrow[slot as usize]
    }

    /// Writes one lane of a register.
    #[inline(always)]
    pub(crate) fn write_lane<W: Word>(&mut self, slot: Slot, lane: usize, value: W) {
        self.defined[W::FILE as usize][slot as usize] |= 1 << lane;
        W::of_mut(self, slot)[lane] = value;
    }

    /// One lane of a register.
    #[inline(always)]
    pub(crate) fn read_lane<W: Word>(&mut self, slot: Slot, lane: usize) -> W {
        self.missing |= (1 << lane) & !self.defined[W::FILE as usize][slot as usize];
        W::of(self, slot)[lane]
    }

    /// The lanes of a register, written or not.
    pub(crate) fn peek<W: Word>(&self, slot: Slot) -> &Lanes<W> {
        W::of(self, slot)
    }

    /// The lanes of a register that were ever written.
    pub(crate) fn defined<W: Word>(&self, slot: Slot) -> u32 {
        self.defined[W::FILE as usize][slot as usize]
    }

    /// Takes active `lanes` of a register for never written.
    pub(crate) fn undefine<W: Word>(&mut self, slot: Slot, lanes: u32) {
        self.defined[W::FILE as usize][slot as usize] &= !(self.active & lanes);
    }

    /// Copies a register in the active lanes, written or not; what was not written stays so.
    pub(crate) fn copy<W: Word>(&mut self, to: Slot, from: Slot) {
        let defined = self.defined::<W>(from);
        let values = *W::of(self, from);
        self.write(to, values);
        self.undefine::<W>(to, !defined);
    }

    /// Active lanes in which the predicate holds.
    #[inline(always)]
    pub(crate) fn predicate(&mut self, predicate: Predicate) -> u32 {
        let slot = predicate.slot as usize;
        self.missing |= self.active & !self.defined[File::Predicate as usize][slot];
        let holds = self.predicates[slot];
        self.active & if predicate.negated { !holds } else { holds }
    }

    /// Writes the active lanes of a predicate.
    #[inline(always)]
    pub(crate) fn set_predicate(&mut self, slot: Slot, holds: u32) {
        let into = &mut self.predicates[slot as usize];
        *into = (*into & !self.active) | (holds & self.active);
        self.defined[File::Predicate as usize][slot as usize] |= self.active;
    }

    /// Copies a predicate, written or not.
    pub(crate) fn copy_predicate(&mut self, to: Slot, from: Slot) {
        let defined = self.defined[File::Predicate as usize][from as usize];
        self.set_predicate(to, self.predicates[from as usize]);
        self.defined[File::Predicate as usize][to as usize] &= !self.active | defined;
    }

    /// Notes the lanes of a register that were never written.
    #[inline(always)]
    fn note<W: Word>(&mut self, slot: Slot) {
        self.missing |= self.active & !self.defined[W::FILE as usize][slot as usize];
    }

    /// One operand.
    #[inline(always)]
    pub(crate) fn map<A: Scalar, D: Scalar>(&mut self, to: Slot, first: Slot, compute: impl Fn(A) -> D) {
        self.note::<A::Word>(first);
        let first = A::Word::of(self, first);
        let mut values = [D::Word::default(); LANES];
        for lane in 0..LANES {
            values[lane] = compute(A::from_word(first[lane])).into_word();
        }
        self.write(to, values);
    }

    /// Two operands.
    #[inline(always)]
    pub(crate) fn map_two<A: Scalar, B: Scalar, D: Scalar>(
        &mut self,
        to: Slot,
        (first, second): (Slot, Slot),
        compute: impl Fn(A, B) -> D,
    ) {
        self.note::<A::Word>(first);
        self.note::<B::Word>(second);
        let (first, second) = (A::Word::of(self, first), B::Word::of(self, second));
        let mut values = [D::Word::default(); LANES];
        for lane in 0..LANES {
            values[lane] = compute(A::from_word(first[lane]), B::from_word(second[lane])).into_word();
        }
        self.write(to, values);
    }

    /// Three operands.
    #[inline(always)]
    pub(crate) fn map_three<A: Scalar, B: Scalar, C: Scalar, D: Scalar>(
        &mut self,
        to: Slot,
        (first, second, third): (Slot, Slot, Slot),
        compute: impl Fn(A, B, C) -> D,
    ) {
        self.note::<A::Word>(first);
        self.note::<B::Word>(second);
        self.note::<C::Word>(third);
        let (first, second) = (A::Word::of(self, first), B::Word::of(self, second));
        let third = C::Word::of(self, third);
        let mut values = [D::Word::default(); LANES];
        for lane in 0..LANES {
            let (a, b) = (A::from_word(first[lane]), B::from_word(second[lane]));
            values[lane] = compute(a, b, C::from_word(third[lane])).into_word();
        }
        self.write(to, values);
    }

    /// The lanes in which a relation between two operands holds.
    #[inline(always)]
    pub(crate) fn compare<A: Scalar>(
        &mut self,
        first: Slot,
        second: Slot,
        holds: impl Fn(A, A) -> bool,
    ) -> u32 {
        self.note::<A::Word>(first);
        self.note::<A::Word>(second);
        let (first, second) = (A::Word::of(self, first), A::Word::of(self, second));
        let mut mask = 0;
        for lane in 0..LANES {
            mask |= u32::from(holds(A::from_word(first[lane]), A::from_word(second[lane]))) << lane;
        }
        mask
    }
}

/// The lanes of a mask, lowest first.
#[inline(always)]
pub(crate) fn lanes_of(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let lane = left.trailing_zeros() as usize;
        if lane == LANES {
            return None;
        }
        left &= left - 1;
        Some(lane)
    })
}

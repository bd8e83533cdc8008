//! Values: arithmetic, comparison, conversion.

use std::ops;
use std::panic::Location as Caller;

use melior::ir::Attribute;
use melior::ir::attribute::DenseI64ArrayAttribute;
use mlir_sys::MlirValue;

use super::{KernelBuilder, Scalar, Ty};

/// A value of the kernel that is being built.
#[derive(Clone, Copy)]
pub(crate) struct Val<'k> {
    pub(super) raw: MlirValue,
    pub(crate) ty: Ty,
    pub(super) builder: &'k KernelBuilder<'k>,
}

/// How two numbers compare: signed integers, ordered floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compare {
    Equal,
    Less,
    Greater,
}

/// How lanes and terms are folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reduction {
    Sum,
    Maximum,
}

impl Reduction {
    #[track_caller]
    pub(crate) fn combine<'k>(self, left: Val<'k>, right: Val<'k>) -> Val<'k> {
        match self {
            Self::Sum => left + right,
            Self::Maximum => left.maximum(right),
        }
    }
}

impl<'k> Val<'k> {
    /// The builder that made the value.
    pub(crate) const fn builder(self) -> &'k KernelBuilder<'k> {
        self.builder
    }

    #[track_caller]
    fn binary(self, float: &str, integer: &str, other: Self) -> Self {
        debug_assert_eq!(self.ty, other.ty, "{float}/{integer} of different types at {}", Caller::caller());
        let name = if self.ty.scalar.is_float() { float } else { integer };
        self.builder.emit(name, &[self, other], self.ty, &[])
    }

    /// `self * factor + addend`, rounded once.
    #[track_caller]
    pub(crate) fn multiply_add(self, factor: Self, addend: Self) -> Self {
        self.builder.emit("math.fma", &[self, factor, addend], self.ty, &[])
    }

    /// Square root.
    #[track_caller]
    pub(crate) fn square_root(self) -> Self {
        self.builder.emit("math.sqrt", &[self], self.ty, &[])
    }

    /// The magnitude.
    #[track_caller]
    pub(crate) fn absolute(self) -> Self {
        self.builder.emit("math.absf", &[self], self.ty, &[])
    }

    /// The nearest integer, ties to even, still a float.
    #[track_caller]
    pub(crate) fn round_to_even(self) -> Self {
        self.builder.emit("math.roundeven", &[self], self.ty, &[])
    }

    /// Compares lane by lane.
    #[track_caller]
    pub(crate) fn compare(self, how: Compare, other: Self) -> Self {
        // Predicate numbers of `arith.cmpf` (ordered) and `arith.cmpi` (signed).
        let (name, predicate) = match (self.ty.scalar.is_float(), how) {
            (true, Compare::Equal) => ("arith.cmpf", 1),
            (true, Compare::Greater) => ("arith.cmpf", 2),
            (true, Compare::Less) => ("arith.cmpf", 4),
            (false, Compare::Equal) => ("arith.cmpi", 0),
            (false, Compare::Less) => ("arith.cmpi", 2),
            (false, Compare::Greater) => ("arith.cmpi", 4),
        };
        let builder = self.builder;
        let attribute = builder.integer_attribute(Scalar::I64, predicate);
        builder.emit(name, &[self, other], self.ty.with(Scalar::I1), &[("predicate", attribute)])
    }

    /// `then` where the condition `self` holds, else `otherwise`.
    #[track_caller]
    pub(crate) fn select(self, then: Self, otherwise: Self) -> Self {
        self.builder.emit("arith.select", &[self, then, otherwise], then.ty, &[])
    }

    /// The larger of two numbers.
    #[track_caller]
    pub(crate) fn maximum(self, other: Self) -> Self {
        self.compare(Compare::Greater, other).select(self, other)
    }

    /// The smaller of two numbers.
    #[track_caller]
    pub(crate) fn minimum(self, other: Self) -> Self {
        self.compare(Compare::Less, other).select(self, other)
    }

    /// Quotient of non-negative integers, rounded up.
    #[track_caller]
    pub(crate) fn divide_up(self, divisor: i64) -> Self {
        (self + self.builder.int(divisor - 1)) / self.builder.int(divisor)
    }

    /// The scalar in every lane; one lane stays a scalar.
    #[track_caller]
    pub(crate) fn splat(self, lanes: u32) -> Self {
        if lanes == 1 {
            return self;
        }
        self.builder.emit("vector.broadcast", &[self], Ty::vector(self.ty.scalar, lanes), &[])
    }

    /// One lane of a vector; a scalar is its own only lane.
    #[track_caller]
    pub(crate) fn lane(self, index: u32) -> Self {
        if self.ty.lanes == 1 {
            return self;
        }
        let builder = self.builder;
        let position = DenseI64ArrayAttribute::new(builder.context, &[index.into()]);
        let attributes = [("static_position", position.into())];
        builder.emit("vector.extract", &[self], Ty::scalar(self.ty.scalar), &attributes)
    }

    /// Folds the lanes from low to high; a scalar is its own fold.
    #[track_caller]
    pub(crate) fn reduce(self, reduction: Reduction) -> Self {
        if self.ty.lanes == 1 {
            return self;
        }
        if reduction == Reduction::Maximum && self.ty.scalar == Scalar::F32 {
            // As floats LLVM minds NaN and takes one lane after the other; as integers it halves the lanes.
            return self.ordered_bits().reduce(reduction).ordered_bits().bitcast(Scalar::F32);
        }
        let builder = self.builder;
        let kind = match reduction {
            Reduction::Sum => "#vector.kind<add>",
            Reduction::Maximum => "#vector.kind<maxsi>",
        };
        let kind = Attribute::parse(builder.context, kind).expect("the attribute is well-formed");
        builder.emit("vector.reduction", &[self], Ty::scalar(self.ty.scalar), &[("kind", kind)])
    }

    /// The bits of an `f32`, those below the sign inverted where it is negative: integers in the order of the
    /// numbers. What is done twice is undone.
    #[track_caller]
    pub(crate) fn ordered_bits(self) -> Self {
        let bits = if self.ty.scalar == Scalar::F32 { self.bitcast(Scalar::I32) } else { self };
        bits.exclusive_or(bits.shift_right_signed(31).and_bits(0x7fff_ffff))
    }

    /// The same bits as another type of the same width.
    #[track_caller]
    pub(crate) fn bitcast(self, scalar: Scalar) -> Self {
        self.builder.emit("arith.bitcast", &[self], self.ty.with(scalar), &[])
    }

    /// Float to 32-bit integer, towards zero.
    #[track_caller]
    pub(crate) fn to_integer(self) -> Self {
        self.builder.emit("arith.fptosi", &[self], self.ty.with(Scalar::I32), &[])
    }

    /// Integer to `f32`.
    #[track_caller]
    pub(crate) fn to_float(self) -> Self {
        self.builder.emit("arith.sitofp", &[self], self.ty.with(Scalar::F32), &[])
    }

    /// The unsigned field of `bits` bits that begins at bit `first` of each 32-bit lane, still in 32 bits.
    #[track_caller]
    pub(crate) fn field(self, first: u32, bits: u32) -> Self {
        let lowered = if first == 0 { self } else { self.shift_right(first.into()) };
        if first + bits == 32 { lowered } else { lowered.and_bits((1 << bits) - 1) }
    }

    /// The same bits as lanes of another width, as many as fill the register.
    #[track_caller]
    pub(crate) fn as_lanes_of(self, scalar: Scalar) -> Self {
        let lanes = i64::from(self.ty.lanes) * self.ty.scalar.bytes() / scalar.bytes();
        self.builder.emit("vector.bitcast", &[self], Ty::vector(scalar, lanes as u32), &[])
    }

    /// The result, of type `result`, of an instruction of the processor that LLVM calls `name`.
    #[track_caller]
    pub(crate) fn instruction(self, name: &str, others: &[Self], result: Ty) -> Self {
        let builder = self.builder;
        let operands: Vec<Self> = std::iter::once(self).chain(others.iter().copied()).collect();
        let operation = builder.append_instruction(name, &operands, &[result]);
        builder.result(&operation, 0, result)
    }

    /// A wider integer with the same value.
    #[track_caller]
    pub(crate) fn extend(self, scalar: Scalar) -> Self {
        self.builder.emit("arith.extsi", &[self], self.ty.with(scalar), &[])
    }

    /// A wider integer with zeros above.
    #[track_caller]
    pub(crate) fn extend_unsigned(self, scalar: Scalar) -> Self {
        self.builder.emit("arith.extui", &[self], self.ty.with(scalar), &[])
    }

    /// A narrower integer: the low bits.
    #[track_caller]
    pub(crate) fn truncate(self, scalar: Scalar) -> Self {
        self.builder.emit("arith.trunci", &[self], self.ty.with(scalar), &[])
    }

    /// Bits shifted up by a constant.
    #[track_caller]
    pub(crate) fn shift_left(self, bits: i64) -> Self {
        let bits = self.builder.int_vector(self.ty.scalar, bits, self.ty.lanes);
        self.builder.emit("arith.shli", &[self, bits], self.ty, &[])
    }

    /// Bits shifted down by a constant, zeros from above.
    #[track_caller]
    pub(crate) fn shift_right(self, bits: i64) -> Self {
        let bits = self.builder.int_vector(self.ty.scalar, bits, self.ty.lanes);
        self.builder.emit("arith.shrui", &[self, bits], self.ty, &[])
    }

    /// Bits shifted down by a constant, the sign from above.
    #[track_caller]
    pub(crate) fn shift_right_signed(self, bits: i64) -> Self {
        let bits = self.builder.int_vector(self.ty.scalar, bits, self.ty.lanes);
        self.builder.emit("arith.shrsi", &[self, bits], self.ty, &[])
    }

    /// Bits shifted down by as many as another value says, zeros from above.
    #[track_caller]
    pub(crate) fn shift_right_by(self, bits: Self) -> Self {
        self.builder.emit("arith.shrui", &[self, bits], self.ty, &[])
    }

    /// Bits that one of both has alone.
    #[track_caller]
    pub(crate) fn exclusive_or(self, other: Self) -> Self {
        self.builder.emit("arith.xori", &[self, other], self.ty, &[])
    }

    /// Bits that both have.
    #[track_caller]
    pub(crate) fn and(self, other: Self) -> Self {
        self.builder.emit("arith.andi", &[self, other], self.ty, &[])
    }

    /// Bits that are set in either.
    #[track_caller]
    pub(crate) fn or(self, other: Self) -> Self {
        self.builder.emit("arith.ori", &[self, other], self.ty, &[])
    }

    /// The two f16 values of a dword, widened to `f32`.
    #[track_caller]
    pub(crate) fn f16_pair(self) -> Self {
        let pair = Ty::vector(Scalar::F16, 2);
        let halves = self.builder.emit("llvm.bitcast", &[self], pair, &[]);
        self.builder.emit("arith.extf", &[halves], pair.with(Scalar::F32), &[])
    }

    /// Bits that are also set in a constant.
    #[track_caller]
    pub(crate) fn and_bits(self, mask: i64) -> Self {
        let mask = self.builder.int_vector(self.ty.scalar, mask, self.ty.lanes);
        self.builder.emit("arith.andi", &[self, mask], self.ty, &[])
    }

    /// The two bf16 values of a dword, widened to `f32`: low half, high half.
    #[track_caller]
    pub(crate) fn bf16_pair(self) -> (Self, Self) {
        (
            self.shift_left(16).bitcast(Scalar::F32),
            self.and_bits(0xffff_0000_u32 as i32 as i64).bitcast(Scalar::F32),
        )
    }

    /// `f32` rounded to bf16, ties to even, as 16-bit integers.
    #[track_caller]
    pub(super) fn to_bf16_bits(self) -> Self {
        let builder = self.builder;
        let bits = self.bitcast(Scalar::I32);
        let tie = bits.shift_right(16).and_bits(1);
        let half = builder.int_vector(Scalar::I32, 0x7fff, self.ty.lanes);
        (bits + half + tie).shift_right(16).truncate(Scalar::I16)
    }
}

macro_rules! operator {
    ($trait:ident, $method:ident, $float:literal, $integer:literal) => {
        impl<'k> ops::$trait for Val<'k> {
            type Output = Self;

            #[track_caller]
            fn $method(self, other: Self) -> Self {
                self.binary($float, $integer, other)
            }
        }
    };
}

operator!(Add, add, "arith.addf", "arith.addi");
operator!(Sub, sub, "arith.subf", "arith.subi");
operator!(Mul, mul, "arith.mulf", "arith.muli");
operator!(Div, div, "arith.divf", "arith.divsi");
operator!(Rem, rem, "arith.remf", "arith.remsi");

//! A small typed builder over melior, so that a kernel reads like its pseudo-code.
//!
//! Values carry their type on the Rust side, arithmetic is written with operators, loops and
//! conditions take closures. Every operation's location names the kernel and the Rust line that
//! emitted it. Kernels address memory through [`Buffer`]s: a pointer and an element type; 16-bit floats
//! are widened to `f32` when loaded and rounded when stored.

use std::cell::Cell;
use std::ops;
use std::panic::Location as Caller;

use melior::Context;
use melior::ir::attribute::{
    DenseElementsAttribute, DenseI32ArrayAttribute, FloatAttribute, IntegerAttribute, TypeAttribute,
};
use melior::ir::operation::OperationBuilder;
use melior::ir::r#type::IntegerType;
use melior::ir::{
    Attribute, Block, BlockLike, BlockRef, Identifier, Location, OperationRef, Region, RegionLike, Type,
    Value, ValueLike,
};
use mlir_sys::{MlirBlock, MlirValue};
use qwen2c_request::Element;

/// Marks an index of `llvm.getelementptr` as an operand instead of a constant.
const DYNAMIC_INDEX: i32 = i32::MIN;

/// Alignment in bytes of stack arrays: a whole vector register.
const STACK_ALIGNMENT_BYTES: i64 = 64;

/// Type of one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scalar {
    I1,
    I8,
    I16,
    I32,
    I64,
    F16,
    F32,
    Pointer,
}

impl Scalar {
    const fn bytes(self) -> i64 {
        match self {
            Self::I1 | Self::I8 => 1,
            Self::I16 | Self::F16 => 2,
            Self::I32 | Self::F32 => 4,
            Self::I64 | Self::Pointer => 8,
        }
    }

    const fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::F32)
    }
}

/// Type of a value: one lane is a scalar, more are a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ty {
    pub(crate) scalar: Scalar,
    pub(crate) lanes: u32,
}

impl Ty {
    pub(crate) const fn scalar(scalar: Scalar) -> Self {
        Self { scalar, lanes: 1 }
    }

    pub(crate) const fn vector(scalar: Scalar, lanes: u32) -> Self {
        Self { scalar, lanes }
    }

    const fn with(self, scalar: Scalar) -> Self {
        Self { scalar, lanes: self.lanes }
    }
}

/// A value of the kernel that is being built.
#[derive(Clone, Copy)]
pub(crate) struct Val<'k> {
    raw: MlirValue,
    pub(crate) ty: Ty,
    builder: &'k KernelBuilder<'k>,
}

/// How two numbers compare: signed integers, ordered floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compare {
    Less,
    Greater,
}

/// Appends operations to the block that is being built.
pub(crate) struct KernelBuilder<'c> {
    context: &'c Context,
    kernel_name: String,
    block: Cell<MlirBlock>,
    /// First block of the function, which has its arguments.
    entry: MlirBlock,
}

impl<'c> KernelBuilder<'c> {
    /// A builder that appends to `block`, the entry block of a function of `kernel_name`.
    pub(crate) fn new(context: &'c Context, kernel_name: &str, block: &BlockRef<'c, '_>) -> Self {
        Self {
            context,
            kernel_name: kernel_name.to_owned(),
            block: Cell::new(block.to_raw()),
            entry: block.to_raw(),
        }
    }

    /// The value as an argument of the entry block.
    pub(crate) fn argument<'k>(&'k self, index: usize, ty: Ty) -> Val<'k> {
        let block = self.current(self.entry);
        let argument = block.argument(index).expect("the function was declared with this argument");
        Val { raw: argument.to_raw(), ty, builder: self.shortened() }
    }

    /// The builder with its lifetime cut to that of the borrow, as values hold it.
    fn shortened<'k>(&'k self) -> &'k KernelBuilder<'k> {
        self
    }

    fn current(&self, block: MlirBlock) -> BlockRef<'c, '_> {
        // SAFETY: the block belongs to the module under construction, which outlives the builder.
        unsafe { BlockRef::from_raw(block) }
    }

    #[track_caller]
    fn location(&self) -> Location<'c> {
        let caller = Caller::caller();
        let line =
            Location::new(self.context, caller.file(), caller.line() as usize, caller.column() as usize);
        Location::name(self.context, &self.kernel_name, line)
    }

    fn mlir_scalar(&self, scalar: Scalar) -> Type<'c> {
        match scalar {
            Scalar::I1 => IntegerType::new(self.context, 1).into(),
            Scalar::I8 => IntegerType::new(self.context, 8).into(),
            Scalar::I16 => IntegerType::new(self.context, 16).into(),
            Scalar::I32 => IntegerType::new(self.context, 32).into(),
            Scalar::I64 => IntegerType::new(self.context, 64).into(),
            Scalar::F16 => Type::float16(self.context),
            Scalar::F32 => Type::float32(self.context),
            Scalar::Pointer => melior::dialect::llvm::r#type::pointer(self.context, 0),
        }
    }

    fn mlir_type(&self, ty: Ty) -> Type<'c> {
        let scalar = self.mlir_scalar(ty.scalar);
        if ty.lanes == 1 { scalar } else { Type::vector(&[u64::from(ty.lanes)], scalar) }
    }

    fn identifier(&self, name: &str) -> Identifier<'c> {
        Identifier::new(self.context, name)
    }

    fn integer_attribute(&self, scalar: Scalar, value: i64) -> Attribute<'c> {
        IntegerAttribute::new(self.mlir_scalar(scalar), value).into()
    }

    /// Value as melior sees it. Its lifetime is that of the module, which outlives the builder.
    fn value(&self, val: Val<'_>) -> Value<'c, 'c> {
        // SAFETY: the value belongs to the module under construction.
        unsafe { Value::from_raw(val.raw) }
    }

    #[track_caller]
    fn append(
        &self,
        name: &str,
        operands: &[Val<'_>],
        results: &[Ty],
        attributes: &[(&str, Attribute<'c>)],
        regions: Vec<Region<'c>>,
    ) -> OperationRef<'c, '_> {
        let operands: Vec<Value<'c, '_>> = operands.iter().map(|operand| self.value(*operand)).collect();
        let results: Vec<Type<'c>> = results.iter().map(|ty| self.mlir_type(*ty)).collect();
        let attributes: Vec<_> =
            attributes.iter().map(|(name, value)| (self.identifier(name), *value)).collect();
        let operation = OperationBuilder::new(name, self.location())
            .add_operands(&operands)
            .add_results(&results)
            .add_attributes(&attributes)
            .add_regions_vec(regions)
            .build()
            .expect("operands and results are given, nothing is inferred");
        let block = self.current(self.block.get());
        let appended = block.append_operation(operation);
        // SAFETY: the operation now belongs to the module under construction.
        unsafe { OperationRef::from_raw(appended.to_raw()) }
    }

    #[track_caller]
    fn emit<'k>(
        &'k self,
        name: &str,
        operands: &[Val<'k>],
        result: Ty,
        attributes: &[(&str, Attribute<'c>)],
    ) -> Val<'k> {
        let operation = self.append(name, operands, &[result], attributes, Vec::new());
        self.result(&operation, 0, result)
    }

    fn result<'k>(&'k self, operation: &OperationRef<'c, '_>, index: usize, ty: Ty) -> Val<'k> {
        use melior::ir::operation::OperationLike;
        let result = operation.result(index).expect("the operation was built with this result");
        Val { raw: result.to_raw(), ty, builder: self.shortened() }
    }

    /// A 64-bit integer.
    #[track_caller]
    pub(crate) fn int<'k>(&'k self, value: impl TryInto<i64>) -> Val<'k> {
        let value = value.try_into().ok().expect("extents fit 63 bits");
        self.int_of(Scalar::I64, value)
    }

    /// An integer of a given width.
    #[track_caller]
    pub(crate) fn int_of<'k>(&'k self, scalar: Scalar, value: i64) -> Val<'k> {
        self.emit(
            "arith.constant",
            &[],
            Ty::scalar(scalar),
            &[("value", self.integer_attribute(scalar, value))],
        )
    }

    /// An integer in every lane.
    #[track_caller]
    pub(crate) fn int_vector<'k>(&'k self, scalar: Scalar, value: i64, lanes: u32) -> Val<'k> {
        if lanes == 1 {
            return self.int_of(scalar, value);
        }
        let ty = Ty::vector(scalar, lanes);
        let splat = DenseElementsAttribute::splat(self.mlir_type(ty), self.integer_attribute(scalar, value));
        self.emit("arith.constant", &[], ty, &[("value", splat.into())])
    }

    /// The numbers 0, 1, … in 32-bit lanes.
    #[track_caller]
    pub(crate) fn iota<'k>(&'k self, lanes: u32) -> Val<'k> {
        let ty = Ty::vector(Scalar::I32, lanes);
        let numbers: Vec<i32> = (0..lanes as i32).collect();
        let attribute = DenseElementsAttribute::i32_values(self.mlir_type(ty), &numbers);
        self.emit("arith.constant", &[], ty, &[("value", attribute.into())])
    }

    /// A float in every lane.
    #[track_caller]
    pub(crate) fn float<'k>(&'k self, value: f32, lanes: u32) -> Val<'k> {
        let scalar = FloatAttribute::new(self.context, Type::float32(self.context), f64::from(value));
        let ty = Ty::vector(Scalar::F32, lanes);
        let attribute: Attribute<'c> = if lanes == 1 {
            scalar.into()
        } else {
            DenseElementsAttribute::splat(self.mlir_type(ty), scalar.into()).into()
        };
        self.emit("arith.constant", &[], ty, &[("value", attribute)])
    }

    /// `for index in (from..to).step_by(step)` with carried values; returns their final values.
    #[track_caller]
    pub(crate) fn for_each<'k>(
        &'k self,
        from: Val<'k>,
        to: Val<'k>,
        step: i64,
        carried: &[Val<'k>],
        body: impl FnOnce(Val<'k>, &[Val<'k>]) -> Vec<Val<'k>>,
    ) -> Vec<Val<'k>> {
        let location = self.location();
        let types: Vec<Ty> = carried.iter().map(|value| value.ty).collect();
        let mut arguments = vec![(self.mlir_scalar(Scalar::I64), location)];
        arguments.extend(types.iter().map(|ty| (self.mlir_type(*ty), location)));
        let region = Region::new();
        let block = region.append_block(Block::new(&arguments));
        let argument = |index: usize, ty: Ty| Val {
            raw: block.argument(index).expect("the block was made with this argument").to_raw(),
            ty,
            builder: self.shortened(),
        };
        let index = argument(0, Ty::scalar(Scalar::I64));
        let inner: Vec<Val<'k>> =
            types.iter().enumerate().map(|(number, ty)| argument(number + 1, *ty)).collect();
        let step = self.int(step);
        let outer = self.block.replace(block.to_raw());
        let yielded = body(index, &inner);
        self.append("scf.yield", &yielded, &[], &[], Vec::new());
        self.block.set(outer);
        let mut operands = vec![from, to, step];
        operands.extend_from_slice(carried);
        let operation = self.append("scf.for", &operands, &types, &[], vec![region]);
        types.iter().enumerate().map(|(number, ty)| self.result(&operation, number, *ty)).collect()
    }

    /// A loop without carried values.
    #[track_caller]
    pub(crate) fn repeat<'k>(&'k self, from: Val<'k>, to: Val<'k>, step: i64, body: impl FnOnce(Val<'k>)) {
        self.for_each(from, to, step, &[], |index, _| {
            body(index);
            Vec::new()
        });
    }

    /// `for offset in 0..length`, as many lanes at a time as `lanes`, then one by one: the body is
    /// emitted twice, with the offset and the number of lanes.
    #[track_caller]
    pub(crate) fn for_each_chunk<'k>(&'k self, length: Val<'k>, lanes: u32, body: impl Fn(Val<'k>, u32)) {
        let whole = self.whole_chunks(length, lanes);
        self.repeat(self.int(0), whole, i64::from(lanes), |offset| body(offset, lanes));
        self.repeat(whole, length, 1, |offset| body(offset, 1));
    }

    /// `length` rounded down to a multiple of `lanes`.
    #[track_caller]
    pub(crate) fn whole_chunks<'k>(&'k self, length: Val<'k>, lanes: u32) -> Val<'k> {
        length - length % self.int(lanes)
    }

    /// Folds `term(offset, lanes)` over `0..length` with `combine`, first in vector lanes, then across
    /// the lanes from low to high, then over the tail: always the same order.
    #[track_caller]
    pub(crate) fn fold_chunks<'k>(
        &'k self,
        length: Val<'k>,
        lanes: u32,
        start: f32,
        reduction: Reduction,
        term: impl Fn(Val<'k>, u32) -> Val<'k>,
    ) -> Val<'k> {
        let whole = self.whole_chunks(length, lanes);
        let vector = self.for_each(
            self.int(0),
            whole,
            i64::from(lanes),
            &[self.float(start, lanes)],
            |offset, sum| vec![reduction.combine(sum[0], term(offset, lanes))],
        )[0];
        let scalar = vector.reduce(reduction);
        self.for_each(whole, length, 1, &[scalar], |offset, sum| {
            vec![reduction.combine(sum[0], term(offset, 1))]
        })[0]
    }

    /// Runs `body` where `condition` holds and `otherwise` where not.
    #[track_caller]
    pub(crate) fn when_else<'k>(&'k self, condition: Val<'k>, body: impl FnOnce(), otherwise: impl FnOnce()) {
        let first = self.branch(body);
        let second = self.branch(otherwise);
        self.append("scf.if", &[condition], &[], &[], vec![first, second]);
    }

    #[track_caller]
    fn branch(&self, body: impl FnOnce()) -> Region<'c> {
        let region = Region::new();
        let block = region.append_block(Block::new(&[]));
        let outer = self.block.replace(block.to_raw());
        body();
        self.append("scf.yield", &[], &[], &[], Vec::new());
        self.block.set(outer);
        region
    }

    /// An array on the stack, made once at the start of the function.
    #[track_caller]
    pub(crate) fn stack_array<'k>(&'k self, element: Element, elements: u64) -> Buffer<'k> {
        let ty = self.mlir_scalar(storage_scalar(element));
        let count = self.int(elements);
        let pointer = self.emit(
            "llvm.alloca",
            &[count],
            Ty::scalar(Scalar::Pointer),
            &[
                ("elem_type", TypeAttribute::new(ty).into()),
                ("alignment", self.integer_attribute(Scalar::I64, STACK_ALIGNMENT_BYTES)),
            ],
        );
        Buffer { pointer, element }
    }

    /// Returns from the function.
    #[track_caller]
    pub(crate) fn finish(&self, values: &[Val<'_>]) {
        self.append("func.return", values, &[], &[], Vec::new());
    }
}

/// How lanes and terms are folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reduction {
    Sum,
    Maximum,
}

impl Reduction {
    #[track_caller]
    fn combine<'k>(self, left: Val<'k>, right: Val<'k>) -> Val<'k> {
        match self {
            Self::Sum => left + right,
            Self::Maximum => left.maximum(right),
        }
    }
}

impl<'k> Val<'k> {
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
            (true, Compare::Greater) => ("arith.cmpf", 2),
            (true, Compare::Less) => ("arith.cmpf", 4),
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

    /// Folds the lanes from low to high; a scalar is its own fold.
    #[track_caller]
    pub(crate) fn reduce(self, reduction: Reduction) -> Self {
        if self.ty.lanes == 1 {
            return self;
        }
        let builder = self.builder;
        let kind = match reduction {
            Reduction::Sum => "#vector.kind<add>",
            Reduction::Maximum => "#vector.kind<maxnumf>",
        };
        let kind = Attribute::parse(builder.context, kind).expect("the attribute is well-formed");
        builder.emit("vector.reduction", &[self], Ty::scalar(self.ty.scalar), &[("kind", kind)])
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

    /// The signed field of `bits` bits that begins at bit `first` of each 32-bit lane, still in 32 bits.
    #[track_caller]
    pub(crate) fn signed_field(self, first: u32, bits: u32) -> Self {
        let above = i64::from(32 - bits - first);
        let raised = if above == 0 { self } else { self.shift_left(above) };
        let down = self.builder.int_vector(self.ty.scalar, i64::from(32 - bits), self.ty.lanes);
        self.builder.emit("arith.shrsi", &[raised, down], self.ty, &[])
    }

    /// A wider integer with the same value.
    #[track_caller]
    pub(crate) fn extend(self, scalar: Scalar) -> Self {
        self.builder.emit("arith.extsi", &[self], self.ty.with(scalar), &[])
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

    #[track_caller]
    fn shift_right(self, bits: i64) -> Self {
        let bits = self.builder.int_vector(self.ty.scalar, bits, self.ty.lanes);
        self.builder.emit("arith.shrui", &[self, bits], self.ty, &[])
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
    fn to_bf16_bits(self) -> Self {
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

/// How an element lies in memory; bf16 is handled as its bits.
const fn storage_scalar(element: Element) -> Scalar {
    match element {
        Element::F32 => Scalar::F32,
        Element::Bf16 => Scalar::I16,
        Element::F16 => Scalar::F16,
        Element::I32 => Scalar::I32,
    }
}

/// Memory with an element type; offsets count elements.
#[derive(Clone, Copy)]
pub(crate) struct Buffer<'k> {
    pub(crate) pointer: Val<'k>,
    pub(crate) element: Element,
}

impl<'k> Buffer<'k> {
    /// The same memory from `offset` elements on.
    #[track_caller]
    pub(crate) fn at(self, offset: Val<'k>) -> Self {
        Self { pointer: self.address(storage_scalar(self.element), offset), element: self.element }
    }

    /// The same memory from `offset_bytes` on.
    #[track_caller]
    pub(crate) fn at_bytes(self, offset_bytes: Val<'k>) -> Self {
        Self { pointer: self.address(Scalar::I8, offset_bytes), element: self.element }
    }

    /// The same memory seen as another element type.
    pub(crate) fn seen_as(self, element: Element) -> Self {
        Self { pointer: self.pointer, element }
    }

    #[track_caller]
    fn address(self, unit: Scalar, offset: Val<'k>) -> Val<'k> {
        let builder = self.pointer.builder;
        let indices = DenseI32ArrayAttribute::new(builder.context, &[DYNAMIC_INDEX]);
        let unit = TypeAttribute::new(builder.mlir_scalar(unit));
        builder.emit(
            "llvm.getelementptr",
            &[self.pointer, offset],
            Ty::scalar(Scalar::Pointer),
            &[("elem_type", unit.into()), ("rawConstantIndices", indices.into())],
        )
    }

    /// `lanes` consecutive elements from `offset`: floats widened to `f32`, integers as they are.
    #[track_caller]
    pub(crate) fn load(self, offset: Val<'k>, lanes: u32) -> Val<'k> {
        let stored = self.load_as(storage_scalar(self.element), offset, lanes);
        self.widen(stored)
    }

    /// `lanes` values of `scalar` from `offset`, counted in that type, without conversion.
    #[track_caller]
    pub(crate) fn load_as(self, scalar: Scalar, offset: Val<'k>, lanes: u32) -> Val<'k> {
        let builder = self.pointer.builder;
        let address = self.address(scalar, offset);
        // Rows of odd length leave vectors at any multiple of the element.
        let alignment = builder.integer_attribute(Scalar::I64, storage_scalar(self.element).bytes());
        builder.emit("llvm.load", &[address], Ty::vector(scalar, lanes), &[("alignment", alignment)])
    }

    /// One element of an integer buffer as a 64-bit integer.
    #[track_caller]
    pub(crate) fn load_index(self, offset: Val<'k>) -> Val<'k> {
        self.load(offset, 1).extend(Scalar::I64)
    }

    #[track_caller]
    fn widen(self, stored: Val<'k>) -> Val<'k> {
        let builder = self.pointer.builder;
        match self.element {
            Element::F32 | Element::I32 => stored,
            Element::F16 => builder.emit("arith.extf", &[stored], stored.ty.with(Scalar::F32), &[]),
            Element::Bf16 => {
                let wide = builder.emit("arith.extui", &[stored], stored.ty.with(Scalar::I32), &[]);
                wide.shift_left(16).bitcast(Scalar::F32)
            }
        }
    }

    #[track_caller]
    fn narrow(self, value: Val<'k>) -> Val<'k> {
        let builder = self.pointer.builder;
        match self.element {
            Element::F32 | Element::I32 => value,
            Element::F16 => builder.emit("arith.truncf", &[value], value.ty.with(Scalar::F16), &[]),
            Element::Bf16 => value.to_bf16_bits(),
        }
    }

    /// Stores the lanes of `value` from `offset` on, floats rounded to the element type.
    #[track_caller]
    pub(crate) fn store(self, offset: Val<'k>, value: Val<'k>) {
        let builder = self.pointer.builder;
        let stored = self.narrow(value);
        let address = self.address(stored.ty.scalar, offset);
        let alignment = builder.integer_attribute(Scalar::I64, stored.ty.scalar.bytes());
        builder.append("llvm.store", &[stored, address], &[], &[("alignment", alignment)], Vec::new());
    }

    /// Loads the lanes that `mask` selects; the others are zero.
    #[track_caller]
    pub(crate) fn load_masked(self, offset: Val<'k>, mask: Val<'k>) -> Val<'k> {
        let builder = self.pointer.builder;
        let scalar = storage_scalar(self.element);
        let ty = Ty::vector(scalar, mask.ty.lanes);
        let address = self.address(scalar, offset);
        let zero = if scalar == Scalar::F32 {
            builder.float(0.0, ty.lanes)
        } else {
            let zero = builder.int_vector(Scalar::I16, 0, ty.lanes);
            if scalar == Scalar::F16 { zero.bitcast(Scalar::F16) } else { zero }
        };
        let alignment = builder.integer_attribute(Scalar::I32, scalar.bytes());
        let loaded =
            builder.emit("llvm.intr.masked.load", &[address, mask, zero], ty, &[("alignment", alignment)]);
        self.widen(loaded)
    }

    /// Stores the lanes that `mask` selects.
    #[track_caller]
    pub(crate) fn store_masked(self, offset: Val<'k>, value: Val<'k>, mask: Val<'k>) {
        let builder = self.pointer.builder;
        let stored = self.narrow(value);
        let address = self.address(stored.ty.scalar, offset);
        let alignment = builder.integer_attribute(Scalar::I32, stored.ty.scalar.bytes());
        builder.append(
            "llvm.intr.masked.store",
            &[stored, address, mask],
            &[],
            &[("alignment", alignment)],
            Vec::new(),
        );
    }
}

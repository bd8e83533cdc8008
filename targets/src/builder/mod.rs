//! A small typed builder over melior, so that a kernel reads like its pseudo-code.
//!
//! Values carry their type on the Rust side, arithmetic is written with operators, loops and
//! conditions take closures. Every operation's location names the kernel and the Rust line that
//! emitted it. Kernels address memory through [`Buffer`]s: a pointer and an element type; 16-bit floats
//! are widened to `f32` when loaded and rounded when stored.

mod buffer;
mod control;
mod device;
mod grid;
mod matrix;
mod ty;
mod value;

use std::cell::Cell;
use std::panic::Location as Caller;

use melior::Context;
use melior::ir::attribute::{
    DenseElementsAttribute, DenseI32ArrayAttribute, FloatAttribute, IntegerAttribute, StringAttribute,
    TypeAttribute,
};
use melior::ir::operation::OperationBuilder;
use melior::ir::r#type::IntegerType;
use melior::ir::{
    Attribute, BlockLike, BlockRef, Identifier, Location, OperationRef, Region, Type, Value, ValueLike,
};
use mlir_sys::MlirBlock;
use qwen2c_request::Element;

pub(crate) use buffer::Buffer;
use buffer::storage_scalar;
pub(crate) use device::{Place, SHARED_SYMBOL, WARP_THREADS};
pub(crate) use matrix::MatrixShape;
pub(crate) use ty::{Scalar, Ty};
pub(crate) use value::{Compare, Reduction, Val};

/// Alignment in bytes of stack arrays: a whole vector register.
const STACK_ALIGNMENT_BYTES: i64 = 64;

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
            Scalar::Bf16 => Type::bfloat16(self.context),
            Scalar::F32 => Type::float32(self.context),
            Scalar::Pointer => melior::dialect::llvm::r#type::pointer(self.context, 0),
            Scalar::GlobalPointer => melior::dialect::llvm::r#type::pointer(self.context, 1),
            Scalar::SharedPointer => melior::dialect::llvm::r#type::pointer(self.context, 3),
            Scalar::Matrix => Type::parse(self.context, "!llvm.x86_amx").expect("the dialect is loaded"),
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
        let results: Vec<Type<'c>> = results.iter().map(|ty| self.mlir_type(*ty)).collect();
        self.append_typed(name, operands, &results, attributes, regions)
    }

    #[track_caller]
    fn append_typed(
        &self,
        name: &str,
        operands: &[Val<'_>],
        results: &[Type<'c>],
        attributes: &[(&str, Attribute<'c>)],
        regions: Vec<Region<'c>>,
    ) -> OperationRef<'c, '_> {
        let operands: Vec<Value<'c, '_>> = operands.iter().map(|operand| self.value(*operand)).collect();
        let attributes: Vec<_> =
            attributes.iter().map(|(name, value)| (self.identifier(name), *value)).collect();
        let operation = OperationBuilder::new(name, self.location())
            .add_operands(&operands)
            .add_results(results)
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

    /// An instruction of the processor that LLVM calls `name`.
    #[track_caller]
    fn append_instruction(&self, name: &str, operands: &[Val<'_>], results: &[Ty]) -> OperationRef<'c, '_> {
        let segments = DenseI32ArrayAttribute::new(self.context, &[operands.len() as i32, 0]);
        let attributes = [
            ("intrin", StringAttribute::new(self.context, name).into()),
            ("op_bundle_sizes", DenseI32ArrayAttribute::new(self.context, &[]).into()),
            ("operandSegmentSizes", segments.into()),
        ];
        self.append("llvm.call_intrinsic", operands, results, &attributes, Vec::new())
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

    /// Whether an integer is zero.
    #[track_caller]
    pub(crate) fn is_zero<'k>(&'k self, value: Val<'k>) -> Val<'k> {
        value.compare(Compare::Equal, self.int_of(value.ty.scalar, 0))
    }

    /// Whether both conditions hold.
    #[track_caller]
    pub(crate) fn both<'k>(&'k self, first: Val<'k>, second: Val<'k>) -> Val<'k> {
        self.emit("arith.andi", &[first, second], first.ty, &[])
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

    /// An array on the stack until the function returns, made where this stands: in a loop, one more each round.
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

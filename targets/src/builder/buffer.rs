//! Memory: a pointer with an element type, loads that widen and stores that round.

use melior::ir::attribute::{DenseI32ArrayAttribute, TypeAttribute};
use qwen2c_request::Element;

use super::{Scalar, Ty, Val};

/// Marks an index of `llvm.getelementptr` as an operand instead of a constant.
const DYNAMIC_INDEX: i32 = i32::MIN;

/// How an element lies in memory; bf16 is handled as its bits.
pub(super) const fn storage_scalar(element: Element) -> Scalar {
    match element {
        Element::F32 => Scalar::F32,
        Element::Bf16 => Scalar::I16,
        Element::F16 => Scalar::F16,
        Element::I32 => Scalar::I32,
        // Those of 16 bits lie in two planes of bytes.
        Element::I8 { .. } | Element::I16 { .. } => Scalar::I8,
    }
}

impl<'k> Val<'k> {
    /// The pointer moved by `offset` units.
    #[track_caller]
    pub(super) fn offset_by(self, unit: Scalar, offset: Val<'k>) -> Self {
        let builder = self.builder;
        let indices = DenseI32ArrayAttribute::new(builder.context, &[DYNAMIC_INDEX]);
        let unit = TypeAttribute::new(builder.mlir_scalar(unit));
        let attributes = [("elem_type", unit.into()), ("rawConstantIndices", indices.into())];
        builder.emit("llvm.getelementptr", &[self, offset], self.ty, &attributes)
    }
}

impl<'k> Val<'k> {
    /// The pointer moved by a number of bytes.
    #[track_caller]
    pub(crate) fn offset_by_bytes(self, bytes: u64) -> Self {
        self.offset_by(Scalar::I8, self.builder.int(bytes))
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
        self.pointer.offset_by(unit, offset)
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
        // Rows of odd length leave vectors at any multiple of the element.
        self.load_at(
            self.address(scalar, offset),
            Ty::vector(scalar, lanes),
            storage_scalar(self.element).bytes(),
        )
    }

    #[track_caller]
    fn load_at(self, address: Val<'k>, ty: Ty, alignment_bytes: i64) -> Val<'k> {
        let builder = self.pointer.builder;
        let alignment = builder.integer_attribute(Scalar::I64, alignment_bytes);
        builder.emit("llvm.load", &[address], ty, &[("alignment", alignment)])
    }

    /// As [`Buffer::load`], from an address that is a multiple of what is loaded, so that a CUDA device
    /// needs one instruction.
    #[track_caller]
    pub(crate) fn load_aligned(self, offset: Val<'k>, lanes: u32) -> Val<'k> {
        let scalar = storage_scalar(self.element);
        let stored = self.load_aligned_as(scalar, offset, lanes);
        self.widen(stored)
    }

    /// As [`Buffer::load_as`], from an address that is a multiple of what is loaded.
    #[track_caller]
    pub(crate) fn load_aligned_as(self, scalar: Scalar, offset: Val<'k>, lanes: u32) -> Val<'k> {
        let ty = Ty::vector(scalar, lanes);
        self.load_at(self.address(scalar, offset), ty, scalar.bytes() * i64::from(lanes))
    }

    #[track_caller]
    fn store_at(self, offset: Val<'k>, stored: Val<'k>, alignment_bytes: i64) {
        let builder = self.pointer.builder;
        let address = self.address(stored.ty.scalar, offset);
        let alignment = builder.integer_attribute(Scalar::I64, alignment_bytes);
        builder.append("llvm.store", &[stored, address], &[], &[("alignment", alignment)], Vec::new());
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
            Element::F32 | Element::I32 | Element::I8 { .. } | Element::I16 { .. } => stored,
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
            Element::F32 | Element::I32 | Element::I8 { .. } | Element::I16 { .. } => value,
            Element::F16 => builder.emit("arith.truncf", &[value], value.ty.with(Scalar::F16), &[]),
            Element::Bf16 => value.to_bf16_bits(),
        }
    }

    /// Stores the lanes of `value` from `offset` on, floats rounded to the element type.
    #[track_caller]
    pub(crate) fn store(self, offset: Val<'k>, value: Val<'k>) {
        let stored = self.narrow(value);
        self.store_at(offset, stored, stored.ty.scalar.bytes());
    }

    /// As [`Buffer::store`], to an address that is a multiple of what is stored.
    #[track_caller]
    pub(crate) fn store_aligned(self, offset: Val<'k>, value: Val<'k>) {
        let stored = self.narrow(value);
        let address = self.at(offset);
        address.store_at(
            self.pointer.builder.int(0),
            stored,
            stored.ty.scalar.bytes() * i64::from(stored.ty.lanes),
        );
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

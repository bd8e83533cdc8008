//! Registers of the processor's matrix unit: rows of bytes, loaded, multiplied and stored as wholes.
//!
//! A register's extents are operands of every instruction that touches it; LLVM gathers them into the
//! unit's configuration, which a function writes before its first use and gives up at its end.

use melior::ir::Attribute;
use melior::ir::attribute::StringAttribute;

use super::{Buffer, KernelBuilder, Scalar, Ty, Val};

/// Extents of a register: at most 16 rows of at most 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MatrixShape {
    /// Rows.
    pub(crate) rows: u32,
    /// Bytes of a row.
    pub(crate) row_bytes: u32,
}

impl MatrixShape {
    fn operands<'k>(self, builder: &'k KernelBuilder<'k>) -> [Val<'k>; 2] {
        [self.rows, self.row_bytes].map(|extent| builder.int_of(Scalar::I16, extent.into()))
    }
}

impl KernelBuilder<'_> {
    /// Vectors that are computed before anything behind this is loaded, so that the compiler does not fill
    /// registers ahead of their use. It costs no instruction: an empty piece of assembly that reads them.
    #[track_caller]
    pub(crate) fn compute_first(&self, vectors: &[Val<'_>]) {
        let constraints = vec!["v"; vectors.len()].join(",");
        let attributes = [
            ("asm_string", StringAttribute::new(self.context, "").into()),
            ("constraints", StringAttribute::new(self.context, &constraints).into()),
            ("has_side_effects", Attribute::unit(self.context)),
        ];
        self.append("llvm.inline_asm", vectors, &[], &attributes, Vec::new());
    }

    /// A register of zeros.
    #[track_caller]
    pub(crate) fn zero_matrix<'k>(&'k self, shape: MatrixShape) -> Val<'k> {
        let ty = Ty::scalar(Scalar::Matrix);
        let operation =
            self.append_instruction("llvm.x86.tilezero.internal", &shape.operands(self.shortened()), &[ty]);
        self.result(&operation, 0, ty)
    }
}

impl<'k> Buffer<'k> {
    /// Rows that start `row_stride_bytes` apart, to be used again soon.
    #[track_caller]
    pub(crate) fn load_matrix(self, shape: MatrixShape, row_stride_bytes: Val<'k>) -> Val<'k> {
        self.load_matrix_by("llvm.x86.tileloadd64.internal", shape, row_stride_bytes)
    }

    /// Rows that start `row_stride_bytes` apart, which need not stay in the nearest cache.
    #[track_caller]
    pub(crate) fn load_streamed_matrix(self, shape: MatrixShape, row_stride_bytes: Val<'k>) -> Val<'k> {
        self.load_matrix_by("llvm.x86.tileloaddt164.internal", shape, row_stride_bytes)
    }

    /// Asks for the cache line at the start of the buffer, to the second level; what does not exist is not
    /// missed.
    #[track_caller]
    pub(crate) fn prefetch(self) {
        self.prefetch_with_locality(2);
    }

    /// The same to the first level.
    #[track_caller]
    pub(crate) fn prefetch_near(self) {
        self.prefetch_with_locality(3);
    }

    #[track_caller]
    fn prefetch_with_locality(self, locality: i64) {
        let builder = self.pointer.builder;
        // A read, of data.
        let attributes = [("rw", 0), ("hint", locality), ("cache", 1)]
            .map(|(name, value)| (name, builder.integer_attribute(Scalar::I32, value)));
        builder.append("llvm.intr.prefetch", &[self.pointer], &[], &attributes, Vec::new());
    }

    #[track_caller]
    fn load_matrix_by(self, name: &str, shape: MatrixShape, row_stride_bytes: Val<'k>) -> Val<'k> {
        let [rows, row_bytes] = shape.operands(self.pointer.builder);
        rows.instruction(name, &[row_bytes, self.pointer, row_stride_bytes], Ty::scalar(Scalar::Matrix))
    }

    /// Stores the rows of `matrix` `row_stride_bytes` apart.
    #[track_caller]
    pub(crate) fn store_matrix(self, shape: MatrixShape, row_stride_bytes: Val<'k>, matrix: Val<'k>) {
        let builder = self.pointer.builder;
        let [rows, row_bytes] = shape.operands(builder);
        let operands = [rows, row_bytes, self.pointer, row_stride_bytes, matrix];
        builder.append_instruction("llvm.x86.tilestored64.internal", &operands, &[]);
    }
}

impl<'k> Val<'k> {
    /// The matrix `self`, 16 columns of 32 bits, and the products of `left` and `right`, which hold dwords
    /// of small numbers, by the instruction `name`.
    #[track_caller]
    pub(crate) fn add_matrix_product(
        self,
        name: &str,
        (left, left_shape): (Self, MatrixShape),
        (right, right_shape): (Self, MatrixShape),
    ) -> Self {
        let [rows, common_bytes] = left_shape.operands(self.builder);
        let [_, row_bytes] = right_shape.operands(self.builder);
        rows.instruction(name, &[row_bytes, common_bytes, self, left, right], self.ty)
    }
}

//! Types on the Rust side: a scalar, and how many of it stand side by side.

/// Type of one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scalar {
    I1,
    I8,
    I16,
    I32,
    I64,
    F16,
    Bf16,
    F32,
    /// To memory of any kind.
    Pointer,
    /// To the memory of a CUDA device.
    GlobalPointer,
    /// To memory that the threads of a CUDA block share.
    SharedPointer,
    /// A register of the matrix unit.
    Matrix,
}

impl Scalar {
    pub(super) const fn bytes(self) -> i64 {
        match self {
            Self::I1 | Self::I8 => 1,
            Self::I16 | Self::F16 | Self::Bf16 => 2,
            Self::I32 | Self::F32 => 4,
            Self::I64 | Self::Pointer | Self::GlobalPointer | Self::SharedPointer => 8,
            Self::Matrix => 1024,
        }
    }

    pub(super) const fn is_float(self) -> bool {
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

    pub(super) const fn with(self, scalar: Scalar) -> Self {
        Self { scalar, lanes: self.lanes }
    }
}

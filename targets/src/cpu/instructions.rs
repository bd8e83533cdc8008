//! What a level's instructions for products of small numbers are called in LLVM.

/// Instructions of a target.
#[derive(Clone, Copy, Debug)]
pub(super) struct Instructions {
    /// `f32` lanes of a vector register.
    pub(super) lanes: u32,
    /// Products of bytes.
    pub(super) byte_products: ByteProducts,
    /// LLVM's name of `vdpbf16ps`, where there is one: adds two products of bf16 to each 32-bit lane.
    pub(super) bf16_dot: Option<&'static str>,
    /// Products on the matrix unit, where there is one.
    pub(super) matrix: Option<MatrixProducts>,
    /// Reading at the speed of memory takes instructions that ask for it ahead.
    pub(super) fetches_ahead: bool,
}

/// LLVM's names of the instructions that multiply registers of the matrix unit.
#[derive(Clone, Copy, Debug)]
pub(super) struct MatrixProducts {
    /// `tdpbf16ps`: pairs of bf16, even and odd inputs summed apart.
    pub(super) bf16: &'static str,
    /// `tdpbssd`: signed by signed bytes.
    pub(super) signed_bytes: &'static str,
    /// `tdpbsud`: signed by unsigned bytes.
    pub(super) unsigned_bytes: &'static str,
}

/// LLVM's names of the instructions that multiply bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct ByteProducts {
    /// `vpdpbusd`: adds four products of an unsigned and a signed byte to each 32-bit lane.
    pub(super) dot: Option<&'static str>,
    /// `vpmaddubsw`: two products of an unsigned and a signed byte, added to a 16-bit lane that saturates.
    pub(super) byte_pairs: &'static str,
    /// `vpmaddwd`: two products of signed 16-bit lanes, added to a 32-bit lane.
    pub(super) half_pairs: &'static str,
}

impl Instructions {
    /// The instructions for vectors of 16 or 8 lanes.
    pub(super) const fn of(lanes: u32, has_vnni: bool, has_bf16: bool, has_matrix_unit: bool) -> Self {
        let byte_products = if lanes == 16 {
            ByteProducts {
                dot: if has_vnni { Some("llvm.x86.avx512.vpdpbusd.512") } else { None },
                byte_pairs: "llvm.x86.avx512.pmaddubs.w.512",
                half_pairs: "llvm.x86.avx512.pmaddw.d.512",
            }
        } else {
            ByteProducts {
                dot: None,
                byte_pairs: "llvm.x86.avx2.pmadd.ub.sw",
                half_pairs: "llvm.x86.avx2.pmadd.wd",
            }
        };
        let bf16_dot = if has_bf16 { Some("llvm.x86.avx512bf16.dpbf16ps.512") } else { None };
        let matrix = if has_matrix_unit {
            Some(MatrixProducts {
                bf16: "llvm.x86.tdpbf16ps.internal",
                signed_bytes: "llvm.x86.tdpbssd.internal",
                unsigned_bytes: "llvm.x86.tdpbsud.internal",
            })
        } else {
            None
        };
        // Every processor with a matrix unit is one of Intel's.
        Self { lanes, byte_products, bf16_dot, matrix, fetches_ahead: has_matrix_unit }
    }
}

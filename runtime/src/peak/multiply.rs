//! Multiplying and adding in registers: the rate that no kernel can exceed.
//!
//! The widest instruction that the processor has for a type counts, as kernels would use it.

use crate::kernel::BodyFunction;

/// Tiles of a measurement.
pub(super) const TILES: i64 = 64;
/// Rounds of one tile.
const ROUNDS: u64 = if cfg!(test) { 1000 } else { 40_000 };
/// Independent accumulators: latency times width of every current core.
const ACCUMULATORS: usize = 12;

/// A kernel that only multiplies and adds.
pub(super) struct Multiplication {
    /// One tile of it.
    pub(super) body: BodyFunction,
    /// Operations of one tile, a multiply-add counted as two.
    pub(super) operations: f64,
}

impl Multiplication {
    /// A vector kernel with so many multiply-adds in each instruction.
    fn vector(body: BodyFunction, multiply_adds: u64) -> Self {
        Self { body, operations: (2 * multiply_adds * ROUNDS * ACCUMULATORS as u64) as f64 }
    }
}

/// Products of `f32`, summed in `f32`.
#[cfg(target_arch = "x86_64")]
pub(super) fn in_f32() -> Multiplication {
    if std::arch::is_x86_feature_detected!("avx512f") {
        Multiplication::vector(multiply_add_avx512, 16)
    } else if std::arch::is_x86_feature_detected!("fma") {
        Multiplication::vector(multiply_add_fma, 8)
    } else {
        Multiplication::vector(multiply_add_plain, 1)
    }
}

/// Products of `bf16`, summed in `f32`; none where the processor has no instruction for them.
#[cfg(target_arch = "x86_64")]
pub(super) fn in_bf16() -> Option<Multiplication> {
    let has_vectors = std::arch::is_x86_feature_detected!("avx512bf16");
    super::tiles::in_bf16().or_else(|| has_vectors.then(|| Multiplication::vector(multiply_add_bf16, 32)))
}

/// Products of 8-bit integers, summed in 32 bits; none where the processor has no instruction for them.
#[cfg(target_arch = "x86_64")]
pub(super) fn in_int8() -> Option<Multiplication> {
    let has_vectors = std::arch::is_x86_feature_detected!("avx512vnni");
    super::tiles::in_int8().or_else(|| has_vectors.then(|| Multiplication::vector(multiply_add_int8, 64)))
}

/// Products of `f32`, summed in `f32`.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn in_f32() -> Multiplication {
    Multiplication::vector(multiply_add_plain, 1)
}

/// Products of `bf16`, summed in `f32`; none where the processor has no instruction for them.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn in_bf16() -> Option<Multiplication> {
    None
}

/// Products of 8-bit integers, summed in 32 bits; none where the processor has no instruction for them.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn in_int8() -> Option<Multiplication> {
    None
}

/// How many tiles a measurement has.
pub(super) unsafe extern "C" fn tile_count(_operands: *const *mut u8, _rows: i64) -> i64 {
    TILES
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe extern "C" fn multiply_add_bf16(operands: *const *mut u8, rows: i64, tile: i64) {
    use std::arch::x86_64::{_mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_reduce_add_ps, _mm512_set1_ps};
    let half = _mm512_set1_ps(0.5);
    let factor = _mm512_cvtne2ps_pbh(half, half);
    let mut sums = [_mm512_set1_ps(tile as f32); ACCUMULATORS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, factor, factor);
        }
    }
    let total = sums.iter().map(|&sum| _mm512_reduce_add_ps(sum)).sum();
    // SAFETY: the operands are those of this kernel's call.
    unsafe { write_result(operands, rows, tile, total) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe extern "C" fn multiply_add_int8(operands: *const *mut u8, rows: i64, tile: i64) {
    use std::arch::x86_64::{
        _mm512_dpbusd_epi32, _mm512_reduce_add_epi32, _mm512_set1_epi8, _mm512_set1_epi32,
    };
    let factor = _mm512_set1_epi8(1);
    let mut sums = [_mm512_set1_epi32(tile as i32); ACCUMULATORS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, factor, factor);
        }
    }
    let total: i32 = sums.iter().fold(0, |total, &sum| total.wrapping_add(_mm512_reduce_add_epi32(sum)));
    // SAFETY: the operands are those of this kernel's call.
    unsafe { write_result(operands, rows, tile, total as f32) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe extern "C" fn multiply_add_avx512(operands: *const *mut u8, rows: i64, tile: i64) {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_reduce_add_ps, _mm512_set1_ps};
    let (factor, term) = (_mm512_set1_ps(0.5), _mm512_set1_ps(1.0));
    let mut sums = [_mm512_set1_ps(tile as f32); ACCUMULATORS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, factor, term);
        }
    }
    let total = sums.iter().map(|&sum| _mm512_reduce_add_ps(sum)).sum();
    // SAFETY: the operands are those of this kernel's call.
    unsafe { write_result(operands, rows, tile, total) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx,fma")]
unsafe extern "C" fn multiply_add_fma(operands: *const *mut u8, rows: i64, tile: i64) {
    use std::arch::x86_64::{_mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_set1_ps};
    let (factor, term) = (_mm256_set1_ps(0.5), _mm256_set1_ps(1.0));
    let mut sums = [_mm256_set1_ps(tile as f32); ACCUMULATORS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, factor, term);
        }
    }
    let total = sums.iter().map(|&sum| _mm256_cvtss_f32(sum)).sum();
    // SAFETY: the operands are those of this kernel's call.
    unsafe { write_result(operands, rows, tile, total) };
}

unsafe extern "C" fn multiply_add_plain(operands: *const *mut u8, rows: i64, tile: i64) {
    let mut sums = [tile as f32; ACCUMULATORS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = *sum * 0.5 + 1.0;
        }
    }
    // SAFETY: the operands are those of this kernel's call.
    unsafe { write_result(operands, rows, tile, sums.iter().sum()) };
}

/// Stores what was computed, so that it had to be.
///
/// # Safety
///
/// The operands are those that the peak's step list gives every kernel.
unsafe fn write_result(operands: *const *mut u8, rows: i64, tile: i64, value: f32) {
    // SAFETY: the second operand holds 64 bytes for each of `rows` tiles and for each tile of a
    // multiplication.
    unsafe { (*operands.add(1)).add(64 * (rows + tile) as usize).cast::<f32>().write(value) };
}

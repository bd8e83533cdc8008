//! Operands of the matrix unit in registers: loaded from shared memory, integers widened.
//!
//! A product of the matrix unit sums over 16 inputs, of which thread `t` of four holds numbers `2t`, `2t + 1`,
//! `2t + 8` and `2t + 9` of both operands. Which inputs bear these numbers is free as long as both operands
//! agree, so that a thread takes inputs `8t` to `8t + 7` of a chunk of 32: one load of 16 bytes of
//! activations, and 16, 8 or 4 bytes of weights, serve two products without `ldmatrix`.

use qwen2c_request::Element;

use crate::builder::{Buffer, KernelBuilder, Scalar, Val};
use crate::cuda::layout::WarpGeometry;

/// Dwords, pairs of 16-bit floats, that a thread holds of a row's chunk.
pub(super) const PAIRS: usize = 4;

/// The thread's eight inputs of a row's chunk, which starts at `row`; `quarter` is the thread's number of
/// four.
pub(super) fn load_inputs<'k>(row: Buffer<'k>, quarter: Val<'k>) -> [Val<'k>; PAIRS] {
    let loaded =
        row.load_aligned_as(Scalar::I32, quarter * quarter.builder().int(PAIRS as u64), PAIRS as u32);
    std::array::from_fn(|pair| loaded.lane(pair as u32))
}

/// The thread's eight weights of a row's chunk as 16-bit floats, without their scale.
pub(super) fn load_weights<'k>(
    k: &'k KernelBuilder<'k>,
    (geometry, element): (&WarpGeometry, Element),
    row: Buffer<'k>,
    quarter: Val<'k>,
) -> [Val<'k>; PAIRS] {
    let Some(quantization) = geometry.quantization else {
        return load_inputs(row, quarter);
    };
    let bias = quantization.bias() as f32;
    if quantization.bits == 8 {
        let dwords = row.load_aligned_as(Scalar::I32, quarter * k.int(2), 2);
        std::array::from_fn(|pair| {
            widen_bytes((element, bias), dwords.lane(pair as u32 / 2), pair as u32 % 2)
        })
    } else {
        let dword = row.load_aligned_as(Scalar::I32, quarter, 1);
        std::array::from_fn(|pair| widen_nibbles((element, bias), dword, pair as u32))
    }
}

/// A dword of two ones.
pub(super) fn ones<'k>(k: &'k KernelBuilder<'k>, element: Element) -> Val<'k> {
    k.int_of(Scalar::I32, if element == Element::F16 { 0x3c00_3c00 } else { 0x3f80_3f80 })
}

/// Bits of 128 in both halves of a dword of bf16, and of 1024 in f16: their last bit counts one.
const fn ones_place(element: Element) -> (i64, f32) {
    match element {
        Element::F16 => (0x6400_6400, 1024.0),
        _ => (0x4300_4300, 128.0),
    }
}

/// Pair `pair` of a dword of eight integers of four bits, less their bias: bits become the last of a float's,
/// which is exact.
fn widen_nibbles<'k>((element, bias): (Element, f32), dword: Val<'k>, pair: u32) -> Val<'k> {
    let k = dword.builder();
    let (bits, value) = ones_place(element);
    let shifted = if pair == 0 { dword } else { dword.shift_right(i64::from(pair) * 4) };
    let floats = shifted.and_bits(0x000f_000f).or(k.int_of(Scalar::I32, bits));
    floats.add_to_pairs(element, -(value + bias))
}

/// Pair `pair` of a dword of four integers of eight bits, less their bias. In bf16 an integer goes through an
/// f32 whose upper half holds all of it.
fn widen_bytes<'k>((element, bias): (Element, f32), dword: Val<'k>, pair: u32) -> Val<'k> {
    let k = dword.builder();
    if element == Element::F16 {
        let (bits, value) = ones_place(element);
        // Bytes: an integer, the upper one of 1024, the next integer, the upper one of 1024.
        let order = if pair == 0 { 0x5150 } else { 0x5352 };
        let floats = dword.permute_bytes(k.int_of(Scalar::I32, bits), order);
        return floats.add_to_pairs(element, -(value + bias));
    }
    const TWO_TO_23: f32 = 8_388_608.0;
    let exponent = k.int_of(Scalar::I32, i64::from(TWO_TO_23.to_bits()));
    let widened = |byte: u32| {
        // Bytes: integer, and the upper three of 2²³.
        let float = dword.permute_bytes(exponent, 0x7650 | i64::from(byte)).bitcast(Scalar::F32);
        (float - k.float(TWO_TO_23 + bias, 1)).bitcast(Scalar::I32)
    };
    let (low, high) = (widened(pair * 2), widened(pair * 2 + 1));
    low.permute_bytes(high, 0x7632)
}

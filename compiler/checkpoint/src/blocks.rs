//! Blocks of GGUF's quantized types, taken apart into integers, scales and minima.
//!
//! Types of 32 elements hold one scale `d` (and a minimum `m`) as f16. The K types hold 256 elements in
//! sub-blocks with small integer scales, multiplied by f16 factors of the whole block. Below, `q` are the
//! stored integers.
//!
//! A product of an f16 with an 8-bit integer is exact in f32, and so is its product with a 5-bit integer.
//! So the parts stand for exactly the weights that ggml's `dequantize_row_*` makes of a block, in which
//! order and how finely rounded ever they are multiplied and added.

use qwen2c_request::{QuantizedRows, f16_to_f32};

/// The f16 at `offset`.
fn half(block: &[u8], offset: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([block[offset], block[offset + 1]]))
}

/// Low halves of bytes as the first elements, high halves as the last, each with an offset.
fn split_nibbles(bytes: &[u8], offset: i8, integers: &mut [i8]) {
    let (low, high) = integers.split_at_mut(bytes.len());
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        *low = (byte & 15).cast_signed() + offset;
        *high = (byte >> 4).cast_signed() + offset;
    }
}

/// Adds the bits of `high`, one for each element, as fifth bits.
fn add_fifth_bits(high: &[u8], integers: &mut [i8]) {
    let high = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
    for (index, integer) in integers.iter_mut().enumerate() {
        *integer += i8::from(high >> index & 1 == 1) << 4;
    }
}

/// `d · (q − 8)`: 16 bytes whose low nibbles are elements 0–15 and high nibbles 16–31.
pub(crate) fn split_q4_0(block: &[u8; 18], out: QuantizedRows<'_>) {
    out.scales[0] = half(block, 0);
    split_nibbles(&block[2..], -8, out.integers);
}

/// `d · q + m`, nibbles as in Q4_0.
pub(crate) fn split_q4_1(block: &[u8; 20], out: QuantizedRows<'_>) {
    (out.scales[0], out.minima[0]) = (half(block, 0), half(block, 2));
    split_nibbles(&block[4..], 0, out.integers);
}

/// `d · (q − 16)`: four bytes of fifth bits, then nibbles as in Q4_0.
pub(crate) fn split_q5_0(block: &[u8; 22], out: QuantizedRows<'_>) {
    out.scales[0] = half(block, 0);
    split_nibbles(&block[6..], -16, out.integers);
    add_fifth_bits(&block[2..6], out.integers);
}

/// `d · q + m`, integers as in Q5_0.
pub(crate) fn split_q5_1(block: &[u8; 24], out: QuantizedRows<'_>) {
    (out.scales[0], out.minima[0]) = (half(block, 0), half(block, 2));
    split_nibbles(&block[8..], 0, out.integers);
    add_fifth_bits(&block[4..8], out.integers);
}

/// `d · q`.
pub(crate) fn split_q8_0(block: &[u8; 34], out: QuantizedRows<'_>) {
    out.scales[0] = half(block, 0);
    for (integer, byte) in out.integers.iter_mut().zip(&block[2..]) {
        *integer = byte.cast_signed();
    }
}

/// The 6-bit scale and minimum of sub-block `index` of 8, from 12 bytes.
fn scale_and_minimum(packed: &[u8], index: usize) -> (f32, f32) {
    let (scale, minimum) = if index < 4 {
        (packed[index] & 63, packed[index + 4] & 63)
    } else {
        let low = packed[index + 4];
        ((low & 15) | ((packed[index - 4] >> 6) << 4), (low >> 4) | ((packed[index] >> 6) << 4))
    };
    (f32::from(scale), f32::from(minimum))
}

/// `d · scale · q − d_minimum · minimum`: 8 sub-blocks of 32; each pair shares 32 bytes, low nibbles
/// first.
pub(crate) fn split_q4_k(block: &[u8; 144], out: QuantizedRows<'_>) {
    split_k_nibbles(half(block, 0), half(block, 2), &block[4..16], &block[16..], out);
}

/// As Q4_K, and bit `s` of the high byte `i % 32` on top of element `i` of sub-block `s`.
pub(crate) fn split_q5_k(block: &[u8; 176], mut out: QuantizedRows<'_>) {
    split_k_nibbles(half(block, 0), half(block, 2), &block[4..16], &block[48..], out.reborrow());
    for (index, integers) in out.integers.chunks_mut(32).enumerate() {
        for (integer, high) in integers.iter_mut().zip(&block[16..48]) {
            *integer += (high >> index & 1).cast_signed() << 4;
        }
    }
}

/// Sub-blocks of Q4_K and Q5_K.
fn split_k_nibbles(d: f32, d_minimum: f32, packed: &[u8], nibbles: &[u8], out: QuantizedRows<'_>) {
    for (index, (scale, minimum)) in out.scales.iter_mut().zip(out.minima).enumerate() {
        let factors = scale_and_minimum(packed, index);
        (*scale, *minimum) = (d * factors.0, -(d_minimum * factors.1));
    }
    for (bytes, integers) in nibbles.chunks(32).zip(out.integers.chunks_mut(64)) {
        split_nibbles(bytes, 0, integers);
    }
}

/// `d · scale · (q − 32)`: two halves of 128; in each, lane `l` of 32 gives the elements `l`, `l + 32`,
/// `l + 64`, `l + 96` from two bytes of low nibbles and one byte of upper bit pairs. Scales are signed
/// bytes, one for 16 elements.
pub(crate) fn split_q6_k(block: &[u8; 210], out: QuantizedRows<'_>) {
    let d = half(block, 208);
    for (scale, byte) in out.scales.iter_mut().zip(&block[192..208]) {
        *scale = d * f32::from(byte.cast_signed());
    }
    for (part, integers) in out.integers.chunks_mut(128).enumerate() {
        split_nibbles(&block[part * 64..][..64], -32, integers);
        let high = &block[128 + part * 32..][..32];
        for (quarter, integers) in integers.chunks_mut(32).enumerate() {
            for (integer, high) in integers.iter_mut().zip(high) {
                *integer += (high >> (2 * quarter) & 3).cast_signed() << 4;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::encoding::Encoding;

    /// Blocks decoded by the Python package `gguf`, from `tests/golden_blocks.py`.
    #[derive(serde::Deserialize)]
    struct Golden {
        #[serde(rename = "type")]
        name: String,
        bytes: String,
        /// The values' bits, little endian.
        bits: String,
    }

    fn from_hex(text: &str) -> Vec<u8> {
        text.as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    #[test]
    fn every_type_decodes_as_the_reference_bit_for_bit() {
        let golden: Vec<Golden> = serde_json::from_str(include_str!("../tests/golden_blocks.json")).unwrap();
        let quantized = [
            Encoding::Q4_0,
            Encoding::Q4_1,
            Encoding::Q5_0,
            Encoding::Q5_1,
            Encoding::Q8_0,
            Encoding::Q4K,
            Encoding::Q5K,
            Encoding::Q6K,
        ];
        for encoding in quantized {
            let mut seen = 0;
            for block in golden.iter().filter(|block| block.name == encoding.name()) {
                let bytes = from_hex(&block.bytes);
                assert_eq!(bytes.len() as u64, encoding.block_bytes());
                let mut values = vec![0.0; encoding.block_elements() as usize];
                encoding.decode(&bytes, &mut values);
                let bits: Vec<u8> = values.iter().flat_map(|value: &f32| value.to_le_bytes()).collect();
                assert_eq!(bits, from_hex(&block.bits), "{}: {values:?}", block.name);
                seen += 1;
            }
            assert_eq!(seen, 3, "{}", encoding.name());
        }
    }

    #[test]
    fn halves_widen_exactly() {
        let mut values = [0.0; 3];
        Encoding::F16.decode(&[0x00, 0x3c, 0x01, 0x00, 0x00, 0xc5], &mut values);
        assert_eq!(values, [1.0, 2.0_f32.powi(-24), -5.0]);
        Encoding::Bf16.decode(&[0x80, 0x3f, 0x01, 0x00, 0xa0, 0xc0], &mut values);
        assert_eq!(values, [1.0, f32::from_bits(0x1_0000), -5.0]);
    }
}

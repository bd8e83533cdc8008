//! Blocks of GGUF's quantized types, widened as ggml's `dequantize_row_*` does, operation by operation.
//!
//! Types of 32 elements hold one scale `d` (and a minimum `m`) as f16. The K types hold 256 elements in
//! sub-blocks with small integer scales, multiplied by f16 factors of the whole block. Below, `q` are the
//! stored integers.

use qwen2c_request::f16_to_f32;

/// The f16 at `offset`.
fn half(block: &[u8], offset: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([block[offset], block[offset + 1]]))
}

/// `d · (q − 8)`: 16 bytes whose low nibbles are elements 0–15 and high nibbles 16–31.
pub(crate) fn decode_q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half(block, 0);
    for (index, &byte) in block[2..].iter().enumerate() {
        out[index] = f32::from(i16::from(byte & 15) - 8) * d;
        out[index + 16] = f32::from(i16::from(byte >> 4) - 8) * d;
    }
}

/// `d · q + m`, nibbles as in Q4_0.
pub(crate) fn decode_q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    for (index, &byte) in block[4..].iter().enumerate() {
        out[index] = f32::from(byte & 15) * d + m;
        out[index + 16] = f32::from(byte >> 4) * d + m;
    }
}

/// The 5-bit integers of a block: nibbles as in Q4_0, and bit `i` of `high` on top of element `i`.
fn five_bits(high: &[u8], nibbles: &[u8]) -> [u8; 32] {
    let high = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
    let mut values = [0; 32];
    for (index, &byte) in nibbles.iter().enumerate() {
        values[index] = (byte & 15) | (((high >> index) & 1) << 4) as u8;
        values[index + 16] = (byte >> 4) | (((high >> (index + 16)) & 1) << 4) as u8;
    }
    values
}

/// `d · (q − 16)`: four bytes of fifth bits, then nibbles.
pub(crate) fn decode_q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half(block, 0);
    for (value, q) in out.iter_mut().zip(five_bits(&block[2..6], &block[6..])) {
        *value = f32::from(i16::from(q) - 16) * d;
    }
}

/// `d · q + m`, integers as in Q5_0.
pub(crate) fn decode_q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    for (value, q) in out.iter_mut().zip(five_bits(&block[4..8], &block[8..])) {
        *value = f32::from(q) * d + m;
    }
}

/// `d · q`.
pub(crate) fn decode_q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half(block, 0);
    for (value, &byte) in out.iter_mut().zip(&block[2..]) {
        *value = f32::from(byte as i8) * d;
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
pub(crate) fn decode_q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    decode_k_nibbles(half(block, 0), half(block, 2), &block[4..16], &block[16..], out, |_, _| 0);
}

/// As Q4_K, and bit `s` of the high byte `i % 32` on top of element `i` of sub-block `s`.
pub(crate) fn decode_q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let high = &block[16..48];
    decode_k_nibbles(half(block, 0), half(block, 2), &block[4..16], &block[48..], out, |index, lane| {
        ((high[lane] >> index) & 1) << 4
    });
}

/// Sub-blocks of Q4_K and Q5_K; `fifth_bit(sub-block, lane)` is added to the nibble.
fn decode_k_nibbles(
    d: f32,
    d_minimum: f32,
    packed: &[u8],
    nibbles: &[u8],
    out: &mut [f32; 256],
    fifth_bit: impl Fn(usize, usize) -> u8,
) {
    for index in 0..8 {
        let (scale, minimum) = scale_and_minimum(packed, index);
        let (scale, minimum) = (d * scale, d_minimum * minimum);
        let bytes = &nibbles[(index / 2) * 32..][..32];
        for (lane, &byte) in bytes.iter().enumerate() {
            let nibble = if index % 2 == 0 { byte & 15 } else { byte >> 4 };
            out[index * 32 + lane] = scale * f32::from(nibble + fifth_bit(index, lane)) - minimum;
        }
    }
}

/// `d · scale · (q − 32)`: two halves of 128; in each, lane `l` of 32 gives the elements `l`, `l + 32`,
/// `l + 64`, `l + 96` from two bytes of low nibbles and one byte of upper bit pairs. Scales are signed
/// bytes, one for 16 elements.
pub(crate) fn decode_q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half(block, 208);
    for part in 0..2 {
        let low = &block[part * 64..][..64];
        let high = &block[128 + part * 32..][..32];
        let scales = &block[192 + part * 8..][..8];
        for lane in 0..32 {
            for quarter in 0..4 {
                let byte = low[lane + (quarter % 2) * 32];
                let nibble = if quarter < 2 { byte & 15 } else { byte >> 4 };
                let q = nibble | (((high[lane] >> (2 * quarter)) & 3) << 4);
                let scale = f32::from(scales[lane / 16 + 2 * quarter] as i8);
                out[part * 128 + quarter * 32 + lane] = d * scale * f32::from(i16::from(q) - 32);
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

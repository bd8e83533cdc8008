//! How a tensor's elements are stored, and widening them to `f32`.

use qwen2c_request::{bf16_to_f32, f16_to_f32};

use crate::blocks;

/// Storage format of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl Encoding {
    /// Elements of the smallest unit that can be decoded.
    pub(crate) const fn block_elements(self) -> u64 {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Whether elements are integers with scales.
    pub(crate) const fn is_quantized(self) -> bool {
        self.block_elements() > 1
    }

    /// Bytes of that unit.
    pub(crate) const fn block_bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Name in messages: as the format writes it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Bytes of `elements`, a multiple of the block; `None` on overflow.
    pub(crate) const fn bytes_of(self, elements: u64) -> Option<u64> {
        (elements / self.block_elements()).checked_mul(self.block_bytes())
    }

    /// Widens whole blocks: `bytes` holds `out.len() / block_elements()` of them.
    pub(crate) fn decode(self, bytes: &[u8], out: &mut [f32]) {
        debug_assert_eq!(self.bytes_of(out.len() as u64), Some(bytes.len() as u64));
        match self {
            Self::F32 => {
                for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            Self::F16 => decode_halves(bytes, out, f16_to_f32),
            Self::Bf16 => decode_halves(bytes, out, bf16_to_f32),
            Self::Q4_0 => decode_blocks(bytes, out, blocks::decode_q4_0),
            Self::Q4_1 => decode_blocks(bytes, out, blocks::decode_q4_1),
            Self::Q5_0 => decode_blocks(bytes, out, blocks::decode_q5_0),
            Self::Q5_1 => decode_blocks(bytes, out, blocks::decode_q5_1),
            Self::Q8_0 => decode_blocks(bytes, out, blocks::decode_q8_0),
            Self::Q4K => decode_blocks(bytes, out, blocks::decode_q4_k),
            Self::Q5K => decode_blocks(bytes, out, blocks::decode_q5_k),
            Self::Q6K => decode_blocks(bytes, out, blocks::decode_q6_k),
        }
    }
}

fn decode_halves(bytes: &[u8], out: &mut [f32], widen: fn(u16) -> f32) {
    for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = widen(u16::from_le_bytes(*bytes));
    }
}

fn decode_blocks<const BYTES: usize, const ELEMENTS: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    let blocks = bytes.as_chunks::<BYTES>().0;
    for (block, values) in blocks.iter().zip(out.as_chunks_mut::<ELEMENTS>().0) {
        decode(block, values);
    }
}

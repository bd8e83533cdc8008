//! How a tensor's elements are stored, widening them to `f32`, and taking blocks apart.

use qwen2c_request::{Element, Quantization, QuantizedBlock, QuantizedRows, bf16_to_f32, f16_to_f32};

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

    /// Integers and scales that a block consists of; `None` where elements stand for themselves. The
    /// products of scales that the K types need are exact in f32 and not in f16.
    pub(crate) const fn quantization(self) -> Option<Quantization> {
        let (bits, group, scale, has_minimum) = match self {
            Self::F32 | Self::F16 | Self::Bf16 => return None,
            Self::Q4_0 => (4, 32, Element::F16, false),
            Self::Q4_1 => (4, 32, Element::F16, true),
            Self::Q5_0 | Self::Q8_0 => (8, 32, Element::F16, false),
            Self::Q5_1 => (8, 32, Element::F16, true),
            Self::Q4K => (4, 32, Element::F32, true),
            Self::Q5K => (8, 32, Element::F32, true),
            Self::Q6K => (8, 16, Element::F32, false),
        };
        Some(Quantization { bits, group, scale, has_minimum })
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
            _ => self.widen_blocks(bytes, out),
        }
    }

    /// Widens blocks of quantized types, one after the other.
    fn widen_blocks(self, bytes: &[u8], out: &mut [f32]) {
        let Some(quantization) = self.quantization() else { return };
        let elements = self.block_elements() as usize;
        let mut block = QuantizedBlock::new(quantization, 1, elements);
        let blocks = bytes.chunks_exact(self.block_bytes() as usize).zip(out.chunks_exact_mut(elements));
        for (bytes, out) in blocks {
            let mut rows = block.rows(0..1);
            self.split(bytes, &mut rows);
            quantization.widen(elements, &rows, out);
        }
    }

    /// Takes whole blocks of a quantized type apart: `bytes` holds as many as `out`.
    pub(crate) fn split(self, bytes: &[u8], out: &mut QuantizedRows<'_>) {
        debug_assert_eq!(self.bytes_of(out.integers.len() as u64), Some(bytes.len() as u64));
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => {}
            Self::Q4_0 => self.split_blocks(bytes, out, blocks::split_q4_0),
            Self::Q4_1 => self.split_blocks(bytes, out, blocks::split_q4_1),
            Self::Q5_0 => self.split_blocks(bytes, out, blocks::split_q5_0),
            Self::Q5_1 => self.split_blocks(bytes, out, blocks::split_q5_1),
            Self::Q8_0 => self.split_blocks(bytes, out, blocks::split_q8_0),
            Self::Q4K => self.split_blocks(bytes, out, blocks::split_q4_k),
            Self::Q5K => self.split_blocks(bytes, out, blocks::split_q5_k),
            Self::Q6K => self.split_blocks(bytes, out, blocks::split_q6_k),
        }
    }

    fn split_blocks<const BYTES: usize>(
        self,
        bytes: &[u8],
        out: &mut QuantizedRows<'_>,
        split: fn(&[u8; BYTES], QuantizedRows<'_>),
    ) {
        let Some(quantization) = self.quantization() else { return };
        let elements = self.block_elements() as usize;
        let groups = elements / quantization.group as usize;
        let of_blocks = out.integers.chunks_exact_mut(elements).zip(out.scales.chunks_exact_mut(groups));
        let mut minima = out.minima.chunks_exact_mut(groups);
        for (block, (integers, scales)) in bytes.as_chunks::<BYTES>().0.iter().zip(of_blocks) {
            split(block, QuantizedRows { integers, scales, minima: minima.next().unwrap_or_default() });
        }
    }
}

fn decode_halves(bytes: &[u8], out: &mut [f32], widen: fn(u16) -> f32) {
    for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = widen(u16::from_le_bytes(*bytes));
    }
}

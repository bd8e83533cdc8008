//! Where an entry of the caches lies: one function of (slot, kv head, position), used by every kernel
//! that reads or writes them.
//!
//! Keys lie as `[slot, kv_head, block, 256 / 32, head_dim, 32]`: lanes run over positions, so that scores
//! need no reduction across lanes, and the 32 positions that are summed side by side are read from front to
//! back. Values lie as `[slot, kv_head, block, 256, padded head_dim]`: lanes run over
//! the head, so that the weighted sum needs none either.
//!
//! An instruction that adds two products of bf16 to a lane wants the two side by side. Where there is one,
//! keys of bf16 lie as `[slot, kv_head, block, 256 / 32, head_dim / 2, 32, 2]`, pairs of elements, and values
//! as `[slot, kv_head, block, 256 / 2, padded head_dim, 2]`, pairs of positions.

use qwen2c_request::{CACHE_BLOCK_POSITIONS, CacheType, Element};

use super::Kernel;
use crate::builder::{Buffer, Val};
use crate::cpu::instructions::Instructions;
use crate::cpu::layout;

/// Positions of a key group: the 16-bit elements of a cache line.
const KEY_GROUP_POSITIONS: u64 = 32;

/// The instruction that multiplies keys and values as pairs, where they lie as pairs.
pub(super) fn pair_product(kernel: &Kernel<'_, '_>) -> Option<&'static str> {
    kernel.instructions.bf16_dot.filter(|_| lies_in_pairs(kernel.instructions, kernel.cache_type(0)))
}

/// Whether keys and values lie as pairs.
pub(super) fn lies_in_pairs(instructions: Instructions, cache: &CacheType) -> bool {
    instructions.bf16_dot.is_some() && cache.element == Element::Bf16 && cache.head_dim.is_multiple_of(2)
}

/// Elements of a key, or positions of values, that lie side by side.
pub(super) fn side_by_side(kernel: &Kernel<'_, '_>) -> u64 {
    if lies_in_pairs(kernel.instructions, kernel.cache_type(0)) { 2 } else { 1 }
}

/// The keys of one group of positions at `place` in a block and following, as far as the group goes;
/// the elements from `column` on of them, a multiple of [`side_by_side`], are [`key_stride`] times `column`
/// further.
pub(super) fn keys_at<'k>(kernel: &Kernel<'k, '_>, block: Buffer<'k>, place: Val<'k>) -> Buffer<'k> {
    let (k, group) = (kernel.k, kernel.k.int(KEY_GROUP_POSITIONS));
    let head_dim = k.int(kernel.request.caches[0].head_dim);
    block.at(place / group * head_dim * group + place % group * k.int(side_by_side(kernel)))
}

/// Distance of a key's elements: of pairs half of their distance.
pub(super) fn key_stride<'k>(kernel: &Kernel<'k, '_>) -> Val<'k> {
    kernel.k.int(KEY_GROUP_POSITIONS)
}

/// The values at `place` in a block, element by element with those of the other position of a pair between
/// them.
pub(super) fn values_at<'k>(kernel: &Kernel<'k, '_>, block: Buffer<'k>, place: Val<'k>) -> Buffer<'k> {
    let (k, beside) = (kernel.k, kernel.k.int(side_by_side(kernel)));
    let padded = layout::padded_head_dim(kernel.lanes, kernel.cache_type(0).head_dim);
    block.at(place / beside * k.int(padded) * beside + place % beside)
}

/// The cache of one kv head of one slot.
pub(super) struct HeadCache<'k> {
    blocks: Buffer<'k>,
    block_elements: u64,
}

impl<'k> HeadCache<'k> {
    /// The part of cache operand `index` that belongs to `(slot, kv_head)`.
    pub(super) fn new(kernel: &Kernel<'k, '_>, index: usize, slot: Val<'k>, kv_head: Val<'k>) -> Self {
        let k = kernel.k;
        let ty: &CacheType = kernel.cache_type(index);
        let block_elements = layout::cache_block_elements(kernel.lanes, ty);
        let head = slot * k.int(ty.kv_heads) + kv_head;
        let blocks = kernel.cache(index).at(head * k.int(ty.blocks() * block_elements));
        Self { blocks, block_elements }
    }

    /// Block number `block`.
    pub(super) fn block(&self, kernel: &Kernel<'k, '_>, block: Val<'k>) -> Buffer<'k> {
        self.blocks.at(block * kernel.k.int(self.block_elements))
    }

    /// The block of `position` and the place in it.
    fn find(&self, kernel: &Kernel<'k, '_>, position: Val<'k>) -> (Buffer<'k>, Val<'k>) {
        let size = kernel.k.int(CACHE_BLOCK_POSITIONS);
        (self.block(kernel, position / size), position % size)
    }

    /// Stores element `column` of the key at `position`.
    pub(super) fn store_key(
        &self,
        kernel: &Kernel<'k, '_>,
        position: Val<'k>,
        column: Val<'k>,
        value: Val<'k>,
    ) {
        let (block, place) = self.find(kernel, position);
        let beside = kernel.k.int(side_by_side(kernel));
        let first = column / beside * beside;
        keys_at(kernel, block, place).store(first * key_stride(kernel) + column % beside, value);
    }

    /// Stores `value(column, lanes)`, some elements of the value at `position` from `column` on, for all of
    /// its elements.
    pub(super) fn store_values(
        &self,
        kernel: &Kernel<'k, '_>,
        position: Val<'k>,
        value: impl Fn(Val<'k>, u32) -> Val<'k>,
    ) {
        let (k, head_dim) = (kernel.k, kernel.k.int(kernel.cache_type(0).head_dim));
        let (block, place) = self.find(kernel, position);
        let row = values_at(kernel, block, place);
        match side_by_side(kernel) {
            1 => k.for_each_chunk(head_dim, kernel.lanes, |column, lanes| {
                row.store(column, value(column, lanes));
            }),
            beside => k.repeat(k.int(0), head_dim, 1, |column| {
                row.store(column * k.int(beside), value(column, 1));
            }),
        }
    }
}

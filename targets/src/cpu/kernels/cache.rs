//! Where an entry of the caches lies: one function of (slot, kv head, position), used by every kernel
//! that reads or writes them.
//!
//! Keys lie as `[slot, kv_head, block, 256 / 32, head_dim, 32]`: lanes run over positions, so that scores
//! need no reduction across lanes, and the 32 positions that are summed side by side are read from front to
//! back. Values lie as `[slot, kv_head, block, 256, padded head_dim]`: lanes run over
//! the head, so that the weighted sum needs none either.

use qwen2c_request::{CACHE_BLOCK_POSITIONS, CacheType};

use super::Kernel;
use crate::builder::{Buffer, Val};
use crate::cpu::layout;

/// Positions of a key group: the 16-bit elements of a cache line.
const KEY_GROUP_POSITIONS: u64 = 32;

/// The keys of one group of positions at `place` in a block and following, as far as the group goes;
/// element `column` of them is [`KEY_GROUP_POSITIONS`] times `column` further.
pub(super) fn keys_at<'k>(kernel: &Kernel<'k, '_>, block: Buffer<'k>, place: Val<'k>) -> Buffer<'k> {
    let (k, group) = (kernel.k, kernel.k.int(KEY_GROUP_POSITIONS));
    let head_dim = k.int(kernel.request.caches[0].head_dim);
    block.at(place / group * head_dim * group + place % group)
}

/// Distance of a key's elements.
pub(super) fn key_stride<'k>(kernel: &Kernel<'k, '_>) -> Val<'k> {
    kernel.k.int(KEY_GROUP_POSITIONS)
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
        keys_at(kernel, block, place).store(column * key_stride(kernel), value);
    }

    /// Stores elements of the value at `position` from `column` on.
    pub(super) fn store_value(
        &self,
        kernel: &Kernel<'k, '_>,
        position: Val<'k>,
        column: Val<'k>,
        value: Val<'k>,
    ) {
        let padded = layout::padded_head_dim(kernel.lanes, kernel.request.caches[0].head_dim);
        let (block, place) = self.find(kernel, position);
        block.store(place * kernel.k.int(padded) + column, value);
    }
}

//! Where an entry of the caches lies: `[slot, kv_head, position, padded head_dim]`, one function used by every
//! kernel that reads or writes them.

use super::Kernel;
use crate::builder::{Buffer, Val};
use crate::cuda::layout;

/// The entry of position 0 of `(slot, kv_head)` in cache operand `index`.
pub(super) fn head_cache<'k>(
    kernel: &Kernel<'k, '_>,
    index: usize,
    slot: Val<'k>,
    kv_head: Val<'k>,
) -> Buffer<'k> {
    let k = kernel.k;
    let ty = kernel.cache_type(index);
    let positions = ty.blocks() * qwen2c_request::CACHE_BLOCK_POSITIONS;
    let head = slot * k.int(ty.kv_heads) + kv_head;
    kernel.cache(index).at(head * k.int(positions * layout::padded_head_dim(ty)))
}

/// The entry at `position` of `(slot, kv_head)` in cache operand `index`.
pub(super) fn entry<'k>(
    kernel: &Kernel<'k, '_>,
    index: usize,
    (slot, kv_head): (Val<'k>, Val<'k>),
    position: Val<'k>,
) -> Buffer<'k> {
    let padded = kernel.k.int(layout::padded_head_dim(kernel.cache_type(index)));
    head_cache(kernel, index, slot, kv_head).at(position * padded)
}

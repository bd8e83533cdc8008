//! Keys and values of earlier positions.

use qwen2c_request::CacheType;

/// One cache, `[slot, kv_head, position, head_dim]`; grows with the positions that are written.
pub(super) struct CacheStore {
    ty: CacheType,
    /// For each slot and head, `[position, head_dim]` up to the last position written.
    heads: Vec<Vec<f32>>,
}

impl CacheStore {
    pub(super) fn new(ty: &CacheType) -> Self {
        let heads = vec![Vec::new(); (ty.slots * ty.kv_heads) as usize];
        Self { ty: ty.clone(), heads }
    }

    pub(super) fn ty(&self) -> &CacheType {
        &self.ty
    }

    /// Stores all heads of a row, `[kv_heads, head_dim]`, rounded to the cache's type.
    pub(super) fn write(&mut self, slot: usize, position: usize, row: &[f32]) {
        let (kv_heads, head_dim) = (self.ty.kv_heads as usize, self.ty.head_dim as usize);
        for (head, elements) in row.chunks_exact(head_dim).enumerate() {
            let store = &mut self.heads[slot * kv_heads + head];
            let start = position * head_dim;
            if store.len() < start + head_dim {
                store.resize(start + head_dim, 0.0);
            }
            for (place, element) in store[start..].iter_mut().zip(elements) {
                *place = self.ty.element.round(*element);
            }
        }
    }

    /// `[position, head_dim]` of one head, positions 0 to `last`; zeros where nothing was written.
    pub(super) fn read(&mut self, slot: usize, kv_head: usize, last: usize) -> &[f32] {
        let (kv_heads, head_dim) = (self.ty.kv_heads as usize, self.ty.head_dim as usize);
        let store = &mut self.heads[slot * kv_heads + kv_head];
        let end = (last + 1) * head_dim;
        if store.len() < end {
            store.resize(end, 0.0);
        }
        &store[..end]
    }
}

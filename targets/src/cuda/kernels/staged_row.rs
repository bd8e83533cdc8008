//! The inputs of a product of one row, brought to shared memory once for all warps of a block.
//!
//! ```text
//! each thread: some 16 bytes of x → shared memory, in units      in the background
//! wait for them, then for all threads of the block
//! ```
//!
//! Every warp needs all inputs. They come from a cache, but each request takes the way that weights take too.
//! The block's first weights are asked for in between, so that the wait costs the memory nothing.

use qwen2c_request::{Element, TensorType};

use super::Kernel;
use super::unit_product::{InputRow, unit_parts, units_of_part};
use crate::builder::{Buffer, Compare, Scalar};
use crate::cuda::layout::{UNIT_BYTES, WarpGeometry};

/// Shared memory that a row may take on every architecture.
const MOST_BYTES: u64 = 64 << 10;

/// Shared memory that a row takes.
pub(super) fn shared_bytes(geometry: WarpGeometry) -> u64 {
    unit_parts(geometry) * units_of_part(geometry) * UNIT_BYTES
}

/// Whether rows of `x` can be copied 16 bytes at a time, and a block can hold one.
pub(super) fn fits(x: &TensorType, geometry: WarpGeometry) -> bool {
    x.element == geometry.element
        && (geometry.columns * x.element.bytes()).is_multiple_of(UNIT_BYTES)
        && shared_bytes(geometry) <= MOST_BYTES
}

/// A row on its way.
pub(super) struct ComingRow {
    element: Element,
    at_bytes: u64,
}

/// Begins to copy row `x` into shared memory, from byte `at_bytes` on. All threads of the block take part.
pub(super) fn copy<'k>(
    kernel: &Kernel<'k, '_>,
    geometry: WarpGeometry,
    x: Buffer<'k>,
    at_bytes: u64,
) -> ComingRow {
    let k = kernel.k;
    let parts = unit_parts(geometry);
    let present = geometry.columns * x.element.bytes() / UNIT_BYTES;
    let all = geometry.units() * parts;
    kernel.for_each(k.int(all), |place| {
        let (unit, part) = (place / k.int(parts), place % k.int(parts));
        let to = (part * k.int(units_of_part(geometry)) + unit) * k.int(UNIT_BYTES);
        // Padding becomes zero.
        let bytes = (all > present).then(|| {
            let exists = place.compare(Compare::Less, k.int(present));
            exists.select(k.int_of(Scalar::I32, UNIT_BYTES as i64), k.int_of(Scalar::I32, 0))
        });
        let to = k.shared_address(to + k.int(at_bytes));
        k.copy_16_bytes_in_background(to, x.at_bytes(place * k.int(UNIT_BYTES)), bytes);
    });
    k.close_copy_group();
    ComingRow { element: x.element, at_bytes }
}

impl ComingRow {
    /// The row, once all of it is there for all threads of the block.
    pub(super) fn arrived<'k>(self, kernel: &Kernel<'k, '_>) -> InputRow<'k> {
        let k = kernel.k;
        k.wait_for_copy_groups(0);
        k.barrier();
        InputRow::Units(k.shared_memory(self.element, self.at_bytes))
    }
}

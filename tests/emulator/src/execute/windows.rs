//! Where the memories of a thread lie among generic addresses.

use crate::ptx::resolver::Space;

const SHARED: u64 = 0x0000_0a00_0000_0000;
const LOCAL: u64 = 0x0000_0b00_0000_0000;
/// Length of a window.
const WINDOW_BYTES: u64 = 1 << 24;

/// What is added to an address in `space` to make it generic.
pub(crate) fn base(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED,
        Space::Local => LOCAL,
        Space::Generic | Space::Global | Space::Parameter | Space::Constant => 0,
    }
}

/// The memory that a generic address lies in, and the address there.
pub(crate) fn resolve(address: u64) -> (Space, u64) {
    if (SHARED..SHARED + WINDOW_BYTES).contains(&address) {
        (Space::Shared, address - SHARED)
    } else if (LOCAL..LOCAL + WINDOW_BYTES).contains(&address) {
        (Space::Local, address - LOCAL)
    } else {
        (Space::Global, address)
    }
}

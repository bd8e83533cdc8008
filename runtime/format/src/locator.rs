//! The static in the ELF image that says where the appended data lies.

/// First bytes of the [`Locator`] in the ELF image; occurs once.
pub const LOCATOR_MAGIC: [u8; 16] = *b"\x7fQWEN2C-LOCATOR\0";

/// Written by the linker as zeros behind the magic, patched by the compiler once the offsets are known.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locator {
    /// [`LOCATOR_MAGIC`].
    pub magic: [u8; 16],
    /// File offset of the header.
    pub header_offset: u64,
    /// File offset of the weight region, a multiple of 2 MiB.
    pub weights_offset: u64,
    /// Bytes of the weight region.
    pub weights_bytes: u64,
    /// Length of the whole file.
    pub file_bytes: u64,
}

impl Locator {
    /// The value the runtime is linked with.
    pub const UNPATCHED: Self =
        Self { magic: LOCATOR_MAGIC, header_offset: 0, weights_offset: 0, weights_bytes: 0, file_bytes: 0 };
}

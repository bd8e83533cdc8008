//! The static in the ELF image that says where the appended data lies.

use crate::{Diagnostic, ProgramError};

/// First bytes of the [`Locator`] in the ELF image; occurs once.
pub const LOCATOR_MAGIC: [u8; 16] = *b"\x7fQWEN2C-LOCATOR\0";

/// The header lies at a multiple of this: a page.
pub const HEADER_ALIGNMENT: u64 = 4096;
/// The weight region lies at a multiple of this, so that it can be mapped with huge pages.
pub const WEIGHTS_ALIGNMENT: u64 = 2 << 20;
/// Bytes of a [`Locator`].
pub(crate) const LOCATOR_BYTES: usize = 48;

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

    /// Where the parts of a program lie: header and sections (`head_bytes`, from
    /// [`crate::encode_program_head`]) behind the ELF image, weights behind them, nothing behind those.
    /// The gaps are zeros.
    pub const fn place(elf_bytes: u64, head_bytes: u64, weights_bytes: u64) -> Self {
        let header_offset = elf_bytes.next_multiple_of(HEADER_ALIGNMENT);
        let weights_offset = (header_offset + head_bytes).next_multiple_of(WEIGHTS_ALIGNMENT);
        let file_bytes = weights_offset + weights_bytes;
        Self { magic: LOCATOR_MAGIC, header_offset, weights_offset, weights_bytes, file_bytes }
    }

    /// Whether the compiler has filled it in.
    pub fn is_patched(&self) -> bool {
        self.file_bytes != 0
    }

    /// Checks that the offsets can belong to a program whose head has `head_bytes`.
    pub(crate) fn check(&self, head_bytes: u64) -> Result<(), ProgramError> {
        // `place` adds and rounds up: stay far from the end of u64.
        let far = 1 << 56;
        let near = self.header_offset < far && self.weights_bytes < far && head_bytes < far;
        if near && Self::place(self.header_offset, head_bytes, self.weights_bytes) == *self {
            return Ok(());
        }
        Err(ProgramError::Invalid {
            section: "locator",
            reason: format!("{self:?} with a head of {head_bytes} bytes"),
        })
    }

    pub(crate) fn decode(bytes: &[u8; LOCATOR_BYTES]) -> Self {
        let number =
            |index: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[16 + 8 * index + byte]));
        Self {
            magic: std::array::from_fn(|byte| bytes[byte]),
            header_offset: number(0),
            weights_offset: number(1),
            weights_bytes: number(2),
            file_bytes: number(3),
        }
    }

    pub(crate) fn encode(&self) -> [u8; LOCATOR_BYTES] {
        let mut bytes = [0; LOCATOR_BYTES];
        bytes[..16].copy_from_slice(&self.magic);
        let numbers = [self.header_offset, self.weights_offset, self.weights_bytes, self.file_bytes];
        for (place, number) in bytes[16..].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }
}

/// The magic to search for.
///
/// It is put together when it is needed: as a constant it would stand in the image of every program
/// that can search, and be found there.
pub(crate) fn searched_magic() -> [u8; 16] {
    const INVERTED: [u8; 16] = {
        let mut bytes = LOCATOR_MAGIC;
        let mut index = 0;
        while index < bytes.len() {
            bytes[index] = !bytes[index];
            index += 1;
        }
        bytes
    };
    std::hint::black_box(INVERTED).map(|byte| !byte)
}

/// Positions of the magic in `bytes`.
pub(crate) fn find_magic<'a>(bytes: &'a [u8], magic: &'a [u8; 16]) -> impl Iterator<Item = usize> + 'a {
    bytes
        .windows(magic.len())
        .enumerate()
        .filter(move |(_, window)| window == magic)
        .map(|(position, _)| position)
}

/// Writes `locator` over the unpatched one of a linked ELF image.
///
/// # Errors
///
/// A bug of ours, said as one: the image holds no locator or several, or one that was patched already.
pub fn patch_locator(elf: &mut [u8], locator: &Locator) -> Result<(), Diagnostic> {
    let magic = searched_magic();
    let places: Vec<usize> = find_magic(elf, &magic).collect();
    let [place] = places[..] else {
        return Err(Diagnostic::new("the linked runtime cannot be completed")
            .found(format!("{} locators", places.len()))
            .needed("one locator")
            .help("report this as a bug of `qwen2c`"));
    };
    let target: Option<&mut [u8; LOCATOR_BYTES]> =
        elf.get_mut(place..place + LOCATOR_BYTES).and_then(|bytes| bytes.try_into().ok());
    match target {
        Some(bytes) if Locator::decode(bytes) == Locator::UNPATCHED => {
            *bytes = locator.encode();
            Ok(())
        }
        _ => Err(Diagnostic::new("the linked runtime cannot be completed")
            .found("a locator that is cut short or filled in already")
            .help("report this as a bug of `qwen2c`")),
    }
}

//! The header: read first, so checked hardest.
//!
//! ```text
//!   0  magic           8 bytes
//!   8  format version  u32
//!  12  section count   u32
//!  16  sections        5 × { offset from the header u64, bytes u64, SHA-256 32 bytes }
//! 256  reserved        32 bytes, zero
//! 288  SHA-256 of the 288 bytes before it
//! ```
//!
//! Sections follow one another in the order of [`Section::ALL`], each at a multiple of 64. Because the
//! header holds their hashes and its own, no byte of a program's head can change unnoticed.

use sha2::{Digest, Sha256};

use crate::ProgramError;
use crate::codec::{ByteReader, ByteWriter};

/// Version of everything behind the ELF image and of the kernel calls. A runtime reads its own alone.
pub const FORMAT_VERSION: u32 = 5;

/// Bytes of the header.
pub(crate) const HEADER_BYTES: usize = 320;
/// Bytes in front of the header's own hash.
const HASHED_BYTES: usize = HEADER_BYTES - 32;
const MAGIC: [u8; 8] = *b"QWEN2C\r\n";
/// Sections begin at multiples of this.
const SECTION_ALIGNMENT: u64 = 64;
/// No section of a real program comes near this: an 80-layer model has step lists of 1 MB, a tokenizer
/// 5 MB.
const MOST_SECTION_BYTES: u64 = 256 << 20;

/// A part of a program's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Manifest, JSON.
    Manifest,
    /// Step lists.
    StepLists,
    /// Weight table.
    WeightTable,
    /// Tokenizer tables; no bytes where there is no tokenizer.
    Tokenizer,
    /// Code for a device; no bytes where the program runs on the processor.
    DeviceCode,
}

impl Section {
    /// All sections in file order.
    pub const ALL: [Self; 5] =
        [Self::Manifest, Self::StepLists, Self::WeightTable, Self::Tokenizer, Self::DeviceCode];

    /// The name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::StepLists => "step lists",
            Self::WeightTable => "weight table",
            Self::Tokenizer => "tokenizer",
            Self::DeviceCode => "device code",
        }
    }
}

/// Where a section lies and what it must hash to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionRecord {
    /// From the header's first byte.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
    /// SHA-256 of the section.
    pub sha256: [u8; 32],
}

/// The decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// In the order of [`Section::ALL`].
    pub sections: [SectionRecord; 5],
}

impl Header {
    /// Places the sections behind the header.
    pub(crate) fn place(sections: [&[u8]; 5]) -> Self {
        let mut end = HEADER_BYTES as u64;
        let sections = sections.map(|bytes| {
            let offset = end.next_multiple_of(SECTION_ALIGNMENT);
            end = offset + bytes.len() as u64;
            SectionRecord { offset, bytes: bytes.len() as u64, sha256: Sha256::digest(bytes).into() }
        });
        Self { sections }
    }

    /// Bytes from the header's first to the last section's last.
    pub fn head_bytes(&self) -> u64 {
        self.sections.iter().map(|section| section.offset + section.bytes).max().unwrap_or_default()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut writer = ByteWriter::default();
        writer.raw(&MAGIC);
        writer.u32(FORMAT_VERSION);
        writer.count(self.sections.len());
        for section in &self.sections {
            writer.u64(section.offset);
            writer.u64(section.bytes);
            writer.raw(&section.sha256);
        }
        let mut bytes = writer.finish();
        bytes.resize(HASHED_BYTES, 0);
        let hash = Sha256::digest(&bytes);
        bytes.extend_from_slice(&hash);
        bytes
    }

    /// Checks and reads a header.
    ///
    /// # Errors
    ///
    /// The version is reported before the hash, so that a program of another version is named as such
    /// whatever its header looks like behind the version.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, ProgramError> {
        let altered = || ProgramError::Altered { section: "header" };
        let mut reader = ByteReader::new(bytes);
        if reader.array::<8>().map_err(|_| altered())? != MAGIC {
            return Err(altered());
        }
        let version = reader.u32().map_err(|_| altered())?;
        if version != FORMAT_VERSION {
            return Err(ProgramError::Version { found: version });
        }
        if Sha256::digest(&bytes[..HASHED_BYTES])[..] != bytes[HASHED_BYTES..] {
            return Err(altered());
        }
        let invalid = |reason: String| ProgramError::Invalid { section: "header", reason };
        let mut read = || -> Result<Self, crate::DecodeError> {
            let count = reader.u32()? as usize;
            if count != Section::ALL.len() {
                return Err(reader.error(format!("{count} sections where {} belong", Section::ALL.len())));
            }
            let mut record =
                || Ok(SectionRecord { offset: reader.u64()?, bytes: reader.u64()?, sha256: reader.array()? });
            Ok(Self { sections: [record()?, record()?, record()?, record()?, record()?] })
        };
        let header = read().map_err(|error| invalid(error.to_string()))?;
        let mut end = HEADER_BYTES as u64;
        for (section, record) in Section::ALL.into_iter().zip(&header.sections) {
            if record.bytes > MOST_SECTION_BYTES || record.offset != end.next_multiple_of(SECTION_ALIGNMENT) {
                return Err(invalid(format!(
                    "section `{}` claims {} bytes at offset {}",
                    section.name(),
                    record.bytes,
                    record.offset
                )));
            }
            end = record.offset + record.bytes;
        }
        Ok(header)
    }
}

//! As much of ELF as it takes to know where the image ends and where its data lies.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::ProgramError;

/// A 64-bit little-endian ELF image in front of a program's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ElfImage {
    /// File offset behind the last table, segment and section.
    pub(crate) end: u64,
    /// File ranges of the loaded segments.
    pub(crate) segments: Vec<Range<u64>>,
}

/// `PT_LOAD`.
const LOADED_SEGMENT: u32 = 1;
/// `SHT_NOBITS`: a section without bytes in the file.
const SECTION_WITHOUT_BYTES: u32 = 8;

impl ElfImage {
    /// Reads the tables of the image that `file` begins with.
    pub(crate) fn read(file: &File) -> Result<Self, ProgramError> {
        let foreign = |reason: &str| ProgramError::NotAProgram { reason: reason.to_owned() };
        let file_bytes = file.metadata()?.len();
        let mut header = [0; 64];
        if file_bytes < 64 {
            return Err(foreign("it is too short for an ELF executable"));
        }
        file.read_exact_at(&mut header, 0)?;
        if header[..6] != *b"\x7fELF\x02\x01" {
            return Err(foreign("it does not begin like a 64-bit ELF executable"));
        }
        let segments = Table::new(u64_at(&header, 32), u16_at(&header, 54), u16_at(&header, 56), 56);
        let sections = Table::new(u64_at(&header, 40), u16_at(&header, 58), u16_at(&header, 60), 64);
        let mut image = Self { end: 64, segments: Vec::new() };
        for table in [&segments, &sections] {
            image.end = image.end.max(table.end().ok_or_else(|| foreign("its ELF tables cannot be right"))?);
        }
        // A table that lies behind the file's end belongs to a file that was cut within its image.
        if image.end > file_bytes {
            return Err(ProgramError::Truncated { file_bytes: image.end, found_bytes: file_bytes });
        }
        for entry in segments.entries(file)? {
            let (offset, bytes) = (u64_at(&entry, 8), u64_at(&entry, 32));
            let end = offset.checked_add(bytes).ok_or_else(|| foreign("an ELF segment cannot be right"))?;
            image.end = image.end.max(end);
            if u32_at(&entry, 0) == LOADED_SEGMENT {
                image.segments.push(offset..end);
            }
        }
        for entry in sections.entries(file)? {
            if u32_at(&entry, 4) != SECTION_WITHOUT_BYTES {
                let end = u64_at(&entry, 24).checked_add(u64_at(&entry, 32));
                image.end = image.end.max(end.ok_or_else(|| foreign("an ELF section cannot be right"))?);
            }
        }
        Ok(image)
    }
}

/// A table of the ELF header.
struct Table {
    offset: u64,
    entry_bytes: u64,
    count: u64,
    least_entry_bytes: u64,
}

impl Table {
    fn new(offset: u64, entry_bytes: u16, count: u16, least_entry_bytes: u64) -> Self {
        Self { offset, entry_bytes: entry_bytes.into(), count: count.into(), least_entry_bytes }
    }

    /// Offset behind the table; none where the fields cannot be right.
    fn end(&self) -> Option<u64> {
        if self.count == 0 {
            return Some(0);
        }
        (self.entry_bytes >= self.least_entry_bytes)
            .then(|| self.offset.checked_add(self.entry_bytes * self.count))
            .flatten()
    }

    fn entries(&self, file: &File) -> Result<Vec<Vec<u8>>, ProgramError> {
        let mut bytes = vec![0; (self.entry_bytes * self.count) as usize];
        file.read_exact_at(&mut bytes, self.offset)?;
        Ok(bytes.chunks_exact((self.entry_bytes as usize).max(1)).map(<[u8]>::to_vec).collect())
    }
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|index| bytes[offset + index]))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|index| bytes[offset + index]))
}

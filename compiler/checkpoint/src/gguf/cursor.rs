//! Reading the header of a file from front to back, without believing any length in it.

use qwen2c_format::Diagnostic;

use crate::files::{OpenFile, cannot_read};

/// Bytes read ahead.
const READ_BYTES: u64 = 1 << 18;
/// Longest text that is read; the longest in real files are chat templates of some ten kilobytes.
const MAX_TEXT_BYTES: u64 = 16 << 20;

/// A place in a file.
pub(super) struct Cursor<'a> {
    file: &'a OpenFile,
    position: u64,
    buffer: Vec<u8>,
    buffer_start: u64,
}

impl<'a> Cursor<'a> {
    /// The beginning of a file.
    pub(super) fn new(file: &'a OpenFile) -> Self {
        Self { file, position: 0, buffer: Vec::new(), buffer_start: 0 }
    }

    /// Offset of the next byte.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Bytes that are left.
    pub(super) fn remaining(&self) -> u64 {
        self.file.bytes - self.position
    }

    /// A diagnostic about what was just read.
    pub(super) fn damaged(&self, what: impl Into<String>) -> Diagnostic {
        Diagnostic::new("the header of the GGUF file is damaged")
            .at(format!("{}, byte {}", self.file.place(), self.position))
            .cause(what)
    }

    /// The next `count` bytes.
    fn take(&mut self, count: u64, what: &str) -> Result<&[u8], Diagnostic> {
        if count > self.remaining() {
            return Err(Diagnostic::new("the GGUF file is cut short")
                .at(format!("{}, byte {}", self.file.place(), self.position))
                .found(format!("{} bytes", self.remaining()))
                .needed(format!("{count} bytes of {what}"))
                .help("fetch the file again"));
        }
        let buffer_end = self.buffer_start + self.buffer.len() as u64;
        if self.position + count > buffer_end {
            let bytes = count.max(READ_BYTES).min(self.remaining());
            self.buffer.resize(bytes as usize, 0);
            self.buffer_start = self.position;
            self.file
                .read_at(self.position, &mut self.buffer)
                .map_err(|error| cannot_read(&self.file.path, &error))?;
        }
        let start = (self.position - self.buffer_start) as usize;
        self.position += count;
        Ok(&self.buffer[start..start + count as usize])
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Diagnostic> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    /// A 32-bit number.
    pub(super) fn number_u32(&mut self, what: &str) -> Result<u32, Diagnostic> {
        self.array(what).map(u32::from_le_bytes)
    }

    /// A 64-bit number.
    pub(super) fn number_u64(&mut self, what: &str) -> Result<u64, Diagnostic> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A length and as many bytes of UTF-8.
    pub(super) fn text(&mut self, what: &str) -> Result<String, Diagnostic> {
        let length = self.number_u64(what)?;
        if length > MAX_TEXT_BYTES {
            return Err(self.damaged(format!("{what} of {length} bytes, where at most 16 MiB are read")));
        }
        let bytes = self.take(length, what)?.to_vec();
        String::from_utf8(bytes).map_err(|error| self.damaged(format!("{what} is not UTF-8: {error}")))
    }
}

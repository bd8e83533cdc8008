//! Little-endian writing and bounds-checked reading of the binary sections.

use std::fmt;

/// A place in a section that cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// Byte of the section where reading stopped.
    pub offset: u64,
    /// What is wrong there: lower case, no full stop.
    pub reason: String,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "byte {}: {}", self.offset, self.reason)
    }
}

impl std::error::Error for DecodeError {}

/// Appends numbers and texts to a buffer.
#[derive(Default)]
pub(crate) struct ByteWriter {
    bytes: Vec<u8>,
}

impl ByteWriter {
    pub(crate) fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// A count of elements or bytes.
    pub(crate) fn count(&mut self, count: usize) {
        self.u32(u32::try_from(count).expect("a program has fewer than 2^32 steps, kernels and weights"));
    }

    /// A text with its length before it.
    pub(crate) fn text(&mut self, text: &str) {
        self.count(text.len());
        self.raw(text.as_bytes());
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Reads what [`ByteWriter`] wrote; every read is checked against the end.
pub(crate) struct ByteReader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> ByteReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    /// An error at the place reached.
    pub(crate) fn error(&self, reason: impl Into<String>) -> DecodeError {
        DecodeError { offset: self.position as u64, reason: reason.into() }
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let rest = &self.bytes[self.position..];
        let Some(taken) = rest.get(..count) else {
            return Err(self.error(format!("{count} bytes are needed, {} are left", rest.len())));
        };
        self.position += count;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        Ok(self.take(N)?.try_into().expect("`take` returns as many bytes as it is asked for"))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Reads a vector whose elements take at least `least_bytes` each, so that a count that lies
    /// cannot make the vector larger than the section.
    pub(crate) fn vector<T>(
        &mut self,
        least_bytes: usize,
        mut element: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let count = self.u32()? as usize;
        let left = self.bytes.len() - self.position;
        if count > left / least_bytes.max(1) {
            return Err(self.error(format!("{count} elements do not fit into the {left} bytes left")));
        }
        (0..count).map(|_| element(self)).collect()
    }

    pub(crate) fn text(&mut self) -> Result<String, DecodeError> {
        let count = self.u32()? as usize;
        let bytes = self.take(count)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.error("a name is not UTF-8")),
        }
    }

    /// Ends reading; bytes left over are an error.
    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        match self.bytes.len() - self.position {
            0 => Ok(()),
            left => Err(self.error(format!("{left} bytes follow the end"))),
        }
    }
}

//! Bytes of a weight on their way into the program: collected to blocks of the file, hashed, written.

use qwen2c_format::Diagnostic;
use sha2::{Digest, Sha256};

use crate::block_file::BlockFile;
use crate::failure::Failure;
use crate::progress::Progress;

/// Collects bytes, writes them block by block of the file, and hashes them.
pub(crate) struct HashingWriter<'a> {
    file: &'a BlockFile<'a>,
    /// Where the pending bytes belong.
    position: u64,
    pending: Vec<u8>,
    hash: Sha256,
    progress: &'a Progress,
}

impl<'a> HashingWriter<'a> {
    /// Writes to `file` from `position` on.
    pub(crate) fn new(file: &'a BlockFile<'a>, position: u64, progress: &'a Progress) -> Self {
        // A weight that has not begun holds nothing.
        Self { file, position, pending: Vec::new(), hash: Sha256::new(), progress }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        while !bytes.is_empty() {
            let room = BlockFile::bytes_to_end_of_block(self.position) - self.pending.len();
            let (of_block, rest) = bytes.split_at(bytes.len().min(room));
            self.pending.reserve_exact(if self.pending.is_empty() { room } else { of_block.len() });
            self.pending.extend_from_slice(of_block);
            if of_block.len() == room {
                self.flush()?;
            }
            bytes = rest;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.hash.update(&self.pending);
        self.file.write_in_block(&self.pending, self.position).map_err(|error| {
            Failure::Input(Diagnostic::new("cannot write the weights").cause(error.to_string()))
        })?;
        let written_bytes = self.pending.len() as u64;
        self.position += written_bytes;
        self.progress.advance(written_bytes);
        self.pending.clear();
        Ok(())
    }

    /// The hash, and the position behind the last byte.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub(crate) fn finish(mut self) -> Result<([u8; 32], u64), Failure> {
        self.flush()?;
        Ok((self.hash.finalize().into(), self.position))
    }
}

//! A file written in blocks that systems can keep in large pages.
//!
//! A program runs from the memory in which the system keeps its file. A write that covers an aligned block
//! of 2 MiB is kept in one large page where the system has them, smaller writes in small pages, and those
//! stay for as long as the file is in memory: a program that was just built would stream its weights
//! through 512 times as many addresses. So the first write to each block covers it whole.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use qwen2c_format::WEIGHTS_ALIGNMENT;

/// Bytes of a block: of a large page, at whose multiples weights begin.
pub(crate) const BLOCK_BYTES: usize = WEIGHTS_ALIGNMENT as usize;

/// A file that several threads write, each its own places.
pub(crate) struct BlockFile<'a> {
    file: &'a File,
    /// Blocks of which a part was written.
    begun: Mutex<BTreeSet<u64>>,
}

impl<'a> BlockFile<'a> {
    /// Of an open file, whose places behind its end may become zeros.
    pub(crate) const fn new(file: &'a File) -> Self {
        Self { file, begun: Mutex::new(BTreeSet::new()) }
    }

    /// Bytes from `position` to the end of its block.
    pub(crate) const fn bytes_to_end_of_block(position: u64) -> usize {
        BLOCK_BYTES - (position % BLOCK_BYTES as u64) as usize
    }

    /// Writes `bytes`, which lie within one block.
    ///
    /// # Errors
    ///
    /// The system's, when it cannot write.
    pub(crate) fn write_in_block(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        if bytes.len() < BLOCK_BYTES {
            let block = position / BLOCK_BYTES as u64;
            // Whoever comes second waits here, so that zeros never follow what was written.
            let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
            if begun.insert(block) {
                self.file.write_all_at(&vec![0; BLOCK_BYTES], block * BLOCK_BYTES as u64)?;
            }
        }
        self.file.write_all_at(bytes, position)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::thread;

    use super::{BLOCK_BYTES, BlockFile};

    #[test]
    fn parts_of_a_block_stay_whoever_writes_first() {
        let file = tempfile::tempfile().unwrap();
        let blocks = BlockFile::new(&file);
        let part_bytes = BLOCK_BYTES / 64;
        thread::scope(|scope| {
            for part in 0..128_u8 {
                let blocks = &blocks;
                scope.spawn(move || {
                    let bytes = vec![part + 1; part_bytes];
                    blocks.write_in_block(&bytes, u64::from(part) * part_bytes as u64).unwrap();
                });
            }
        });
        let mut written = vec![0; 2 * BLOCK_BYTES];
        file.read_exact_at(&mut written, 0).unwrap();
        for (part, bytes) in written.chunks(part_bytes).enumerate() {
            assert!(bytes.iter().all(|byte| usize::from(*byte) == part + 1), "part {part}");
        }
    }

    #[test]
    fn a_block_ends_at_the_next_multiple() {
        assert_eq!(BlockFile::bytes_to_end_of_block(0), BLOCK_BYTES);
        assert_eq!(BlockFile::bytes_to_end_of_block(3 * BLOCK_BYTES as u64 - 1), 1);
    }
}

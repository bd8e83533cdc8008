//! What a kernel did wrong, and where.

use std::fmt;

/// The first thing a launch did wrong; nothing of the launch after it is meaningful.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Name of the entry.
    pub kernel: String,
    /// Line of the PTX text, from 1; 0 where no single instruction is to blame.
    pub line: u32,
    /// Text of that line.
    pub instruction: String,
    /// Block that did it.
    pub block: [u32; 3],
    /// Thread of the block that did it.
    pub thread: [u32; 3],
    /// What was done, in a sentence with numbers.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [block_x, block_y, block_z] = self.block;
        let [thread_x, thread_y, thread_z] = self.thread;
        writeln!(formatter, "fault in kernel `{}`: {}", self.kernel, self.what)?;
        writeln!(formatter, "  at line {}: {}", self.line, self.instruction)?;
        write!(
            formatter,
            "  block ({block_x}, {block_y}, {block_z}), thread ({thread_x}, {thread_y}, {thread_z})"
        )
    }
}

impl std::error::Error for Fault {}

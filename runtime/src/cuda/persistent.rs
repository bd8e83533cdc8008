//! A token in one launch: the steps of the decode list as a table that blocks walk through together.

use std::rc::Rc;

use qwen2c_format::{Diagnostic, PersistentKernel, StepLists};

use super::device::DeviceFacts;
use super::driver::{Context, Function, Grid, Module};
use super::memory::{DeviceMemory, PinnedMemory};

/// Bytes of a word of the table.
const WORD_BYTES: usize = 8;

/// A launch of a step as the table has it.
pub(crate) struct Row<'a> {
    /// Its number, counted over the launches of all kernels.
    pub(crate) number: u64,
    /// Blocks that it has work for.
    pub(crate) blocks: u32,
    /// Addresses on the device.
    pub(crate) operands: &'a [u64],
}

/// The kernel, its grid, and its table on the device.
pub(crate) struct PersistentDecode {
    function: Function,
    grid: Grid,
    rows: u32,
    /// The table, and behind it the word of the barriers.
    table: DeviceMemory,
    word_offset: u64,
}

/// Bytes of a table of so many rows, with the word of the barriers behind it.
fn bytes_of(kernel: &PersistentKernel, rows: usize) -> usize {
    rows * kernel.row_words as usize * WORD_BYTES + WORD_BYTES
}

/// Device memory that a program's table takes; 0 where it has none.
pub(crate) fn table_bytes(lists: &StepLists) -> u64 {
    let (Some(kernel), Some(decode)) = (&lists.persistent, lists.lists.first()) else { return 0 };
    let launches = |kernel: u32| lists.kernels.get(kernel as usize).map_or(0, |kernel| kernel.launches.len());
    let rows = decode.body.iter().chain(&decode.head).map(|step| launches(step.kernel)).sum();
    bytes_of(kernel, rows) as u64
}

impl PersistentDecode {
    /// Puts the table on the device. None where the device does not run blocks that wait for one another.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub(crate) fn new(
        context: &Rc<Context>,
        module: &Module,
        facts: &DeviceFacts,
        kernel: &PersistentKernel,
        rows: &[Row<'_>],
    ) -> Result<Option<Self>, Diagnostic> {
        let PersistentKernel { symbol, threads, shared_bytes, row_words } = kernel;
        let function = module.function(symbol, *shared_bytes)?;
        let of_a_multiprocessor = context.blocks_at_once(function, *threads, *shared_bytes)?;
        // More blocks than any launch has work for would only come to barriers.
        let most_blocks = rows.iter().map(|row| row.blocks).max().unwrap_or(0);
        let blocks = of_a_multiprocessor.saturating_mul(facts.multiprocessors).min(most_blocks);
        if blocks == 0 || !facts.runs_blocks_together {
            return Ok(None);
        }
        let bytes = bytes_of(kernel, rows.len());
        let word_offset = bytes - WORD_BYTES;
        let table = DeviceMemory::reserve(context, bytes as u64, "table of steps")?;
        let mut pinned = PinnedMemory::zeroed(context, bytes as u64)?;
        // SAFETY: no copy is under way yet.
        let words = unsafe { pinned.bytes_mut(0, word_offset) };
        for (place, row) in words.chunks_exact_mut(*row_words as usize * WORD_BYTES).zip(rows) {
            let words = std::iter::once(&row.number).chain(row.operands);
            for (place, word) in place.chunks_exact_mut(WORD_BYTES).zip(words) {
                place.copy_from_slice(&word.to_ne_bytes());
            }
        }
        pinned.send(0, bytes, &table, 0)?;
        // The pinned memory goes now.
        context.synchronize()?;
        let grid = Grid { blocks: [blocks, 1], threads: *threads, shared_bytes: *shared_bytes };
        let word_offset = word_offset as u64;
        Ok(Some(Self { function, grid, rows: rows.len() as u32, table, word_offset }))
    }

    /// Blocks of the grid.
    pub(crate) fn blocks(&self) -> u32 {
        self.grid.blocks[0]
    }

    /// Puts a token into the stream.
    ///
    /// # Errors
    ///
    /// What the driver says; it may be the failure of earlier work.
    pub(crate) fn launch(&self, context: &Context) -> Result<(), Diagnostic> {
        let address = |offset| self.table.address(offset, 4).expect("the table was made so long");
        let parameters = [address(0), address(self.word_offset)];
        context.launch_together(self.function, &self.grid, &parameters, self.rows)
    }
}

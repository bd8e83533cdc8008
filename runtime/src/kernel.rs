//! How compiled kernels are called.

use qwen2c_format::{Operand, Region, RowAxis, Step};

use crate::memory::Mapping;

/// Number of tiles of a step: `(operands, rows)`. It may read the arena, where work depends on data.
pub type TilesFunction = unsafe extern "C" fn(operands: *const *mut u8, rows: i64) -> i64;

/// Computes one tile of a step: `(operands, rows, tile)`. Tiles may run in any order on any thread.
pub type BodyFunction = unsafe extern "C" fn(operands: *const *mut u8, rows: i64, tile: i64);

/// One kernel, as the compiled object lists it under `qwen2c_kernels`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KernelEntry {
    /// Counts tiles.
    pub tiles: TilesFunction,
    /// Computes a tile.
    pub body: BodyFunction,
}

/// A step whose kernel and pointers have been looked up, ready to be called.
pub(crate) struct BoundStep {
    kernel: KernelEntry,
    row_axis: RowAxis,
    joins_previous: bool,
    operands: Box<[*mut u8]>,
}

// SAFETY: the pointers name memory of the mappings that the step was bound to, which the executor
// keeps for as long as it keeps the step; threads share that memory by design, and which tile writes
// what is the kernels' promise.
unsafe impl Send for BoundStep {}
// SAFETY: as above; a bound step is never changed.
unsafe impl Sync for BoundStep {}

impl BoundStep {
    /// Looks up the step's kernel and the addresses of its operands.
    ///
    /// None where the step names a kernel or memory that is not there; a program that was read through
    /// [`qwen2c_format::ProgramFile`] has no such step.
    pub(crate) fn bind(
        step: &Step,
        kernels: &[KernelEntry],
        arena: &Mapping,
        weights: &Mapping,
    ) -> Option<Self> {
        let kernel = *kernels.get(step.kernel as usize)?;
        let address = |operand: &Operand| {
            let region = match operand.region {
                Region::Arena => arena,
                Region::Weights => weights,
            };
            region.address(operand.offset, operand.bytes)
        };
        let operands = step.operands.iter().map(address).collect::<Option<_>>()?;
        Some(Self { kernel, row_axis: step.row_axis, joins_previous: step.joins_previous, operands })
    }

    /// Which of the two counts of rows the kernel gets.
    pub(crate) fn rows(&self, rows: u32, logit_rows: u32) -> i64 {
        i64::from(match self.row_axis {
            RowAxis::Rows => rows,
            RowAxis::LogitRows => logit_rows,
        })
    }

    /// Whether workers need not meet between the step before and this one.
    pub(crate) fn joins_previous(&self) -> bool {
        self.joins_previous
    }

    /// Tiles of this step for so many rows, which must not exceed the list's.
    pub(crate) fn tiles(&self, rows: i64) -> i64 {
        // SAFETY: every operand lies inside a mapping and has the bytes that the plan gave it for
        // the list's largest number of rows, which the executor holds `rows` to.
        unsafe { (self.kernel.tiles)(self.operands.as_ptr(), rows) }
    }

    /// Computes one of the tiles that [`BoundStep::tiles`] counted.
    pub(crate) fn compute(&self, rows: i64, tile: i64) {
        // SAFETY: as in `tiles`; the tile comes from the count.
        unsafe { (self.kernel.body)(self.operands.as_ptr(), rows, tile) }
    }
}

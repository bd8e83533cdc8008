//! How products on the matrix unit are cut into blocks, and these into tiles of 16 output rows by 8 rows of
//! activations.
//!
//! | weights | rows | warps | tiles of a warp | sums of a thread | inputs of a stage | bytes of a stage | stages |
//! |---|---|---|---|---|---|---|---|
//! | elements | 128 | 2 × 2 | 4 × 8 | 128 | 32 | 16512 | 4 |
//! | elements | 64 | 4 × 1 | 2 × 8 | 64 | 32 | 12416 | 4 |
//! | int4:32 | 64 | 4 × 1 | 2 × 8 | 64 | 64 | 13056 | 4 |
//! | int8:32 | 64 | 4 × 1 | 2 × 8 | 64 | 64 | 17152 | 4 |
//! | any | 32 | 4 × 1 | 2 × 4 | 32 | | | 4 |
//!
//! Per 32 inputs each of four warps with 4 × 8 tiles reads 8 KiB of shared memory, and their copies write 16
//! KiB: 384 cycles of 128 bytes, during 512 cycles of the matrix unit of sm_80, which takes 8 for a product of
//! each warp. A byte that a block brings to shared memory serves 64 operations with 128 rows of activations,
//! 43 with 64; with int4 and 64 rows it is 80, so that more rows would gain little and cost the registers that
//! widening needs.

use qwen2c_request::{Element, KernelRequest, WeightLayout};

pub(super) use super::tile_memory::THREADS;
use super::tile_memory::{CHUNK_INPUTS, Stage, is_copied};
use crate::builder::{Buffer, Val, WARP_THREADS};
use crate::cuda::layout::WarpGeometry;

/// Fewer rows are served by the product of warps, which reads a weight once for some of them.
const FEWEST_ROWS: u64 = 9;

/// Output rows of a block.
const OUTPUT_ROWS: u64 = 128;

/// Rows of activations of a block: as many as leave enough blocks.
const MANY_ROWS: u64 = 128;
const SOME_ROWS: u64 = 64;
const FEW_ROWS: u64 = 32;

/// Output rows of a tile of the matrix unit.
pub(super) const TILE_OUTPUT_ROWS: u64 = 16;

/// Rows of activations of a tile.
pub(super) const TILE_ROWS: u64 = 8;

/// Fewer blocks would leave some of a device's multiprocessors idle.
const BLOCKS_WANTED: u64 = 108;

/// Stages ahead are worth less than a second block beside the first: 2 of these fit a multiprocessor.
const SHARED_BYTES: u64 = 72 << 10;

/// The rows of activations that blocks may have, most first: as many as a thread has registers for.
fn row_choices(request: &KernelRequest) -> &'static [u64] {
    match request.weights[0].quantization {
        None => &[MANY_ROWS, SOME_ROWS, FEW_ROWS],
        Some(quantization) if !quantization.has_minimum => &[SOME_ROWS, FEW_ROWS],
        Some(_) => &[FEW_ROWS],
    }
}

/// How a product is cut into blocks and tiles.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// The weight's geometry.
    pub(super) geometry: WarpGeometry,
    /// Type of activations, bf16 or f16.
    pub(super) element: Element,
    /// Gate and up, or 1.
    pub(super) halves: u64,
    /// What shared memory holds, once or more.
    pub(super) stage: Stage,
    pub(super) stages: u64,
    /// Tiles of a warp: of output rows, and of rows of activations.
    pub(super) output_tiles: u64,
    pub(super) row_tiles: u64,
    /// Warps that have the same output rows.
    pub(super) warps_of_rows: u64,
}

impl Cut {
    /// How a product of rows is cut; None where it is none for the matrix unit.
    pub(super) fn new(request: &KernelRequest, layouts: &[WeightLayout]) -> Option<Self> {
        if request.operation.norm().is_some() {
            // Made for one row.
            return None;
        }
        let cuts: Vec<Self> = row_choices(request)
            .iter()
            .map(|rows| Self::with_rows(request, layouts, *rows))
            .collect::<Option<_>>()?;
        let leaves_enough = |cut: &&Self| {
            // Half of a block without rows is worse than two blocks.
            let is_full = request.max_rows > cut.rows() / 2;
            is_full && cut.column_blocks() * request.max_rows.div_ceil(cut.rows()) >= BLOCKS_WANTED
        };
        cuts.iter().find(leaves_enough).or(cuts.last()).copied()
    }

    /// How a product of entries that are listed by expert is cut.
    pub(super) fn of_experts(request: &KernelRequest, layouts: &[WeightLayout]) -> Option<Self> {
        let entries = request.max_rows * request.inputs[1].row_elements();
        let is_much = entries > FEW_ROWS * request.weights[0].extents()[0];
        let has_some = row_choices(request).contains(&SOME_ROWS);
        Self::with_rows(request, layouts, if is_much && has_some { SOME_ROWS } else { FEW_ROWS })
    }

    fn with_rows(request: &KernelRequest, layouts: &[WeightLayout], rows: u64) -> Option<Self> {
        let WeightLayout::WarpPanels { rows: panel_rows, separate_halves } = layouts[0] else { return None };
        let geometry = WarpGeometry::new(&request.weights[0], panel_rows, separate_halves);
        let element = request.inputs[0].element;
        let serves = match geometry.quantization {
            None => geometry.element == element,
            // A chunk has one scale.
            Some(quantization) => u64::from(quantization.group).is_multiple_of(CHUNK_INPUTS),
        };
        if request.max_rows < FEWEST_ROWS || !is_copied(element, geometry.columns) || !serves {
            return None;
        }
        // Integers take as many bytes of a row at a time as memory gives at once.
        let chunks = if geometry.quantization.is_some() { 2 } else { 1 };
        let stage = Stage::new(&geometry, chunks, OUTPUT_ROWS, rows);
        let warps_of_rows = (rows / SOME_ROWS).max(1);
        let warps = THREADS / u64::from(WARP_THREADS);
        Some(Self {
            geometry,
            element,
            halves: if separate_halves { 2 } else { 1 },
            stage,
            stages: if 4 * stage.bytes(&geometry) <= SHARED_BYTES { 4 } else { 3 },
            output_tiles: OUTPUT_ROWS / TILE_OUTPUT_ROWS * warps_of_rows / warps,
            row_tiles: rows / TILE_ROWS / warps_of_rows,
            warps_of_rows,
        })
    }

    /// Rows of activations of a block.
    pub(super) fn rows(self) -> u64 {
        self.stage.activations.rows
    }

    /// Columns of a result.
    pub(super) fn columns(self) -> u64 {
        self.geometry.rows / self.halves
    }

    /// Blocks that have all columns for some rows.
    pub(super) fn column_blocks(self) -> u64 {
        self.columns().div_ceil(OUTPUT_ROWS / self.halves)
    }

    /// Whether all columns of every block exist.
    pub(super) fn fits(self) -> bool {
        self.columns().is_multiple_of(OUTPUT_ROWS / self.halves)
    }

    /// Shared memory of a block.
    pub(super) fn shared_bytes(self) -> u64 {
        self.stages * self.stage.bytes(&self.geometry)
    }

    /// Stages that a row of inputs takes.
    pub(super) fn stages_of_row(self) -> u64 {
        self.geometry.columns.div_ceil(self.stage.inputs())
    }

    /// Column and half of a block's output row: tiles of the gate and of the up projection take turns.
    pub(super) fn column_of<'k>(self, column_block: Val<'k>, output_row: Val<'k>) -> (Val<'k>, Val<'k>) {
        let k = column_block.builder();
        let tile_rows = k.int(TILE_OUTPUT_ROWS);
        let tile = output_row / tile_rows;
        let first = column_block * k.int(OUTPUT_ROWS / self.halves);
        let column = first + tile / k.int(self.halves) * tile_rows + output_row % tile_rows;
        (column, tile % k.int(self.halves))
    }

    /// The panel of a matrix that a block's output row is in. Rows that do not exist are in the last panel.
    pub(super) fn panel<'k>(
        self,
        matrix: Buffer<'k>,
        column_block: Val<'k>,
        output_row: Val<'k>,
    ) -> Buffer<'k> {
        let k = column_block.builder();
        let (column, half) = self.column_of(column_block, output_row);
        let panels = self.geometry.panels() / self.halves;
        let panel = column / k.int(self.geometry.panel_rows);
        let panel = if self.fits() { panel } else { panel.minimum(k.int(panels - 1)) };
        matrix.at_bytes((half * k.int(panels) + panel) * k.int(self.geometry.panel_bytes()))
    }
}

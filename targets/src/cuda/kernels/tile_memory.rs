//! Shared memory of the products on the matrix unit: rows of weights and rows of activations, some stages of
//! them, filled by copies in the background.
//!
//! ```text
//! stage = weights | scales, minima | activations
//! weights, activations = for chunk of 32 inputs: rows one after the other, then 64 bytes that nobody uses
//! scales, then minima  = for panel of 8 rows: for group of the stage's inputs: 8 of them
//! ```
//!
//! A chunk of a row is 64 bytes of 16-bit elements, 32 of 8-bit or 16 of 4-bit integers. Four threads of a
//! warp read a quarter of it each, and the threads behind them the next row: what a warp reads at once lies
//! side by side, and no two threads meet in a bank. Threads that copy go along a row, through its chunks; the
//! gap shifts the second chunk by half of the banks, so that they do not meet either.

use qwen2c_request::Element;

use super::Kernel;
use crate::builder::{Buffer, Compare, Scalar, Val};
use crate::cuda::layout::{BLOCK_UNITS, UNIT_BYTES, WarpGeometry};

/// Threads of a block.
pub(super) const THREADS: u64 = 128;

/// Inputs of a chunk: two products of the matrix unit.
pub(super) const CHUNK_INPUTS: u64 = 32;

/// Unused bytes behind the rows of a chunk: half of the banks.
const GAP_BYTES: u64 = 64;

/// Rows of which shared memory holds some chunks.
#[derive(Clone, Copy, Debug)]
pub(super) struct SharedRows {
    /// How many.
    pub(super) rows: u64,
    /// Bytes of a row's chunk.
    pub(super) chunk_bytes: u64,
    /// Chunks of a stage.
    pub(super) chunks: u64,
}

impl SharedRows {
    /// Byte at which a chunk starts.
    pub(super) fn chunk_at_bytes(self, chunk: u64) -> u64 {
        chunk * (self.rows * self.chunk_bytes + GAP_BYTES)
    }

    /// Bytes of all chunks.
    pub(super) fn bytes(self) -> u64 {
        self.chunk_at_bytes(self.chunks)
    }

    /// Loads of 16 bytes that make a row.
    fn units(self) -> u64 {
        self.chunks * self.chunk_bytes / UNIT_BYTES
    }

    /// Copies of each thread. Rows divide evenly among the threads.
    fn copies(self) -> u64 {
        self.rows * self.units() / THREADS
    }

    /// The row and the unit of it that a thread copies first; the next copy is of the same unit of a row
    /// further on.
    fn first_copy<'k>(self, thread: Val<'k>) -> (Val<'k>, Val<'k>) {
        let units = thread.builder().int(self.units());
        (thread / units, thread % units)
    }

    /// The row of a thread's first copy, and how many rows lie between its copies.
    fn copied_rows<'k>(self, thread: Val<'k>) -> (Val<'k>, u64) {
        (self.first_copy(thread).0, THREADS / self.units())
    }

    /// Where the thread's copies come from, of rows that lie anywhere: `row(number)` is where one begins.
    pub(super) fn sources<'k>(self, thread: Val<'k>, row: impl Fn(Val<'k>) -> Buffer<'k>) -> Vec<Source<'k>> {
        let (first, step) = self.copied_rows(thread);
        (0..self.copies())
            .map(|copy| Source {
                start: row(first + first.builder().int(copy * step)),
                behind_bytes: 0,
                exists: None,
            })
            .collect()
    }

    /// Where they come from, of rows whose distance is that of their numbers times `row_bytes`; the first
    /// `count` exist. A thread then needs one address for all.
    pub(super) fn even_sources<'k>(
        self,
        thread: Val<'k>,
        row: impl Fn(Val<'k>) -> Buffer<'k>,
        row_bytes: u64,
        count: Option<Val<'k>>,
    ) -> Vec<Source<'k>> {
        let (first, step) = self.copied_rows(thread);
        let start = row(first);
        (0..self.copies())
            .map(|copy| {
                let number = first + first.builder().int(copy * step);
                let exists = count.map(|count| number.compare(Compare::Less, count));
                Source { start, behind_bytes: copy * step * row_bytes, exists }
            })
            .collect()
    }

    /// Where a thread's first copy goes, and by how much further each next one.
    fn destination<'k>(self, thread: Val<'k>) -> (Val<'k>, u64) {
        let k = thread.builder();
        let (row, unit) = self.first_copy(thread);
        let of_chunk = k.int(self.chunk_bytes / UNIT_BYTES);
        let chunk = unit / of_chunk * k.int(self.chunk_at_bytes(1));
        let place = chunk + row * k.int(self.chunk_bytes) + unit % of_chunk * k.int(UNIT_BYTES);
        (place, THREADS / self.units() * self.chunk_bytes)
    }
}

/// What a stage holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stage {
    /// Output rows.
    pub(super) weights: SharedRows,
    /// Bytes of a panel's scales; 0 where the weight is not quantized. Minima take as many.
    pub(super) scales_bytes_of_panel: u64,
    /// Scales and minima, or scales alone, or nothing.
    scalings: u64,
    /// Rows of activations.
    pub(super) activations: SharedRows,
}

impl Stage {
    /// A stage of `chunks` for `output_rows` of a weight and `rows` of activations.
    pub(super) fn new(geometry: &WarpGeometry, chunks: u64, output_rows: u64, rows: u64) -> Self {
        let inputs = chunks * CHUNK_INPUTS;
        let scales_bytes_of_panel = match geometry.quantization {
            Some(quantization) => inputs.div_ceil(quantization.group.into()) * geometry.scaling_bytes(),
            None => 0,
        };
        let chunk_bytes = CHUNK_INPUTS / geometry.unit_inputs() * UNIT_BYTES;
        Self {
            weights: SharedRows { rows: output_rows, chunk_bytes, chunks },
            scales_bytes_of_panel,
            scalings: geometry.quantization.map_or(0, |quantization| 1 + u64::from(quantization.has_minimum)),
            activations: SharedRows { rows, chunk_bytes: CHUNK_INPUTS * 2, chunks },
        }
    }

    /// Inputs of a stage.
    pub(super) fn inputs(self) -> u64 {
        self.weights.chunks * CHUNK_INPUTS
    }

    /// Byte at which scales start (`scaling` 0), or minima (1).
    pub(super) fn scales_at_bytes(self, geometry: &WarpGeometry, scaling: u64) -> u64 {
        let panels = self.weights.rows / geometry.panel_rows;
        self.weights.bytes() + scaling * panels * self.scales_bytes_of_panel
    }

    /// Byte at which activations start.
    pub(super) fn activations_at_bytes(self, geometry: &WarpGeometry) -> u64 {
        self.scales_at_bytes(geometry, self.scalings)
    }

    /// Bytes of the stage.
    pub(super) fn bytes(self, geometry: &WarpGeometry) -> u64 {
        self.activations_at_bytes(geometry) + self.activations.bytes()
    }
}

/// Where a thread's copies of a row come from.
#[derive(Clone, Copy)]
pub(super) struct Source<'k> {
    /// An address that other copies may share.
    start: Buffer<'k>,
    /// How far behind it the row begins.
    behind_bytes: u64,
    /// Whether there is such a row, where that is not certain; zeros stand for one that is not there.
    exists: Option<Val<'k>>,
}

/// The copies of one thread: what it brings of every stage.
pub(super) struct Copies<'k> {
    pub(super) geometry: WarpGeometry,
    pub(super) stage: Stage,
    /// Panel of each copy of weights, and the row in it, which is the same for all.
    pub(super) panels: Vec<Source<'k>>,
    pub(super) row_in_panel: Val<'k>,
    /// Panel of the thread's copy of scales, if the weight has any.
    pub(super) panel_of_scales: Option<Buffer<'k>>,
    /// Row of activations of each copy.
    pub(super) inputs: Vec<Source<'k>>,
}

impl<'k> Copies<'k> {
    /// Begins the copies of stage `number` of the row, to the shared memory from byte `to_bytes` on.
    pub(super) fn begin(&self, kernel: &Kernel<'k, '_>, number: Val<'k>, to_bytes: Val<'k>) {
        let thread = kernel.thread();
        self.copy_weights(kernel, number, to_bytes, thread);
        self.copy_scales(kernel, number, to_bytes, thread);
        let k = kernel.k;
        let rows = self.stage.activations;
        let (_, unit) = rows.first_copy(thread);
        let unit = number * k.int(rows.units()) + unit;
        let exists = self.exists(kernel, unit, self.geometry.columns * 2 / UNIT_BYTES, rows.units());
        let (place, step_bytes) = rows.destination(thread);
        let place = to_bytes + k.int(self.stage.activations_at_bytes(&self.geometry)) + place;
        for (input, copy) in self.inputs.iter().zip(0..) {
            let to = k.shared_address(place + k.int(copy as u64 * step_bytes));
            copy_unit(kernel, to, *input, unit * k.int(UNIT_BYTES), exists);
        }
    }

    /// Whether a row of `units` has unit number `unit`; None where stages fit the row.
    fn exists(&self, kernel: &Kernel<'k, '_>, unit: Val<'k>, units: u64, of_stage: u64) -> Option<Val<'k>> {
        let ends_within = !units.is_multiple_of(of_stage);
        ends_within.then(|| unit.compare(Compare::Less, kernel.k.int(units)))
    }

    /// First byte in a panel of the block of 32 units that `unit` is in, and how many units it has.
    fn block_of(&self, kernel: &Kernel<'k, '_>, unit: Val<'k>) -> (Val<'k>, Val<'k>) {
        let k = kernel.k;
        let units = self.geometry.units();
        let (whole, rest) = (units / BLOCK_UNITS, units % BLOCK_UNITS);
        let block = unit / k.int(BLOCK_UNITS);
        let of_block = if rest == 0 {
            k.int(BLOCK_UNITS)
        } else {
            block.compare(Compare::Less, k.int(whole)).select(k.int(BLOCK_UNITS), k.int(rest))
        };
        (block * k.int(self.geometry.block_bytes(BLOCK_UNITS)), of_block)
    }

    fn copy_weights(&self, kernel: &Kernel<'k, '_>, number: Val<'k>, to_bytes: Val<'k>, thread: Val<'k>) {
        let (k, rows) = (kernel.k, self.stage.weights);
        let first_unit = number * k.int(rows.units());
        let unit = first_unit + rows.first_copy(thread).1;
        let from = if self.geometry.quantization.is_some() {
            let (block_at, of_block) = self.block_of(kernel, first_unit);
            let unit_of_block = unit % k.int(BLOCK_UNITS);
            block_at + (self.row_in_panel * of_block + unit_of_block) * k.int(UNIT_BYTES)
        } else {
            unit * k.int(UNIT_BYTES)
        };
        let exists = self.exists(kernel, unit, self.geometry.units(), rows.units());
        let (place, step_bytes) = rows.destination(thread);
        for (panel, copy) in self.panels.iter().zip(0..) {
            let to = k.shared_address(to_bytes + place + k.int(copy as u64 * step_bytes));
            copy_unit(kernel, to, *panel, from, exists);
        }
    }

    /// Scales and minima lie behind the integers of their block; the first threads bring 16 bytes each.
    fn copy_scales(&self, kernel: &Kernel<'k, '_>, number: Val<'k>, to_bytes: Val<'k>, thread: Val<'k>) {
        let (k, geometry, stage) = (kernel.k, self.geometry, self.stage);
        let (Some(quantization), Some(panel)) = (geometry.quantization, self.panel_of_scales) else { return };
        let units = stage.scales_bytes_of_panel / UNIT_BYTES;
        let count = stage.weights.rows / geometry.panel_rows * units;
        k.when(thread.compare(Compare::Less, k.int(count)), || {
            let first_unit = number * k.int(stage.weights.units());
            let (block_at, of_block) = self.block_of(kernel, first_unit);
            let first_input = first_unit % k.int(BLOCK_UNITS) * k.int(geometry.unit_inputs());
            let group = first_input / k.int(quantization.group);
            let behind = group * k.int(geometry.scaling_bytes()) + thread % k.int(units) * k.int(UNIT_BYTES);
            let groups = (of_block * k.int(geometry.unit_inputs())).divide_up(quantization.group.into());
            let all_bytes = groups * k.int(geometry.scaling_bytes());
            let fits = geometry.units().is_multiple_of(stage.weights.units());
            let exists = (!fits).then(|| behind.compare(Compare::Less, all_bytes));
            let mut from = block_at + of_block * k.int(geometry.panel_rows * UNIT_BYTES) + behind;
            for scaling in 0..stage.scalings {
                let at_bytes = stage.scales_at_bytes(&geometry, scaling);
                let to = k.shared_address(to_bytes + thread * k.int(UNIT_BYTES) + k.int(at_bytes));
                copy_unit(kernel, to, Source { start: panel, behind_bytes: 0, exists: None }, from, exists);
                from = from + all_bytes;
            }
        });
    }

    /// The panel among a block's whose scales a thread brings.
    pub(super) fn panel_of_scales(stage: Stage, thread: Val<'k>, panel_rows: u64) -> Val<'k> {
        let k = thread.builder();
        let panel = thread / k.int((stage.scales_bytes_of_panel / UNIT_BYTES).max(1));
        panel.minimum(k.int(stage.weights.rows / panel_rows - 1))
    }

    /// The thread's row in its panels.
    pub(super) fn row_in_panel(stage: Stage, thread: Val<'k>, panel_rows: u64) -> Val<'k> {
        stage.weights.first_copy(thread).0 % thread.builder().int(panel_rows)
    }
}

/// Copies 16 bytes of a row, or writes zeros where it or these bytes do not exist.
fn copy_unit<'k>(
    kernel: &Kernel<'k, '_>,
    to: Val<'k>,
    from: Source<'k>,
    offset_bytes: Val<'k>,
    exists: Option<Val<'k>>,
) {
    let k = kernel.k;
    let exists = match (exists, from.exists) {
        (Some(first), Some(second)) => Some(k.both(first, second)),
        (first, second) => first.or(second),
    };
    let source = from.start.at_bytes(offset_bytes).at_bytes(k.int(from.behind_bytes));
    let bytes = exists
        .map(|exists| exists.select(k.int_of(Scalar::I32, UNIT_BYTES as i64), k.int_of(Scalar::I32, 0)));
    k.copy_16_bytes_in_background(to, source, bytes);
}

/// Whether rows of `columns` activations can be copied 16 bytes at a time.
pub(super) fn is_copied(element: Element, columns: u64) -> bool {
    element.bytes() == 2 && (columns * 2).is_multiple_of(UNIT_BYTES)
}

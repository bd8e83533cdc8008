//! Products of many rows on the matrix unit (`mma.sync`): what `matmul` and `expert_matmul` share.
//!
//! ```text
//! a block takes 128 output rows (with silu_multiply: 64 of the gate, 64 of the up projection)
//! and 32, 64 or 128 rows of activations; each of its 4 warps a part:
//!
//! for stage of the inputs:                             some stages ahead are on their way to shared memory
//!   wait for its copies, barrier
//!   begin the copies of a later stage                  into what the stage before used
//!   weights = the warp's output rows                   integers widened to 16-bit floats, exactly
//!   for 8 rows of activations, for 16 output rows:
//!     elements:  sum = weights · inputs + sum          m16n8k16
//!     quantized: part = weights · inputs               over 32 inputs of one group
//!                sum = scale · part + sum              in f32
//!                with minima: sum += minimum · Σ inputs    the products of a tile of ones
//! ```
//!
//! How much a block and a warp take: `tile_cut`.
//! Integers are widened by one warp of a block alone, since no other has the same output rows.

use qwen2c_request::Element;

use super::Kernel;
use super::functions::silu;
use super::tile_cut::{Cut, TILE_OUTPUT_ROWS, TILE_ROWS};
use super::tile_fragments::{PAIRS, load_inputs, load_weights, ones};
use super::tile_memory::{CHUNK_INPUTS, Copies};
use crate::builder::{Buffer, Compare, Val, WARP_THREADS};

/// Products of the matrix unit that a chunk of inputs takes.
const STEPS: usize = 2;

/// The rows of activations of a block.
pub(super) enum Inputs<'k, 'a> {
    /// One after the other from `first` on; `count` exist.
    Consecutive {
        /// The block's first row.
        first: Buffer<'k>,
        /// How many of the block's rows exist.
        count: Val<'k>,
    },
    /// Anywhere: where row number `row` begins. All exist.
    Listed(&'a dyn Fn(Val<'k>) -> Buffer<'k>),
}

/// One block's product.
pub(super) struct TileProduct<'k, 'r> {
    cut: Cut,
    kernel: &'r Kernel<'k, 'r>,
    column_block: Val<'k>,
    /// The thread's number among the eight that share four inputs, and among those four.
    tile_row: Val<'k>,
    quarter: Val<'k>,
    /// First output row and first row of activations of the warp.
    first_output_row: Val<'k>,
    first_row: Val<'k>,
}

impl<'k, 'r> TileProduct<'k, 'r> {
    /// The product of column block `column_block`.
    pub(super) fn new(kernel: &'r Kernel<'k, 'r>, cut: Cut, column_block: Val<'k>) -> Self {
        let k = kernel.k;
        let threads = k.int(WARP_THREADS);
        let (warp, lane) = (kernel.thread() / threads, kernel.thread() % threads);
        let warps_of_rows = k.int(cut.warps_of_rows);
        Self {
            cut,
            kernel,
            column_block,
            tile_row: lane / k.int(PAIRS as u64),
            quarter: lane % k.int(PAIRS as u64),
            first_output_row: warp / warps_of_rows * k.int(cut.output_tiles * TILE_OUTPUT_ROWS),
            first_row: warp % warps_of_rows * k.int(cut.row_tiles * TILE_ROWS),
        }
    }

    /// `[tile of rows, tile of output rows, 4]`: the thread's sums for a matrix.
    pub(super) fn sums(&self, matrix: Buffer<'k>, inputs: Inputs<'k, '_>) -> Vec<Val<'k>> {
        let (kernel, cut) = (self.kernel, self.cut);
        let k = kernel.k;
        let copies = self.copies(matrix, inputs);
        let (bytes, ahead) = (cut.stage.bytes(&cut.geometry), cut.stages - 1);
        let count = cut.stages_of_row();
        for stage in 0..ahead {
            if stage < count {
                copies.begin(kernel, k.int(stage), k.int(stage * bytes));
            }
            k.close_copy_group();
        }
        let mut carried = vec![k.float(0.0, 1); (cut.row_tiles * cut.output_tiles * 4) as usize];
        carried.extend([k.int(0), k.int(ahead * bytes)]);
        let mut carried = k.for_each(k.int(0), k.int(count), 1, &carried, |stage, carried| {
            let (sums, places) = carried.split_at(carried.len() - 2);
            let (place, free) = (places[0], places[1]);
            k.wait_for_copy_groups(ahead as u32 - 1);
            // All threads' copies are there, and all threads are done with the stage before.
            k.barrier();
            let next = stage + k.int(ahead);
            k.when(next.compare(Compare::Less, k.int(count)), || copies.begin(kernel, next, free));
            k.close_copy_group();
            let mut carried = self.add_stage(place, sums);
            let is_last = place.compare(Compare::Equal, k.int(ahead * bytes));
            carried.extend([is_last.select(k.int(0), place + k.int(bytes)), place]);
            carried
        });
        carried.truncate(carried.len() - 2);
        carried
    }

    fn copies(&self, matrix: Buffer<'k>, inputs: Inputs<'k, '_>) -> Copies<'k> {
        let Cut { geometry, stage, .. } = self.cut;
        let (k, thread) = (self.kernel.k, self.kernel.thread());
        let panel = |row: Val<'k>| self.cut.panel(matrix, self.column_block, row);
        let panel_of_scales = geometry.quantization.map(|_| {
            let number = Copies::panel_of_scales(stage, thread, geometry.panel_rows);
            panel(number * k.int(geometry.panel_rows))
        });
        // Tiles of both halves take turns: copies that are so many rows apart are of the same half.
        let row_bytes = geometry.panel_bytes() / (geometry.panel_rows * self.cut.halves);
        Copies {
            geometry,
            stage,
            panels: if self.cut.fits() {
                stage.weights.even_sources(thread, panel, row_bytes, None)
            } else {
                stage.weights.sources(thread, panel)
            },
            row_in_panel: Copies::row_in_panel(stage, thread, geometry.panel_rows),
            panel_of_scales,
            inputs: match inputs {
                Inputs::Consecutive { first, count } => {
                    let row = |row: Val<'k>| first.at(row * k.int(geometry.columns));
                    stage.activations.even_sources(thread, row, geometry.columns * 2, Some(count))
                }
                Inputs::Listed(row) => stage.activations.sources(thread, row),
            },
        }
    }

    /// Adds the products of the stage that lies at byte `place` of shared memory.
    fn add_stage(&self, place: Val<'k>, sums: &[Val<'k>]) -> Vec<Val<'k>> {
        let chunks = 0..self.cut.stage.weights.chunks;
        chunks.fold(sums.to_vec(), |sums, chunk| self.add_chunk(place, chunk, &sums))
    }

    fn add_chunk(&self, place: Val<'k>, chunk: u64, sums: &[Val<'k>]) -> Vec<Val<'k>> {
        let tiles = 0..self.cut.output_tiles;
        let weights: Vec<_> = tiles.clone().map(|tile| self.left_operands(place, chunk, tile)).collect();
        let scales: Vec<_> = tiles.clone().map(|tile| self.scales(place, chunk, tile, 0)).collect();
        let minima: Vec<_> = tiles.map(|tile| self.scales(place, chunk, tile, 1)).collect();
        let mut result = Vec::with_capacity(sums.len());
        for (tile, of_rows) in sums.chunks(weights.len() * 4).enumerate() {
            let inputs = self.right_operands(place, chunk, tile as u64);
            let input_sums = minima[0].map(|_| self.multiply(&self.ones(), inputs, self.zeros()));
            for (tile, sums) in of_rows.chunks(4).enumerate() {
                let sums = std::array::from_fn(|index| sums[index]);
                let mut sums = self.add_tile(&weights[tile], inputs, scales[tile], sums);
                if let (Some(minima), Some(inputs)) = (minima[tile], input_sums) {
                    sums = scaled(minima, inputs, sums);
                }
                result.extend(sums);
            }
        }
        result
    }

    fn zeros(&self) -> [Val<'k>; 4] {
        [self.kernel.k.float(0.0, 1); 4]
    }

    /// Left operands of a chunk that are all one.
    fn ones(&self) -> [[Val<'k>; 4]; STEPS] {
        [[ones(self.kernel.k, self.cut.element); 4]; STEPS]
    }

    /// Adds the products of a chunk.
    fn multiply(
        &self,
        weights: &[[Val<'k>; 4]; STEPS],
        inputs: [Val<'k>; PAIRS],
        sums: [Val<'k>; 4],
    ) -> [Val<'k>; 4] {
        (0..STEPS).fold(sums, |sums, step| {
            let right = [inputs[2 * step], inputs[2 * step + 1]];
            self.kernel.k.multiply_tiles(self.cut.element, weights[step], right, sums)
        })
    }

    /// Adds the products of one tile over a chunk.
    fn add_tile(
        &self,
        weights: &[[Val<'k>; 4]; STEPS],
        inputs: [Val<'k>; PAIRS],
        scales: Option<[Val<'k>; 2]>,
        sums: [Val<'k>; 4],
    ) -> [Val<'k>; 4] {
        match scales {
            Some(scales) => scaled(scales, self.multiply(weights, inputs, self.zeros()), sums),
            None => self.multiply(weights, inputs, sums),
        }
    }

    /// The thread's weights of a tile of output rows, for each product of a chunk. Its rows are 8 apart.
    fn left_operands(&self, place: Val<'k>, chunk: u64, tile: u64) -> [[Val<'k>; 4]; STEPS] {
        let (k, rows) = (self.kernel.k, self.cut.stage.weights);
        let row = self.first_output_row + self.tile_row;
        let thread_at = place + row * k.int(rows.chunk_bytes);
        let [first, second] = [0, TILE_OUTPUT_ROWS / 2].map(|offset| {
            let row = tile * TILE_OUTPUT_ROWS + offset;
            let at_bytes = rows.chunk_at_bytes(chunk) + row * rows.chunk_bytes;
            let row = k.shared_memory(Element::I32, 0).at_bytes(thread_at).at_bytes(k.int(at_bytes));
            load_weights(k, (&self.cut.geometry, self.cut.element), row, self.quarter)
        });
        std::array::from_fn(|step| {
            [first[2 * step], second[2 * step], first[2 * step + 1], second[2 * step + 1]]
        })
    }

    /// The thread's activations of a tile of rows.
    fn right_operands(&self, place: Val<'k>, chunk: u64, tile: u64) -> [Val<'k>; PAIRS] {
        let (k, rows) = (self.kernel.k, self.cut.stage.activations);
        let thread_at = place + (self.first_row + self.tile_row) * k.int(rows.chunk_bytes);
        let at_bytes = self.cut.stage.activations_at_bytes(&self.cut.geometry)
            + rows.chunk_at_bytes(chunk)
            + tile * TILE_ROWS * rows.chunk_bytes;
        let row = k.shared_memory(Element::I32, 0).at_bytes(thread_at).at_bytes(k.int(at_bytes));
        load_inputs(row, self.quarter)
    }

    /// The scales (`scaling` 0) or minima (1) of the thread's two output rows of a tile, if it has such.
    fn scales(&self, place: Val<'k>, chunk: u64, tile: u64, scaling: u64) -> Option<[Val<'k>; 2]> {
        let (k, cut) = (self.kernel.k, self.cut);
        let quantization = cut.geometry.quantization?;
        if scaling == 1 && !quantization.has_minimum {
            return None;
        }
        let group = chunk * CHUNK_INPUTS / u64::from(quantization.group);
        let of_panel = cut.stage.scales_bytes_of_panel;
        let panel_rows = cut.geometry.panel_rows;
        let first = self.first_output_row / k.int(panel_rows) * k.int(of_panel);
        let thread_at = place + first + self.tile_row * k.int(quantization.scale.bytes());
        Some([0, 1].map(|panel| {
            let panel = tile * TILE_OUTPUT_ROWS / panel_rows + panel;
            let at_bytes = cut.stage.scales_at_bytes(&cut.geometry, scaling)
                + panel * of_panel
                + group * cut.geometry.scaling_bytes();
            let scales = k.shared_memory(quantization.scale, 0).at_bytes(thread_at);
            scales.at_bytes(k.int(at_bytes)).load(k.int(0), 1)
        }))
    }

    /// Columns of the thread's results.
    pub(super) fn columns(&self) -> Vec<Val<'k>> {
        let k = self.kernel.k;
        let tiles = (0..self.cut.output_tiles).step_by(self.cut.halves as usize);
        tiles
            .flat_map(|tile| [0, TILE_OUTPUT_ROWS / 2].map(|offset| tile * TILE_OUTPUT_ROWS + offset))
            .map(|row| {
                let row = self.first_output_row + self.tile_row + k.int(row);
                self.cut.column_of(self.column_block, row).0
            })
            .collect()
    }

    /// `body(row of the block, one result for each column)` for the thread's rows.
    pub(super) fn for_each_row(&self, sums: &[Val<'k>], body: impl Fn(Val<'k>, &dyn Fn(usize) -> Val<'k>)) {
        let (k, cut) = (self.kernel.k, self.cut);
        for (tile, sums) in sums.chunks(cut.output_tiles as usize * 4).enumerate() {
            for index in 0..2 {
                let row = self.first_row + k.int(tile as u64 * TILE_ROWS + index as u64);
                let row = row + self.quarter * k.int(2);
                body(row, &|column| {
                    let place = column / 2 * cut.halves as usize * 4 + column % 2 * 2 + index;
                    if cut.halves == 2 { silu(k, sums[place]) * sums[place + 4] } else { sums[place] }
                });
            }
        }
    }

    /// `body(column's number)` for every of the thread's columns that exists.
    pub(super) fn for_each_column(&self, columns: &[Val<'k>], body: impl Fn(usize)) {
        let k = self.kernel.k;
        for (number, column) in columns.iter().enumerate() {
            if self.cut.fits() {
                body(number);
            } else {
                k.when(column.compare(Compare::Less, k.int(self.cut.columns())), || body(number));
            }
        }
    }
}

/// `scales · values + sums`; the first two belong to one output row, the others to the next.
fn scaled<'k>(scales: [Val<'k>; 2], values: [Val<'k>; 4], sums: [Val<'k>; 4]) -> [Val<'k>; 4] {
    std::array::from_fn(|index| scales[index / 2].multiply_add(values[index], sums[index]))
}

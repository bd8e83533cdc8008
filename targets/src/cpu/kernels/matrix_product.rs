//! The inner product on the matrix unit: blocks of 16 rows of activations times pairs of panels.
//!
//! ```text
//! a tile: up to 16 blocks of rows, up to 8 pairs of panels (gate and up, or neighbours)
//! for 512 inputs (1024 of integers):
//!   for pair:                                            its weights stay in the first-level cache
//!     for two blocks of rows:                            activations come from the second level
//!       sums[block, panel] += rows · panel               on the matrix unit, 4 registers of sums
//!       the next pair's weights are asked for
//!   behind the last inputs: epilogue of each row
//! ```
//!
//! A panel's dwords are what the unit wants of its right operand, so that weights in bf16 are multiplied
//! as they lie in memory; `matrix_integer_product` says what integers need. A step of the loop over inputs
//! loads 2 registers of rows and 2 of weights and multiplies each by each: 4 KB loaded for 4 products of 16
//! cycles, as much as one level of cache gives in that time, and half of it lies in the nearest.
//!
//! Sums rest in an array of the worker's stack between two blocks of inputs (256 KB at most), so that they
//! do not leave the second level. With as many columns as rows in a tile, the bytes that reach that level
//! are the fewest: 256 rows by 256 columns ask for 1 KB of bf16 a 128 cycles.
//!
//! Rows before a block's first one are computed once more where less than 16 are left: they are read, not
//! written, so that no register needs fewer rows.

use qwen2c_request::{Element, KernelRequest, QuantizedRow};

use super::Kernel;
use super::matrix_integer_product::Integers;
use super::matrix_order::{STEP_INPUTS, is_in_matrix_order};
use crate::builder::{Buffer, Compare, KernelBuilder, MatrixShape, Val};
use crate::cpu::instructions::Instructions;
use crate::cpu::layout::PanelGeometry;

/// Rows of a register: of a block.
pub(super) const BLOCK_ROWS: u64 = 16;

/// Sums in a row of a register: of a panel.
pub(super) const BLOCK_LANES: u32 = 16;

/// Bytes of a block of 16 by 16 sums.
pub(super) const BLOCK_BYTES: u64 = 1024;

/// A full register: sums, or 16 rows of 16 dwords.
pub(super) const WHOLE: MatrixShape = MatrixShape { rows: 16, row_bytes: 64 };

/// Most pairs of panels of a tile.
const MOST_PAIRS: u64 = 8;

/// Bytes of activations of a tile that leave room for weights and sums in the second-level cache.
const NEAR_BYTES: u64 = 1 << 20;

/// Steps between two visits of the same sums.
const BLOCK_STEPS: u64 = 16;

/// Whether the matrix unit multiplies the rows of this request where there are enough of them.
pub(super) fn has_matrix_product(
    instructions: Instructions,
    request: &KernelRequest,
    geometry: PanelGeometry,
) -> bool {
    let activations = request.inputs[0].element;
    let multiplies_integers = geometry
        .quantization
        .is_some_and(|quantization| activations.integer_group() == Some(quantization.group));
    instructions.matrix.is_some()
        && request.max_rows >= BLOCK_ROWS
        && (multiplies_integers || is_in_matrix_order(instructions, activations, geometry))
}

/// How the columns of a result are handed out: in pairs of panels, several of which make a tile.
#[derive(Clone, Copy)]
pub(super) struct ColumnPairs {
    /// Panels, or panels of each half.
    panels: u64,
    /// Gate and up make a pair; otherwise neighbours do.
    has_halves: bool,
    /// Pairs of panels.
    pairs: u64,
    /// Pairs of a tile.
    pub(super) of_tile: u64,
}

impl ColumnPairs {
    /// For tiles of up to `rows`, whose activations have `row_bytes` each.
    ///
    /// Where these stay near, few columns cost nothing and many tiles keep all workers busy to the end.
    pub(super) fn new(geometry: PanelGeometry, rows: u64, row_bytes: u64) -> Self {
        let has_halves = geometry.separate_halves;
        let panels = if has_halves { geometry.panels() / 2 } else { geometry.panels() };
        let pairs = if has_halves { panels } else { panels.div_ceil(2) };
        let tiles = if rows * row_bytes <= NEAR_BYTES { 32 } else { 8 };
        Self { panels, has_halves, pairs, of_tile: (pairs / tiles).clamp(1, MOST_PAIRS) }
    }

    /// Number of tiles.
    pub(super) fn tiles(self) -> u64 {
        self.pairs.div_ceil(self.of_tile)
    }

    /// First pair of a tile, and the end.
    pub(super) fn range<'k>(self, tile: Val<'k>) -> (Val<'k>, Val<'k>) {
        let k = tile.builder();
        let first = tile * k.int(self.of_tile);
        (first, (first + k.int(self.of_tile)).minimum(k.int(self.pairs)))
    }

    /// One panel of a pair. An odd panel at the end is its own neighbour.
    pub(super) fn panel<'k>(self, pair: Val<'k>, half: Val<'k>) -> Val<'k> {
        let k = pair.builder();
        if self.has_halves {
            pair + half * k.int(self.panels)
        } else {
            (pair * k.int(2) + half).minimum(k.int(self.panels - 1))
        }
    }

    /// Calls `body` with the panels of a pair that make a result together, and which half the first is.
    pub(super) fn for_each_result<'k>(self, pair: Val<'k>, body: impl FnOnce(Val<'k>, &[Val<'k>])) {
        let k = pair.builder();
        if self.has_halves {
            body(k.int(0), &[self.panel(pair, k.int(0)), self.panel(pair, k.int(1))]);
            return;
        }
        k.repeat(k.int(0), self.panels_in(pair), 1, |half| body(half, &[self.panel(pair, half)]));
    }

    /// Panels of a pair that exist.
    fn panels_in<'k>(self, pair: Val<'k>) -> Val<'k> {
        let k = pair.builder();
        if self.has_halves { k.int(2) } else { (k.int(self.panels) - pair * k.int(2)).minimum(k.int(2)) }
    }
}

/// Rows of activations: the first of each block, and how far apart they lie.
pub(super) struct BlockRows<'k, F> {
    /// Number of blocks.
    pub(super) blocks: Val<'k>,
    /// First row of a block.
    pub(super) first: F,
    /// Bytes from one row to the next.
    pub(super) stride_bytes: u64,
}

/// Where a block of inputs stands in the tile.
#[derive(Clone, Copy)]
pub(super) struct Place<'k> {
    /// Number of the block of inputs.
    pub(super) inputs: Val<'k>,
    /// The pair of panels, and the first of the tile.
    pub(super) pair: Val<'k>,
    first_pair: Val<'k>,
    last_pair: Val<'k>,
}

impl<'k> Place<'k> {
    /// What follows: the next pair, or the first with the next inputs.
    pub(super) fn next(self) -> (Val<'k>, Val<'k>) {
        let one = self.pair.builder().int(1);
        let next = self.pair + one;
        let is_same = next.compare(Compare::Less, self.last_pair);
        (is_same.select(self.inputs, self.inputs + one), is_same.select(next, self.first_pair))
    }
}

/// A product on the matrix unit under construction.
pub(super) struct MatrixProduct<'k> {
    /// How columns are handed out.
    pub(super) pairs: ColumnPairs,
    pub(super) geometry: PanelGeometry,
    /// Panels of one matrix.
    pub(super) panels: Buffer<'k>,
    /// `[pair of the tile, half, block, row, lane]`.
    sums: Buffer<'k>,
    /// A block of zeros.
    zeros: Buffer<'k>,
    /// Most blocks of rows of a tile.
    most_blocks: u64,
    /// What quantized weights need.
    integers: Option<Integers<'k>>,
}

impl<'k> MatrixProduct<'k> {
    /// For tiles of up to `rows`; makes arrays on the stack, and so must stand at the start of a function.
    pub(super) fn new(kernel: &Kernel<'k, '_>, geometry: PanelGeometry, rows: u64) -> Self {
        let pairs = column_pairs(kernel.request, geometry, rows);
        let most_blocks = rows.div_ceil(BLOCK_ROWS);
        let extents = QuantizedRow::new(kernel.input_type(0).element, geometry.columns);
        let sums = pairs.of_tile * 2 * most_blocks * BLOCK_BYTES;
        Self {
            pairs,
            geometry,
            panels: kernel.weight(0),
            sums: kernel.k.stack_array(Element::F32, sums / 4),
            zeros: kernel.k.stack_array(Element::F32, BLOCK_BYTES / 4),
            most_blocks,
            integers: geometry
                .quantization
                .zip(extents)
                .map(|(quantization, extents)| Integers::new(kernel, quantization, extents)),
        }
    }

    /// Multiplies the rows with the panels from `first_byte` on of the pairs of tile `tile`, and calls
    /// `finish` for each pair when its sums are complete.
    pub(super) fn multiply(
        &self,
        kernel: &Kernel<'k, '_>,
        first_byte: Val<'k>,
        tile: Val<'k>,
        rows: &BlockRows<'k, impl Fn(Val<'k>) -> Buffer<'k>>,
        finish: impl FnOnce(Val<'k>, &dyn Fn(Val<'k>, Val<'k>) -> Buffer<'k>),
    ) {
        let k = kernel.k;
        for row in 0..BLOCK_ROWS {
            self.zeros.store(k.int(row * u64::from(BLOCK_LANES)), k.float(0.0, BLOCK_LANES));
        }
        let (first_pair, last_pair) = self.pairs.range(tile);
        let panels = self.panels.at_bytes(first_byte);
        let blocks_of_inputs = match &self.integers {
            Some(integers) => integers.blocks_of_inputs(self.geometry.columns),
            None => self.geometry.columns.div_ceil(STEP_INPUTS * BLOCK_STEPS),
        };
        k.repeat(k.int(0), k.int(blocks_of_inputs), 1, |inputs| {
            k.repeat(first_pair, last_pair, 1, |pair| {
                let place = Place { inputs, pair, first_pair, last_pair };
                match &self.integers {
                    Some(integers) => self.add_integers(kernel, integers, panels, place, rows),
                    None => self.add_bf16(kernel, panels, place, rows),
                }
                let is_last = inputs.compare(Compare::Greater, k.int(blocks_of_inputs) - k.int(2));
                let sums = |half: Val<'k>, block: Val<'k>| self.sums_of(place, half, block);
                k.when_else(is_last, || finish(pair, &sums), || {});
            });
        });
    }

    /// The sums of one block of rows and one panel of a pair.
    pub(super) fn sums_of(&self, place: Place<'k>, half: Val<'k>, block: Val<'k>) -> Buffer<'k> {
        let k = block.builder();
        let panel = (place.pair - place.first_pair) * k.int(2) + half;
        self.sums.at_bytes((panel * k.int(self.most_blocks) + block) * k.int(BLOCK_BYTES))
    }

    /// What the sums of a block start from: zeros where nothing was added before, `earlier` of a number that
    /// goes up, then what they were.
    pub(super) fn start_of(&self, earlier: Val<'k>, sums: Buffer<'k>) -> Buffer<'k> {
        let is_first = earlier.compare(Compare::Less, earlier.builder().int(1));
        Buffer { pointer: is_first.select(self.zeros.pointer, sums.pointer), element: sums.element }
    }

    /// Adds the products of bf16 weights of one block of inputs and one pair of panels.
    fn add_bf16(
        &self,
        kernel: &Kernel<'k, '_>,
        panels: Buffer<'k>,
        place: Place<'k>,
        rows: &BlockRows<'k, impl Fn(Val<'k>) -> Buffer<'k>>,
    ) {
        let k = kernel.k;
        let halves = [k.int(0), k.int(1)];
        let panels_from = |inputs: Val<'k>, pair: Val<'k>| {
            let at = |half| self.pairs.panel(pair, half) * k.int(self.geometry.panel_bytes());
            let inside = inputs * k.int(BLOCK_STEPS * BLOCK_BYTES);
            halves.map(|half| panels.at_bytes(at(half) + inside))
        };
        let (next_inputs, next_pair) = place.next();
        let first_step = place.inputs * k.int(BLOCK_STEPS);
        let steps = (k.int(self.geometry.columns / STEP_INPUTS) - first_step).minimum(k.int(BLOCK_STEPS));
        let step = Bf16Steps {
            steps,
            panels: panels_from(place.inputs, place.pair),
            next: panels_from(next_inputs, next_pair),
            stride: k.int(rows.stride_bytes),
        };
        let multiply = |blocks: &[Val<'k>]| {
            let of_rows: Vec<Buffer<'k>> = blocks
                .iter()
                .map(|block| (rows.first)(*block).at_bytes(first_step * k.int(STEP_INPUTS * 2)))
                .collect();
            let of_sums: Vec<Buffer<'k>> = blocks
                .iter()
                .flat_map(|block| halves.map(|half| self.sums_of(place, half, *block)))
                .collect();
            let row_bytes = k.int(WHOLE.row_bytes);
            let starts: Vec<Val<'k>> = of_sums
                .iter()
                .map(|sums| self.start_of(place.inputs, *sums).load_matrix(WHOLE, row_bytes))
                .collect();
            let products = step.multiply(kernel, blocks[0], &of_rows, &starts);
            for (sums, product) in of_sums.iter().zip(products) {
                sums.store_matrix(WHOLE, row_bytes, product);
            }
        };
        let whole = k.whole_chunks(rows.blocks, 2);
        k.repeat(k.int(0), whole, 2, |block| multiply(&[block, block + k.int(1)]));
        k.repeat(whole, rows.blocks, 1, |block| multiply(&[block]));
    }
}

/// The inner loop of bf16.
struct Bf16Steps<'k> {
    steps: Val<'k>,
    panels: [Buffer<'k>; 2],
    /// Those that come next.
    next: [Buffer<'k>; 2],
    /// Bytes from one row of activations to the next.
    stride: Val<'k>,
}

impl<'k> Bf16Steps<'k> {
    /// The sums `[block][panel]` that start from `starts`.
    fn multiply(
        &self,
        kernel: &Kernel<'k, '_>,
        block: Val<'k>,
        rows: &[Buffer<'k>],
        starts: &[Val<'k>],
    ) -> Vec<Val<'k>> {
        let k = kernel.k;
        let Some(instructions) = kernel.instructions.matrix else { return starts.to_vec() };
        // Two blocks of rows ask for two lines of each panel a step: 16 blocks for all of them.
        let asked = block / k.int(2) * self.steps;
        k.for_each(k.int(0), self.steps, 1, starts, |step, sums| {
            let x = rows.iter().map(|rows| {
                let rows = rows.at_bytes(step * k.int(WHOLE.row_bytes));
                rows.load_streamed_matrix(WHOLE, self.stride)
            });
            let x: Vec<Val<'k>> = x.collect();
            let weights = self.panels.map(|panel| {
                panel.at_bytes(step * k.int(BLOCK_BYTES)).load_matrix(WHOLE, k.int(WHOLE.row_bytes))
            });
            let line = (asked + step) * k.int(2 * LINE_BYTES);
            for next in &self.next {
                ask_for_lines(k, *next, line);
            }
            let products = x.iter().flat_map(|x| weights.iter().map(move |weights| (x, weights)));
            let products = products.zip(sums).map(|((x, weights), sum)| {
                sum.add_matrix_product(instructions.bf16, (*x, WHOLE), (*weights, WHOLE))
            });
            products.collect()
        })
    }
}

/// Bytes of a cache line.
pub(super) const LINE_BYTES: u64 = 64;

/// Asks for two lines from `first_byte` on.
fn ask_for_lines<'k>(k: &'k KernelBuilder<'k>, buffer: Buffer<'k>, first_byte: Val<'k>) {
    for line in 0..2 {
        buffer.at_bytes(first_byte + k.int(line * LINE_BYTES)).prefetch();
    }
}

/// Bytes from one row of activations to the next.
pub(super) fn row_bytes(activations: Element, columns: u64) -> u64 {
    activations.row_bytes(columns)
}

/// How columns are handed out for tiles of up to `rows`.
pub(super) fn column_pairs(request: &KernelRequest, geometry: PanelGeometry, rows: u64) -> ColumnPairs {
    ColumnPairs::new(geometry, rows, row_bytes(request.inputs[0].element, geometry.columns))
}

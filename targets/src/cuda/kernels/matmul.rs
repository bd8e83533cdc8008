//! `matmul`: rows of activations times a matrix, with its epilogues.
//!
//! ```text
//! a warp takes a task: some output rows (with silu_multiply: of the gate and of the up projection)
//!   several warps share the inputs of a task where there are few tasks
//!   one row: every block has x in shared memory         `staged_row`, with norm `normalized_row`
//!   sums = weights · x                                  `unit_product`
//! each thread finishes one result: + bias, + residual, or silu(gate) · up
//! ```
//!
//! Many rows go to the matrix unit instead where it serves their types: `prompt_matmul`.

use qwen2c_request::{Element, KernelRequest, Operation, Unservable, WeightLayout, WeightType};

use super::functions::silu;
use super::tile_cut::Cut;
use super::unit_product::{InputRow, Panel, UnitProduct};
use super::{
    BLOCKS_FOR_MANY_REGISTERS, Kernel, REDUCTION_BYTES, Shape, normalized_row, prompt_matmul, staged_row,
};
use crate::builder::{Buffer, Compare, Val, WARP_THREADS};
use crate::cuda::layout::{BLOCK_UNITS, UNIT_BYTES, WarpGeometry};

/// Warps of a block.
const WARPS: u64 = 4;

/// Threads of a block.
const THREADS: u64 = WARPS * WARP_THREADS as u64;

/// Output rows that a warp takes of a matrix of elements.
const ELEMENT_ROWS: u64 = 4;

/// Rows of a panel of a quantized weight: as many f16 scales as a thread loads at once.
const QUANTIZED_ROWS: u32 = 8;

/// Sums that a thread holds: output rows times rows of activations. More would not fit its registers.
const MOST_SUMS: u64 = 32;

/// Rows of activations that a warp multiplies with a weight once it has it.
const ROWS_SIDE_BY_SIDE: u64 = 4;

/// Fewer tasks are shared out to several warps each: 16 for each of 108 multiprocessors.
const TASKS_WANTED: u64 = 16 * 108;

/// Output rows of both halves that a warp takes of a product of one row. 16 bytes of each are under way for every
/// thread at once, 32 KiB for a block, where a multiprocessor of an A100 needs 13 KiB to keep its memory busy (2039
/// GB/s for 700 ns) and one of an H200 25 KiB.
const MOST_ROWS_OF_WARP: u64 = 16;

/// Blocks that a product of one row keeps, however many rows each of its warps could take: one for each
/// multiprocessor of an A100. A block asks for the inputs once, so that fewer blocks ask for less.
const FEWEST_BLOCKS: u64 = 108;

/// Blocks that take a large product round by round: those of an H100's 132 multiprocessors have all something
/// to do, and those of a B200's 148.
const BLOCKS_IN_ROUNDS: u64 = 144;

/// Integers need so many times the blocks: ten instructions for four bytes of them would have the memory wait.
/// With two warps on each scheduler, one's loads are under way while the other computes.
const BLOCKS_OF_INTEGERS: u64 = 2;

/// The layout that products read.
pub(in crate::cuda) fn layout_of(weight: &WeightType, separate_halves: bool) -> WeightLayout {
    let rows = if weight.quantization.is_some() { QUANTIZED_ROWS } else { 1 };
    WeightLayout::WarpPanels { rows, separate_halves }
}

/// How a product is cut into tasks for warps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tasks {
    /// Panels of one half (or of all) that a task takes.
    pub(super) panels: u64,
    /// Output rows of a task, of one half.
    pub(super) rows: u64,
    /// Tasks of one matrix.
    pub(super) count: u64,
    /// Warps that share the inputs of a task.
    pub(super) split: u64,
    /// Rows that are combined: gate and up, or what a rotation mixes.
    pub(super) halves: u64,
    /// Panels of a half: of the whole matrix, or of each head of it.
    pub(super) half_panels: u64,
    /// Tasks that a warp takes one after another.
    pub(super) rounds: u64,
}

impl Tasks {
    /// How a matrix of `geometry` is cut; `can_split` where warps may share inputs.
    pub(super) fn new(geometry: WarpGeometry, can_split: bool) -> Self {
        let halves = if geometry.separate_halves { 2 } else { 1 };
        Self::of_halves(geometry, halves, geometry.panels() / halves, can_split)
    }

    /// How the product of a request is cut.
    pub(super) fn of_product(request: &KernelRequest, geometry: WarpGeometry) -> Self {
        let tasks = Self::new(geometry, true);
        if !is_alone(request) {
            return tasks;
        }
        let tasks = tasks.widened(geometry, 1);
        // Parts of one round would have to wait for those of the round before.
        let at_once = warps_of(geometry, BLOCKS_IN_ROUNDS);
        let rounds = if tasks.split == 1 { tasks.count / at_once } else { 1 };
        Self { rounds: rounds.max(1), ..tasks }
    }

    /// How a product is cut that needs both halves of heads at once, `half_rows` each, whole panels.
    pub(super) fn of_heads(request: &KernelRequest, geometry: WarpGeometry, half_rows: u64) -> Self {
        let tasks = Self::of_halves(geometry, 2, half_rows / geometry.panel_rows, true);
        if is_alone(request) { tasks.widened(geometry, 1) } else { tasks }
    }

    /// More rows for each warp, and the same bits, while warps of `products` products are enough.
    pub(super) fn widened(mut self, geometry: WarpGeometry, products: u64) -> Self {
        while 2 * self.rows * self.halves <= MOST_ROWS_OF_WARP
            && self.half_panels.is_multiple_of(2 * self.panels)
            && self.count / 2 * self.split * products >= warps_of(geometry, FEWEST_BLOCKS)
        {
            self.panels *= 2;
            self.rows *= 2;
            self.count /= 2;
        }
        self
    }

    fn of_halves(geometry: WarpGeometry, halves: u64, half_panels: u64, can_split: bool) -> Self {
        let panels = if geometry.panel_rows == 1 { ELEMENT_ROWS / halves } else { 1 };
        let count = (geometry.panels() / halves).div_ceil(panels);
        let blocks = geometry.units().div_ceil(BLOCK_UNITS);
        let mut split = 1;
        while can_split && split < WARPS && count * split < TASKS_WANTED && split * 2 <= blocks {
            split *= 2;
        }
        let rows = panels * geometry.panel_rows;
        Self { panels, rows, count, split, halves, half_panels, rounds: 1 }
    }

    /// Blocks of threads.
    pub(super) fn blocks(self) -> u64 {
        (self.count * self.split).div_ceil(WARPS * self.rounds)
    }

    /// Shared memory for what the warps of a task found.
    fn parts_bytes(self) -> u64 {
        REDUCTION_BYTES + self.halves * THREADS * 4
    }

    /// Place of a panel of the first half among all panels, from its place among those of first halves.
    fn first_panel<'k>(self, geometry: WarpGeometry, place: Val<'k>) -> Val<'k> {
        if self.half_panels * self.halves == geometry.panels() {
            return place;
        }
        // In front of it are as many panels of second halves as of first ones in whole heads.
        let k = place.builder();
        let half_panels = k.int(self.half_panels);
        place + place / half_panels * half_panels
    }

    /// The task of the calling warp in a round, and which part of its inputs.
    fn of_warp<'k>(self, kernel: &Kernel<'k, '_>, round: Val<'k>) -> (Val<'k>, Val<'k>) {
        let k = kernel.k;
        let warp = kernel.thread() / k.int(WARP_THREADS);
        let block = kernel.block() % k.int(self.blocks());
        let place = (round * k.int(self.blocks()) + block) * k.int(WARPS) + warp;
        (place / k.int(self.split), place % k.int(self.split))
    }

    /// The column, of the first half, that the calling thread has a result of where it has one.
    pub(super) fn column<'k>(self, kernel: &Kernel<'k, '_>, round: Val<'k>, inputs: u64) -> Val<'k> {
        let k = kernel.k;
        let lane = kernel.thread() % k.int(WARP_THREADS);
        self.of_warp(kernel, round).0 * k.int(self.rows) + lane / k.int(inputs)
    }
}

/// Warps of `blocks` where the weight has elements.
fn warps_of(geometry: WarpGeometry, blocks: u64) -> u64 {
    WARPS * blocks * if geometry.quantization.is_some() { BLOCKS_OF_INTEGERS } else { 1 }
}

/// Whether blocks have one row of activations.
fn is_alone(request: &KernelRequest) -> bool {
    request.max_rows == 1 || request.operation.norm().is_some()
}

/// Rows of activations that a warp takes together.
pub(super) fn rows_side_by_side(request: &KernelRequest, tasks: Tasks) -> u64 {
    let most = if is_alone(request) { 1 } else { ROWS_SIDE_BY_SIDE };
    most.min(MOST_SUMS / (tasks.rows * tasks.halves))
}

/// Refuses norms of rows that a block cannot hold.
pub(in crate::cuda) fn check(request: &KernelRequest) -> Result<(), Unservable> {
    normalized_row::check(request)
}

pub(super) fn geometry_of(request: &KernelRequest, layouts: &[WeightLayout]) -> WarpGeometry {
    match layouts[0] {
        WeightLayout::WarpPanels { rows, separate_halves } => {
            WarpGeometry::new(&request.weights[0], rows, separate_halves)
        }
        _ => unreachable!("`choose` offers products warp panels alone"),
    }
}

/// Blocks of four warps, or of what the matrix unit takes.
pub(super) fn shape(request: &KernelRequest, layouts: &[WeightLayout]) -> Shape {
    if let Some(cut) = Cut::new(request, layouts) {
        return prompt_matmul::shape(cut);
    }
    let geometry = geometry_of(request, layouts);
    shape_of(request, geometry, Tasks::of_product(request, geometry))
}

/// Blocks for tasks of warps.
pub(super) fn shape_of(request: &KernelRequest, geometry: WarpGeometry, tasks: Tasks) -> Shape {
    let is_wide = request.max_rows == 1 && tasks.rows * tasks.halves == MOST_ROWS_OF_WARP;
    Shape {
        blocks: tasks.blocks(),
        rows_per_block: rows_side_by_side(request, tasks),
        threads: THREADS,
        shared_bytes: shared_bytes(request, geometry, tasks),
        blocks_at_once: is_wide.then_some(BLOCKS_FOR_MANY_REGISTERS),
    }
}

/// Shared memory of a block: for what the warps of a task found, and for the row where it stands there.
pub(super) fn shared_bytes(request: &KernelRequest, geometry: WarpGeometry, tasks: Tasks) -> u64 {
    let has_row = request.operation.norm().is_some() || is_staged(request, geometry, tasks);
    tasks.parts_bytes() + if has_row { staged_row::shared_bytes(geometry) } else { 0 }
}

/// Whether a block brings its one row to shared memory as it is. Warps that share the inputs of one task ask for
/// each of them once anyway.
fn is_staged(request: &KernelRequest, geometry: WarpGeometry, tasks: Tasks) -> bool {
    let is_listed = matches!(request.operation, Operation::ExpertMatmul { grouped: true, .. });
    let has_one_row = request.max_rows == 1 && !is_listed;
    has_one_row && tasks.split < WARPS && staged_row::fits(&request.inputs[0], geometry)
}

/// Some output rows of a few rows of activations.
pub(super) fn body(kernel: &Kernel<'_, '_>) {
    if let Some(cut) = Cut::new(kernel.request, kernel.layouts) {
        prompt_matmul::body(kernel, cut);
        return;
    }
    let geometry = geometry_of(kernel.request, kernel.layouts);
    multiply_rows(kernel, geometry, Tasks::of_product(kernel.request, geometry), |row, results| {
        finish(kernel, row, results)
    });
}

/// Multiplies some rows of activations with some output rows; `finish(row, results)` of those that exist.
pub(super) fn multiply_rows<'k>(
    kernel: &Kernel<'k, '_>,
    geometry: WarpGeometry,
    tasks: Tasks,
    finish: impl Fn(Val<'k>, &Results<'k>),
) {
    let k = kernel.k;
    let side_by_side = rows_side_by_side(kernel.request, tasks);
    let first_row = kernel.row() * k.int(side_by_side);
    let last_row = kernel.rows - k.int(1);
    let columns = k.int(geometry.columns);
    // Rows that do not exist are the last one again, and are not stored.
    let inputs: Vec<InputRow<'_>> = (0..side_by_side)
        .map(|row| kernel.input(0).at((first_row + k.int(row)).minimum(last_row) * columns))
        .map(|row| input_row(kernel, (geometry, tasks), kernel.weight(0), row))
        .collect();
    let multiply_task = |round: Val<'k>| {
        let results = multiply(kernel, (geometry, tasks), (kernel.weight(0), round), &inputs);
        let row = first_row + results.input;
        let exists = k.both(results.exists, row.compare(Compare::Less, kernel.rows));
        k.when(exists, || finish(row, &results));
    };
    if tasks.rounds == 1 {
        multiply_task(k.int(0));
    } else {
        k.repeat(k.int(0), k.int(tasks.rounds), 1, multiply_task);
    }
}

/// Row `x` of activations as the block's products with a matrix that begins at `matrix` read it.
pub(super) fn input_row<'k>(
    kernel: &Kernel<'k, '_>,
    (geometry, tasks): (WarpGeometry, Tasks),
    matrix: Buffer<'k>,
    x: Buffer<'k>,
) -> InputRow<'k> {
    let at_bytes = tasks.parts_bytes();
    if kernel.request.operation.norm().is_some() {
        prefetch(kernel, (geometry, tasks), matrix);
        normalized_row::normalize(kernel, geometry, x, at_bytes)
    } else if is_staged(kernel.request, geometry, tasks) {
        let row = staged_row::copy(kernel, geometry, x, at_bytes);
        prefetch(kernel, (geometry, tasks), matrix);
        row.arrived(kernel)
    } else {
        InputRow::Plain(x)
    }
}

/// Asks for the warp's first weights, which come while the row is brought to shared memory.
fn prefetch<'k>(kernel: &Kernel<'k, '_>, (geometry, tasks): (WarpGeometry, Tasks), matrix: Buffer<'k>) {
    let k = kernel.k;
    let lane = kernel.thread() % k.int(WARP_THREADS);
    let (task, part) = tasks.of_warp(kernel, k.int(0));
    // What a last block has less than 32 units of lies elsewhere, and is little.
    k.when(part.compare(Compare::Less, k.int(geometry.units() / BLOCK_UNITS)), || {
        let start = part * k.int(geometry.block_bytes(BLOCK_UNITS)) + lane * k.int(UNIT_BYTES);
        for panel in panels(geometry, tasks, matrix, task) {
            for row in 0..geometry.panel_rows {
                k.prefetch_to_shared_cache(panel.at(start, row * BLOCK_UNITS * UNIT_BYTES));
            }
        }
    });
}

/// The panels of a task of a matrix that begins at `matrix`, those of the first half first.
fn panels<'k>(geometry: WarpGeometry, tasks: Tasks, matrix: Buffer<'k>, task: Val<'k>) -> Vec<Panel<'k>> {
    let k = task.builder();
    let last_panel = geometry.panels() / tasks.halves - 1;
    let panel_bytes = geometry.panel_bytes();
    let start = |place: Val<'k>| matrix.at_bytes(tasks.first_panel(geometry, place) * k.int(panel_bytes));
    let first = task * k.int(tasks.panels);
    let places = (0..tasks.halves).flat_map(|half| (0..tasks.panels).map(move |index| (half, index)));
    if tasks.half_panels.is_multiple_of(tasks.panels) {
        // Warps without a task ask for the last one's.
        let start = start(first.minimum(k.int(last_panel + 1 - tasks.panels)));
        return places
            .map(|(half, index)| Panel { start, at_bytes: (half * tasks.half_panels + index) * panel_bytes })
            .collect();
    }
    places
        .map(|(half, index)| {
            // Panels that do not exist are the last one again, and are not stored.
            let start = start((first + k.int(index)).minimum(k.int(last_panel)));
            Panel { start, at_bytes: half * tasks.half_panels * panel_bytes }
        })
        .collect()
}

/// One result for each of a warp's first threads.
pub(super) struct Results<'k> {
    /// The sums: one, or gate and up.
    pub(super) values: Vec<Val<'k>>,
    /// The result's column.
    pub(super) column: Val<'k>,
    /// Which of the rows of activations it belongs to.
    pub(super) input: Val<'k>,
    /// Whether the thread has a result.
    pub(super) exists: Val<'k>,
}

/// Multiplies the block's tasks in a round of a matrix that begins at `matrix`.
pub(super) fn multiply<'k>(
    kernel: &Kernel<'k, '_>,
    (geometry, tasks): (WarpGeometry, Tasks),
    (matrix, round): (Buffer<'k>, Val<'k>),
    inputs: &[InputRow<'k>],
) -> Results<'k> {
    let k = kernel.k;
    let lane = kernel.thread() % k.int(WARP_THREADS);
    let (task, part) = tasks.of_warp(kernel, round);
    let is_task = task.compare(Compare::Less, k.int(tasks.count));
    let panels = panels(geometry, tasks, matrix, task);
    let product = UnitProduct { geometry, panels: &panels, inputs, lane, split: (part, tasks.split) };
    let results = (tasks.rows as usize) * inputs.len();
    let zeros = vec![k.float(0.0, 1); results * tasks.halves as usize];
    let sums = k.values_when(is_task, &zeros, || product.sums(kernel));
    // Thread `row · inputs + input` of the warp takes that result.
    let mut values: Vec<Val<'k>> = sums
        .chunks(results)
        .map(|sums| {
            let first = sums[0];
            sums.iter().enumerate().skip(1).fold(first, |value, (index, sum)| {
                lane.compare(Compare::Equal, k.int(index as u64)).select(*sum, value)
            })
        })
        .collect();
    if tasks.split > 1 {
        values = add_parts(kernel, &values, part, tasks.split);
    }
    let input_count = k.int(inputs.len() as u64);
    let column = tasks.column(kernel, round, inputs.len() as u64);
    let columns = k.int(geometry.rows / tasks.halves);
    let has_result = k.both(lane.compare(Compare::Less, k.int(results as u64)), is_task);
    let is_first = part.compare(Compare::Equal, k.int(0));
    let exists = k.both(k.both(has_result, is_first), column.compare(Compare::Less, columns));
    Results { values, column, input: lane % input_count, exists }
}

/// Adds what the warps of a task found, in the order of their parts; valid for the first of them.
fn add_parts<'k>(kernel: &Kernel<'k, '_>, values: &[Val<'k>], part: Val<'k>, split: u64) -> Vec<Val<'k>> {
    let k = kernel.k;
    let threads = kernel.shape.threads;
    let thread = kernel.thread();
    let shared = |index: usize| k.shared_memory(Element::F32, REDUCTION_BYTES + index as u64 * threads * 4);
    for (index, value) in values.iter().enumerate() {
        shared(index).store(thread, *value);
    }
    k.barrier();
    let is_first = part.compare(Compare::Equal, k.int(0));
    k.values_when(is_first, values, || {
        (0..values.len())
            .map(|index| {
                (1..split).fold(values[index], |sum, other| {
                    let of_other = thread + k.int(other * u64::from(WARP_THREADS));
                    sum + shared(index).load(of_other, 1)
                })
            })
            .collect()
    })
}

/// Adds bias and residual, or combines the halves, and stores.
fn finish<'k>(kernel: &Kernel<'k, '_>, row: Val<'k>, results: &Results<'k>) {
    let k = kernel.k;
    let Operation::Matmul { bias, residual, silu_multiply, .. } = kernel.request.operation else {
        unreachable!("a product is built for a product");
    };
    let columns = k.int(kernel.output_type(0).row_elements());
    let place = row * columns + results.column;
    let mut value = results.values[0];
    if silu_multiply {
        value = silu(k, value) * results.values[1];
    }
    if bias {
        value = value + kernel.weight(1).load(results.column, 1);
    }
    if residual {
        value = value + kernel.input(1).load(place, 1);
    }
    kernel.output(0).store(place, value);
}

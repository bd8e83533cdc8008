//! `matmul`: rows of activations times a matrix, with its epilogues.
//!
//! ```text
//! a warp takes a task: some output rows (with silu_multiply: of the gate and of the up projection)
//!   several warps share the inputs of a task where there are few tasks
//!   sums = weights · x                                  `unit_product`
//! each thread finishes one result: + bias, + residual, or silu(gate) · up
//! ```
//!
//! Many rows go to the matrix unit instead where it serves their types: `prompt_matmul`.

use qwen2c_request::{Element, KernelRequest, Operation, WeightLayout, WeightType};

use super::functions::silu;
use super::tile_cut::Cut;
use super::unit_product::UnitProduct;
use super::{Kernel, REDUCTION_BYTES, Shape, prompt_matmul};
use crate::builder::{Buffer, Compare, Val, WARP_THREADS};
use crate::cuda::layout::{BLOCK_UNITS, WarpGeometry};

/// Warps of a block.
const WARPS: u64 = 4;

/// Output rows that a warp takes of a matrix of elements.
const ELEMENT_ROWS: u64 = 4;

/// Rows of a panel of a quantized weight: as many f16 scales as a thread loads at once.
const QUANTIZED_ROWS: u32 = 8;

/// Sums that a thread holds: output rows times rows of activations. More would not fit its registers.
const MOST_SUMS: u64 = 32;

/// Rows of activations that a warp multiplies with a weight once it has it.
const ROWS_SIDE_BY_SIDE: u64 = 4;

/// Fewer tasks leave a device without enough loads under way: 16 warps for each of 108 multiprocessors.
const TASKS_WANTED: u64 = 16 * 108;

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
    /// Gate and up.
    pub(super) halves: u64,
}

impl Tasks {
    /// How a matrix of `geometry` is cut; `can_split` where warps may share inputs.
    pub(super) fn new(geometry: WarpGeometry, can_split: bool) -> Self {
        let halves = if geometry.separate_halves { 2 } else { 1 };
        let panels_of_half = geometry.panels() / halves;
        let panels = if geometry.panel_rows == 1 { ELEMENT_ROWS / halves } else { 1 };
        let count = panels_of_half.div_ceil(panels);
        let blocks = geometry.units().div_ceil(BLOCK_UNITS);
        let mut split = 1;
        while can_split && split < WARPS && count * split < TASKS_WANTED && split * 2 <= blocks {
            split *= 2;
        }
        Self { panels, rows: panels * geometry.panel_rows, count, split, halves }
    }

    /// Blocks of threads.
    pub(super) fn blocks(self) -> u64 {
        (self.count * self.split).div_ceil(WARPS)
    }
}

/// Rows of activations that a warp takes together.
pub(super) fn rows_side_by_side(request: &KernelRequest, tasks: Tasks) -> u64 {
    let most = if request.max_rows == 1 { 1 } else { ROWS_SIDE_BY_SIDE };
    most.min(MOST_SUMS / (tasks.rows * tasks.halves))
}

fn geometry_of(request: &KernelRequest, layouts: &[WeightLayout]) -> WarpGeometry {
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
        return prompt_matmul::shape(request, cut);
    }
    let tasks = Tasks::new(geometry_of(request, layouts), true);
    Shape {
        blocks: tasks.blocks(),
        rows_per_block: rows_side_by_side(request, tasks),
        threads: WARPS * u64::from(WARP_THREADS),
        shared_bytes: REDUCTION_BYTES + tasks.halves * WARPS * u64::from(WARP_THREADS) * 4,
        ..Shape::row()
    }
}

/// Some output rows of a few rows of activations.
pub(super) fn body(kernel: &Kernel<'_, '_>) {
    if let Some(cut) = Cut::new(kernel.request, kernel.layouts) {
        prompt_matmul::body(kernel, cut);
        return;
    }
    let k = kernel.k;
    let geometry = geometry_of(kernel.request, kernel.layouts);
    let tasks = Tasks::new(geometry, true);
    let side_by_side = rows_side_by_side(kernel.request, tasks);
    let first_row = kernel.row() * k.int(side_by_side);
    let last_row = kernel.rows - k.int(1);
    let columns = k.int(geometry.columns);
    // Rows that do not exist are the last one again, and are not stored.
    let inputs: Vec<Buffer<'_>> = (0..side_by_side)
        .map(|row| kernel.input(0).at((first_row + k.int(row)).minimum(last_row) * columns))
        .collect();
    let results = multiply(kernel, (geometry, tasks), kernel.weight(0), &inputs);
    let row = first_row + results.input;
    let exists = k.both(results.exists, row.compare(Compare::Less, kernel.rows));
    k.when(exists, || finish(kernel, row, &results));
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

/// Multiplies the block's tasks of a matrix that begins at `matrix`.
pub(super) fn multiply<'k>(
    kernel: &Kernel<'k, '_>,
    (geometry, tasks): (WarpGeometry, Tasks),
    matrix: Buffer<'k>,
    inputs: &[Buffer<'k>],
) -> Results<'k> {
    let k = kernel.k;
    let threads = k.int(WARP_THREADS);
    let (warp, lane) = (kernel.thread() / threads, kernel.thread() % threads);
    let block = kernel.block() % k.int(tasks.blocks());
    let place = block * k.int(WARPS) + warp;
    let (task, part) = (place / k.int(tasks.split), place % k.int(tasks.split));
    let is_task = task.compare(Compare::Less, k.int(tasks.count));
    let half_panels = geometry.panels() / tasks.halves;
    let last_panel = k.int(half_panels - 1);
    let panels: Vec<Buffer<'k>> = (0..tasks.halves)
        .flat_map(|half| (0..tasks.panels).map(move |index| (half, index)))
        .map(|(half, index)| {
            // Panels that do not exist are the last one again, and are not stored.
            let panel = (task * k.int(tasks.panels) + k.int(index)).minimum(last_panel);
            let panel = panel + k.int(half * half_panels);
            matrix.at_bytes(panel * k.int(geometry.panel_bytes()))
        })
        .collect();
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
    let column = task * k.int(tasks.rows) + lane / input_count;
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
    let Operation::Matmul { bias, residual, silu_multiply } = kernel.request.operation else {
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

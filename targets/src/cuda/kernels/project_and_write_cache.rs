//! `project_and_write_cache`: the merged projection, whose results go to the queries and to the caches.
//!
//! ```text
//! a warp takes some rows of the first half of a head, and the rows of the second half that go with them
//!   sums = weights · x                              as `matmul`
//! each thread has a pair: + bias; of queries and keys rotated
//!   queries to the output, keys and values to their caches
//! ```
//!
//! Where panels of a quantized weight do not divide a head's halves, a second launch rotates what the first
//! one left in the workspace.

use qwen2c_request::{KernelRequest, WeightLayout};

use super::cache::entry;
use super::matmul::{Results, Tasks, geometry_of, layout_of, multiply_rows, rows_side_by_side, shape_of};
use super::{Kernel, Shape, rotate_and_write_cache};
use crate::builder::{Compare, Val};
use crate::cuda::layout::WarpGeometry;

/// Which weight is the rotary table; the bias is behind it.
const TABLE: usize = 1;

/// How the product is cut where a thread gets what a rotation mixes.
fn paired_tasks(request: &KernelRequest, geometry: WarpGeometry) -> Option<Tasks> {
    let half = request.caches[0].head_dim / 2;
    half.is_multiple_of(geometry.panel_rows).then(|| Tasks::of_heads(request, geometry, half))
}

/// Memory for the projection, where another launch rotates it.
pub(super) fn workspace_bytes(request: &KernelRequest) -> u64 {
    let WeightLayout::WarpPanels { rows, .. } = layout_of(&request.weights[0], false) else { return 0 };
    let geometry = WarpGeometry::new(&request.weights[0], rows, false);
    match paired_tasks(request, geometry) {
        Some(_) => 0,
        None => request.max_rows * geometry.rows * 4,
    }
}

/// One launch, or two.
pub(super) fn launches(request: &KernelRequest, layouts: &[WeightLayout]) -> Vec<(&'static str, Shape)> {
    let geometry = geometry_of(request, layouts);
    match paired_tasks(request, geometry) {
        Some(tasks) => vec![("", shape_of(request, geometry, tasks))],
        None => {
            let product = shape_of(request, geometry, Tasks::of_product(request, geometry));
            vec![("", product), ("_rotate", Shape::row(request))]
        }
    }
}

/// One of the launches.
pub(super) fn body(kernel: &Kernel<'_, '_>, launch: usize, (heads, bias): (u64, bool)) {
    let k = kernel.k;
    let geometry = geometry_of(kernel.request, kernel.layouts);
    let Some(tasks) = paired_tasks(kernel.request, geometry) else {
        if launch > 0 {
            rotate_and_write_cache::body(kernel, kernel.workspace(), (heads, bias), TABLE);
            return;
        }
        let tasks = Tasks::of_product(kernel.request, geometry);
        multiply_rows(kernel, geometry, tasks, |row, results| {
            let place = row * k.int(geometry.rows) + results.column;
            kernel.workspace().store(place, results.values[0]);
        });
        return;
    };
    let pair = Pair::new(kernel, geometry, tasks, (heads, bias));
    multiply_rows(kernel, geometry, tasks, |row, results| pair.finish(kernel, row, results, heads));
}

/// What a thread needs to finish its pair of results. It is read before the product, which takes longer.
struct Pair<'k> {
    position: Val<'k>,
    slot: Val<'k>,
    /// Number of the head among those of queries, keys and values.
    head: Val<'k>,
    /// Column of the first result in its head.
    column: Val<'k>,
    cosine: Val<'k>,
    sine: Val<'k>,
    biases: Option<[Val<'k>; 2]>,
}

impl<'k> Pair<'k> {
    fn new(
        kernel: &Kernel<'k, '_>,
        geometry: WarpGeometry,
        tasks: Tasks,
        (heads, bias): (u64, bool),
    ) -> Self {
        let k = kernel.k;
        let cache = kernel.cache_type(0);
        debug_assert_eq!(geometry.rows, (heads + 2 * cache.kv_heads) * cache.head_dim);
        let inputs = rows_side_by_side(kernel.request, tasks);
        // Threads without a result read what the last one reads.
        let pair = tasks.column(kernel, k.int(0), inputs).minimum(k.int(geometry.rows / 2 - 1));
        let input = kernel.thread() % k.int(inputs);
        let row = (kernel.row() * k.int(inputs) + input).minimum(kernel.rows - k.int(1));
        let (position, slot) = (kernel.input(1).load_index(row), kernel.input(2).load_index(row));
        let half = k.int(cache.head_dim / 2);
        let (head, column) = (pair / half, pair % half);
        let table = kernel.weight(TABLE).at(position * k.int(cache.head_dim));
        let biases = bias.then(|| {
            let of_head = kernel.weight(TABLE + 1).at(head * k.int(cache.head_dim));
            [of_head.load(column, 1), of_head.load(column + half, 1)]
        });
        let (cosine, sine) = (table.load(column, 1), table.load(column + half, 1));
        Self { position, slot, head, column, cosine, sine, biases }
    }

    /// Rotates and stores the pair.
    fn finish(&self, kernel: &Kernel<'k, '_>, row: Val<'k>, results: &Results<'k>, heads: u64) {
        let k = kernel.k;
        let cache = kernel.cache_type(0);
        let half = k.int(cache.head_dim / 2);
        let [low, high] = results.values[..] else { unreachable!("a task has both halves of a head") };
        let (low, high) = match self.biases {
            Some([of_low, of_high]) => (low + of_low, high + of_high),
            None => (low, high),
        };
        let rotated = (low * self.cosine - high * self.sine, high * self.cosine + low * self.sine);
        let is_below = |limit: u64| self.head.compare(Compare::Less, k.int(limit));
        let write = |index: usize, first_head: u64, (low, high): (Val<'k>, Val<'k>)| {
            let head = self.head - k.int(first_head);
            let entry = entry(kernel, index, (self.slot, head), self.position);
            entry.store(self.column, low);
            entry.store(self.column + half, high);
        };
        let write_query = || {
            let head = row * k.int(heads) + self.head;
            let out = kernel.output(0).at(head * k.int(cache.head_dim) + self.column);
            out.store(k.int(0), rotated.0);
            out.store(half, rotated.1);
        };
        let write_others = || {
            let keys_end = heads + cache.kv_heads;
            k.when_else(is_below(keys_end), || write(0, heads, rotated), || write(1, keys_end, (low, high)));
        };
        k.when_else(is_below(heads), write_query, write_others);
    }
}

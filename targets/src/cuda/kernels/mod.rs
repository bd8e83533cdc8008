//! The kernels of CUDA devices: one file each, with `shape` (how many blocks and threads) and `body` (what a
//! block computes). Blocks are independent: they write disjoint memory and may run in any order.
//!
//! Every reduction has one order, whatever the number of rows or blocks: a prompt in chunks, a prompt at
//! once and a decode step compute the same bits where they use the same kernel.

mod attention;
mod attention_scores;
mod attention_values;
mod cache;
mod causal_softmax;
mod combine_experts;
mod elementwise;
mod embed;
mod expert_matmul;
mod flash_attention;
mod functions;
mod gather_rows;
mod group_rows;
mod matmul;
mod normalized_row;
mod project_and_write_cache;
mod prompt_experts;
mod prompt_matmul;
mod rms_norm;
mod rotate;
mod rotate_and_write_cache;
mod select_largest;
mod softmax;
mod staged_row;
mod tile_cut;
mod tile_fragments;
mod tile_memory;
mod tile_product;
mod top_k;
mod unit_product;
mod write_cache;

use std::ops::Deref;

use qwen2c_request::{Element, Grid, KernelRequest, Operation, WeightLayout};

use crate::builder::{Buffer, Reduction, Val, WARP_THREADS};
use crate::cuda::layout::WarpGeometry;
use crate::operands::{Operands, operand_elements};
pub(super) use matmul::{check as check_matmul, layout_of as matmul_layout};
pub(super) use normalized_row::MOST_ELEMENTS as LONGEST_NORM;

/// Threads and blocks of one launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Blocks for a group of rows.
    pub(super) blocks: u64,
    /// Rows of a group.
    pub(super) rows_per_block: u64,
    /// Threads of a block, a multiple of 32.
    pub(super) threads: u64,
    /// Shared memory of a block.
    pub(super) shared_bytes: u64,
    /// Blocks that a multiprocessor must be able to run at once: the assembler shares registers out to them.
    /// Without it the assembler prefers many blocks at times, and spills.
    pub(super) blocks_at_once: Option<u64>,
}

/// Threads of kernels that go along one of many rows.
const ROW_THREADS: u64 = 256;

/// Threads of all kernels that serve one row alone, so that one launch can run all of them.
pub(super) const DECODE_THREADS: u64 = 128;

/// Blocks of [`DECODE_THREADS`] that leave a thread 128 registers: as many as any product of one row wants. The
/// assembler, left alone, gives some of them fewer for the sake of more blocks, and spills a few bytes, not the same
/// on every architecture. More blocks would not help: each warp has 8 KiB of weights under way, so four blocks have
/// 128 KiB, and an A100 has brought 19 KiB to each of its multiprocessors by the time of a read (1 µs).
const BLOCKS_FOR_MANY_REGISTERS: u64 = 4;

impl Shape {
    /// The blocks alone.
    pub(super) fn grid(self) -> Grid {
        Grid { blocks: self.blocks, rows_per_block: self.rows_per_block }
    }

    /// One block for each row, with shared memory for reductions.
    fn row(request: &KernelRequest) -> Self {
        Self {
            blocks: 1,
            rows_per_block: 1,
            threads: if request.max_rows == 1 { DECODE_THREADS } else { ROW_THREADS },
            shared_bytes: REDUCTION_BYTES,
            blocks_at_once: None,
        }
    }
}

/// Shared memory at the beginning of every kernel's, for reductions over a block: a number for each warp.
const REDUCTION_BYTES: u64 = 128;

/// A kernel under construction.
pub(super) struct Kernel<'k, 'r> {
    /// Builder, request and operands.
    pub(super) operands: Operands<'k, 'r>,
    /// Threads and blocks.
    pub(super) shape: Shape,
    /// The thread's number in its block, the block's among those of a group of rows, and the group's. The last
    /// two need not be those of the grid: a block may run the body for one number after another.
    pub(super) place: [Val<'k>; 3],
}

impl<'k, 'r> Deref for Kernel<'k, 'r> {
    type Target = Operands<'k, 'r>;

    fn deref(&self) -> &Operands<'k, 'r> {
        &self.operands
    }
}

impl<'k, 'r> Kernel<'k, 'r> {
    /// Memory of the kernel's own, as [`workspace_bytes`] asked for.
    fn workspace(&self) -> Buffer<'k> {
        *self.buffers.last().expect("a workspace comes behind the other operands")
    }

    /// Geometry of a weight in warp panels; None where it lies in rows as in the checkpoint.
    fn geometry(&self, index: usize) -> Option<WarpGeometry> {
        match self.layouts[index] {
            WeightLayout::WarpPanels { rows, separate_halves } => {
                Some(WarpGeometry::new(self.weight_type(index), rows, separate_halves))
            }
            _ => None,
        }
    }

    /// The thread's number in its block.
    fn thread(&self) -> Val<'k> {
        self.place[0]
    }

    /// The block's number among those of a group of rows.
    fn block(&self) -> Val<'k> {
        self.place[1]
    }

    /// The row, where a group of rows is one.
    fn row(&self) -> Val<'k> {
        self.place[2]
    }

    /// `body(offset)` for every offset below `length`, shared out to the threads of the block.
    fn for_each(&self, length: Val<'k>, body: impl FnOnce(Val<'k>)) {
        self.k.repeat(self.thread(), length, self.shape.threads as i64, body);
    }

    /// Folds `term(offset)` over all offsets below `length`; every thread gets the result.
    fn fold(
        &self,
        length: Val<'k>,
        start: f32,
        reduction: Reduction,
        term: impl FnOnce(Val<'k>) -> Val<'k>,
    ) -> Val<'k> {
        let (k, threads) = (self.k, self.shape.threads as i64);
        let own = k.for_each(self.thread(), length, threads, &[k.float(start, 1)], |offset, value| {
            vec![reduction.combine(value[0], term(offset))]
        });
        self.reduce_block(own[0], reduction)
    }

    /// Folds the values of the block's threads, warp by warp; every thread gets the result.
    fn reduce_block(&self, value: Val<'k>, reduction: Reduction) -> Val<'k> {
        let k = self.k;
        let (thread, warp) = (self.thread(), k.int(WARP_THREADS));
        let of_warp = value.reduce_lanes(reduction, WARP_THREADS);
        let warps = self.shape.threads / u64::from(WARP_THREADS);
        if warps == 1 {
            return of_warp;
        }
        let shared = k.shared_memory(Element::F32, 0);
        // The results of the reduction before have been read by now.
        k.barrier();
        k.when(k.is_zero(thread % warp), || shared.store(thread / warp, of_warp));
        k.barrier();
        (1..warps).fold(shared.load(k.int(0), 1), |value, index| {
            reduction.combine(value, shared.load(k.int(index), 1))
        })
    }
}

/// Element type of each operand, in the order of the request; the workspace's is `f32`.
pub(super) fn buffer_elements(request: &KernelRequest) -> Vec<Element> {
    let workspace = (workspace_bytes(request) > 0).then_some(Element::F32);
    operand_elements(request).into_iter().chain(workspace).collect()
}

/// Memory that a kernel needs for itself.
pub(super) fn workspace_bytes(request: &KernelRequest) -> u64 {
    match request.operation {
        Operation::Attention { .. } => attention::workspace_bytes(request),
        Operation::TopK { .. } => select_largest::workspace_bytes(request),
        Operation::ProjectAndWriteCache { .. } => project_and_write_cache::workspace_bytes(request),
        _ => 0,
    }
}

/// The launches of a kernel, one after another: a suffix of the name, and the shape.
pub(super) fn launches(request: &KernelRequest, layouts: &[WeightLayout]) -> Vec<(&'static str, Shape)> {
    let single = |shape| vec![("", shape)];
    match request.operation {
        Operation::Matmul { .. } => single(matmul::shape(request, layouts)),
        Operation::ProjectAndWriteCache { .. } => project_and_write_cache::launches(request, layouts),
        Operation::ExpertMatmul { .. } => single(expert_matmul::shape(request, layouts)),
        Operation::Attention { .. } => attention::launches(request),
        Operation::AttentionScores { heads, .. } | Operation::AttentionValues { heads, .. } => {
            single(Shape { blocks: heads, ..Shape::row(request) })
        }
        Operation::CausalSoftmax => single(causal_softmax::shape(request)),
        Operation::TopK { .. } => match select_largest::Cut::new(request) {
            Some(cut) => select_largest::launches(request, cut),
            None => single(Shape::row(request)),
        },
        // One table for all rows.
        Operation::GroupRows { .. } => {
            single(Shape { rows_per_block: request.max_rows.max(1), ..Shape::row(request) })
        }
        _ => single(Shape::row(request)),
    }
}

/// Emits what a block of launch number `launch` computes.
pub(super) fn body(kernel: &Kernel<'_, '_>, launch: usize) {
    match kernel.request.operation {
        Operation::Embed => embed::body(kernel),
        Operation::GatherRows => gather_rows::body(kernel),
        Operation::RmsNorm { epsilon } => rms_norm::body(kernel, epsilon.0),
        Operation::AddAndNorm { epsilon } => rms_norm::body_with_add(kernel, epsilon.0),
        Operation::QuantizeRows => unreachable!("`choose` refuses rows of integers"),
        Operation::Matmul { .. } => matmul::body(kernel),
        Operation::ExpertMatmul { .. } => expert_matmul::body(kernel),
        Operation::CombineExperts { residual } => combine_experts::body(kernel, residual),
        Operation::Rotate { head_dim } => rotate::body(kernel, head_dim),
        Operation::WriteCache => write_cache::body(kernel),
        Operation::RotateAndWriteCache { heads, bias } => {
            rotate_and_write_cache::body(kernel, kernel.input(0), (heads, bias), 0);
        }
        Operation::ProjectAndWriteCache { heads, bias, .. } => {
            project_and_write_cache::body(kernel, launch, (heads, bias));
        }
        Operation::AttentionScores { heads, scale } => attention_scores::body(kernel, heads, scale.0),
        Operation::CausalSoftmax => causal_softmax::body(kernel),
        Operation::AttentionValues { heads, .. } => attention_values::body(kernel, heads),
        Operation::Attention { scale, .. } => attention::body(kernel, launch, scale.0),
        Operation::AttentionBlocks { .. } | Operation::MergeBlocks { .. } => {
            unreachable!("`choose` refuses parts of attentions")
        }
        Operation::AddBias => elementwise::add_bias(kernel),
        Operation::Add => elementwise::add(kernel),
        Operation::Scale { factor } => elementwise::scale(kernel, factor.0),
        Operation::Silu => elementwise::silu(kernel),
        Operation::Sigmoid => elementwise::sigmoid(kernel),
        Operation::Multiply => elementwise::multiply(kernel),
        Operation::SiluMultiply => elementwise::silu_multiply(kernel),
        Operation::ScaleRows => elementwise::scale_rows(kernel),
        Operation::Slice { first } => elementwise::slice(kernel, first),
        Operation::Softmax => softmax::body(kernel),
        Operation::TopK { k, normalize } => match select_largest::Cut::new(kernel.request) {
            Some(cut) => select_largest::body(kernel, cut, launch),
            None => top_k::body(kernel, k, normalize),
        },
        Operation::GroupRows { experts } => group_rows::body(kernel, experts),
    }
}

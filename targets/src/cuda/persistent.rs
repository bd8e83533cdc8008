//! A driver of kernels' bodies: one kernel whose blocks stay on the device and run one launch after another.
//!
//! ```text
//! for row in table:                       a launch of a step, with the addresses of its operands
//!   body of the launch's number
//!     for number in block, block + blocks … launch's blocks      a block stands in for several
//!   all blocks wait for one another
//! ```
//!
//! The bodies are those of the launches, with the same threads, so that the same bits come out. What changes
//! is the cost of a step: a barrier between blocks that are there, instead of a launch. All bodies are in one
//! function and share its registers; what a step reads is in a table and not in its parameters, because a
//! kernel serves all layers.

use melior::ir::Module;
use melior::ir::r#type::IntegerType;
use qwen2c_request::Element;

use super::kernels::{self, Kernel, Shape};
use super::lower::{LaunchSource, add_function, add_shared_memory};
use crate::builder::{Buffer, Compare, KernelBuilder, Place, Scalar, Ty, Val};
use crate::compile::KernelSource;
use crate::lowering::Lowering;
use crate::operands::Operands;

/// Name of the entry point; no kernel is called like this, because no operation is.
const SYMBOL: &str = "persistent_decode";

/// Bytes of a word of the table.
const WORD_BYTES: u64 = 8;

/// Blocks that a multiprocessor must hold, which gives a thread 168 registers. A product of bf16 weights has 32
/// KiB under way in each of a block or more on a multiprocessor: an A100 needs 13 KiB to keep its memory busy
/// (2039 GB/s for 700 ns), an H100 18 KiB, a B200 43 KiB. Attention and products of integers, which compute
/// more for a byte, have use for the others.
const BLOCKS_AT_ONCE: u64 = 3;

/// A launch whose body the kernel runs.
struct Case {
    /// Its kernel, and which of the kernel's launches it is.
    kernel: usize,
    launch: usize,
    /// Its number in the table.
    number: u64,
}

/// The kernel to be built.
pub(super) struct PersistentSource {
    /// The one entry point; its number of blocks is free.
    pub(super) launch: LaunchSource,
    /// Words of a row of the table: a number, and as many operands as any of the launches has.
    pub(super) row_words: u64,
    cases: Vec<Case>,
}

impl PersistentSource {
    /// The kernel that runs all launches of those sources that are to be; None where there are none.
    ///
    /// # Panics
    ///
    /// When the launches have different numbers of threads: those of lists of one row never do.
    pub(super) fn new(kernels: &[KernelSource<'_>], launches: &[Vec<LaunchSource>]) -> Option<Self> {
        let mut cases = Vec::new();
        let mut number = 0;
        for (kernel, launches) in launches.iter().enumerate() {
            for launch in 0..launches.len() {
                if kernels[kernel].is_persistent {
                    cases.push(Case { kernel, launch, number });
                }
                number += 1;
            }
        }
        let shapes: Vec<Shape> = cases.iter().map(|case| launches[case.kernel][case.launch].shape).collect();
        let threads = shapes.first()?.threads;
        assert!(shapes.iter().all(|shape| shape.threads == threads), "blocks of different sizes");
        let operands =
            cases.iter().map(|case| kernels::buffer_elements(kernels[case.kernel].request).len() as u64);
        let shape = Shape {
            blocks: 1,
            rows_per_block: 1,
            threads,
            shared_bytes: shapes.iter().map(|shape| shape.shared_bytes).max()?,
            blocks_at_once: Some(BLOCKS_AT_ONCE),
        };
        let row_words = 1 + operands.max()?;
        Some(Self { launch: LaunchSource { symbol: SYMBOL.to_owned(), shape }, row_words, cases })
    }

    /// The kernel as MLIR: `@persistent_decode(table: pointer, word: pointer, rows: i32)`.
    pub(super) fn build<'l>(
        &self,
        lowering: &'l Lowering,
        kernels: &[KernelSource<'_>],
        launches: &[Vec<LaunchSource>],
    ) -> Module<'l> {
        let context = &lowering.context;
        let module = Module::new(melior::ir::Location::unknown(context));
        add_shared_memory(lowering, &module);
        let pointer = melior::dialect::llvm::r#type::pointer(context, 0);
        let arguments = [pointer, pointer, IntegerType::new(context, 32).into()];
        add_function(lowering, &module, SYMBOL, &arguments, |builder| {
            self.emit(builder, kernels, launches);
        });
        module
    }

    fn emit<'k>(
        &self,
        k: &'k KernelBuilder<'k>,
        kernels: &[KernelSource<'_>],
        launches: &[Vec<LaunchSource>],
    ) {
        let argument =
            |index| Buffer { pointer: k.argument(index, Ty::scalar(Scalar::Pointer)), element: Element::I32 };
        let (table, word) = (argument(0), argument(1));
        let rows = k.argument(2, Ty::scalar(Scalar::I32)).extend_unsigned(Scalar::I64);
        k.repeat(k.int(0), rows, 1, |row| {
            let words = table.at_bytes(row * k.int(self.row_words * WORD_BYTES));
            let number = words.load_aligned_as(Scalar::I64, k.int(0), 1);
            let place = Whereabouts::of_row(k, number, self.launch.shape.threads);
            for case in &self.cases {
                let shape = launches[case.kernel][case.launch].shape;
                k.when(number.compare(Compare::Equal, k.int(case.number)), || {
                    run(k, &kernels[case.kernel], (case.launch, shape), words, place);
                });
            }
            let is_last = (row + k.int(1)).compare(Compare::Equal, rows);
            k.when_else(is_last, || {}, || k.grid_barrier(word));
        });
        k.finish(&[]);
    }
}

/// Where a thread is, in numbers that LLVM cannot compute before the row of the table is known: it would move
/// what every body computes from them out of the loop over rows, and keep all of that in registers.
#[derive(Clone, Copy)]
struct Whereabouts<'k> {
    thread: Val<'k>,
    block: Val<'k>,
    blocks: Val<'k>,
}

impl<'k> Whereabouts<'k> {
    /// The numbers plus the upper half of a launch's number, which is zero.
    fn of_row(k: &'k KernelBuilder<'k>, number: Val<'k>, threads: u64) -> Self {
        assert!(threads.is_power_of_two(), "the mask keeps all of {threads} threads apart");
        let zero = number.shift_right_by(k.int(32));
        let of_row = |place| k.place(place) + zero;
        Self {
            // LLVM shall know that it is small.
            thread: of_row(Place::Thread).and(k.int(threads - 1)),
            block: of_row(Place::Block),
            blocks: of_row(Place::Blocks),
        }
    }
}

/// The blocks of a launch that fall to this one, with the operands of a row of the table.
fn run<'k>(
    k: &'k KernelBuilder<'k>,
    source: &KernelSource<'_>,
    (launch, shape): (usize, Shape),
    words: Buffer<'k>,
    place: Whereabouts<'k>,
) {
    let buffers: Vec<Buffer<'k>> = kernels::buffer_elements(source.request)
        .into_iter()
        .enumerate()
        .map(|(index, element)| {
            let address = words.load_aligned_as(Scalar::I64, k.int(1 + index), 1);
            k.memory_at(address, element)
        })
        .collect();
    let body = |block: Val<'k>| {
        let operands = Operands {
            k,
            request: source.request,
            layouts: source.layouts,
            buffers: buffers.clone(),
            rows: k.int(1),
        };
        kernels::body(&Kernel { operands, shape, place: [place.thread, block, k.int(0)] }, launch);
        // The next one finds shared memory that nobody reads any more.
        k.barrier();
    };
    let blocks = k.int(shape.blocks);
    k.repeat_by(place.block, blocks, place.blocks, body);
}

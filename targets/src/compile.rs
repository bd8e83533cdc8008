//! What compiling kernels takes and gives, the same for every target family.

use std::fmt;
use std::time::Instant;

use qwen2c_request::{KernelRequest, WeightLayout};

/// A kernel to compile.
#[derive(Clone, Copy, Debug)]
pub struct KernelSource<'a> {
    /// Symbol of its body.
    pub name: &'a str,
    /// What it computes.
    pub request: &'a KernelRequest,
    /// Layout of each weight.
    pub layouts: &'a [WeightLayout],
    /// Whether a device's persistent kernel runs its bodies too.
    pub is_persistent: bool,
}

/// Which texts to keep while compiling.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeepText {
    /// MLIR as built, verified.
    pub mlir: bool,
    /// LLVM IR, optimized.
    pub llvm: bool,
    /// Assembly, or PTX.
    pub asm: bool,
}

/// Texts of one kernel.
#[derive(Clone, Debug, Default)]
pub struct KernelText {
    /// Symbol of its body.
    pub name: String,
    /// MLIR.
    pub mlir: Option<String>,
    /// LLVM IR.
    pub llvm: Option<String>,
    /// Assembly, or PTX.
    pub asm: Option<String>,
}

/// All kernels of a program.
#[derive(Clone, Debug, Default)]
pub struct CompiledKernels {
    /// ELF object with the processor's kernels, `qwen2c_kernels` and `qwen2c_kernel_count`.
    pub object: Vec<u8>,
    /// Code for CUDA devices, one for each architecture; none for a processor.
    pub images: Vec<DeviceImage>,
    /// How a CUDA device runs each kernel, in the order of the sources; none for a processor.
    pub launches: Vec<Vec<Launch>>,
    /// What runs the bodies of all persistent sources; none where there are none.
    pub persistent: Option<PersistentKernel>,
    /// Texts of each kernel, in the order of the sources, the persistent kernel's last.
    pub texts: Vec<KernelText>,
    /// Time spent in MLIR.
    pub mlir_us: u64,
    /// Time spent in LLVM.
    pub llvm_us: u64,
}

/// A kernel that did not compile: a bug of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileError {
    /// The kernel, or empty for the object as a whole.
    pub kernel: String,
    /// What failed: `verify`, `lower`, `translate`, `optimize`, `emit`.
    pub step: &'static str,
    /// What MLIR or LLVM said.
    pub messages: Vec<String>,
}

impl fmt::Display for CompileError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "kernel `{}` failed to {}", self.kernel, self.step)?;
        self.messages.iter().try_for_each(|message| write!(formatter, "\n  {message}"))
    }
}

impl std::error::Error for CompileError {}

/// Code for one CUDA architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceImage {
    /// 80 for `sm_80`.
    pub architecture: u32,
    /// The text of one PTX module.
    pub ptx: String,
}

/// A run of threads on a CUDA device: `blocks` for each `rows_per_block` rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Name of the entry point.
    pub symbol: String,
    /// Blocks for a group of rows.
    pub blocks: u32,
    /// Rows of a group.
    pub rows_per_block: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Shared memory of a block.
    pub shared_bytes: u32,
}

/// A kernel whose blocks stay on a CUDA device while they run one launch after another.
///
/// Its parameters are a table of 64-bit words, a zeroed word of 32 bits for barriers between blocks, and the
/// number of the table's rows (32 bits). A row is a launch: its number, counted over the launches of all
/// sources in their order, then its operands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PersistentKernel {
    /// Name of the entry point.
    pub symbol: String,
    /// Threads of a block.
    pub threads: u32,
    /// Shared memory of a block.
    pub shared_bytes: u32,
    /// Words of a row of the table.
    pub row_words: u32,
}

/// Time since `start`.
pub(crate) fn elapsed_us(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}

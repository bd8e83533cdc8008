//! Requests, answers, and the interface of a target.

use std::fmt;

use crate::{CacheType, Operation, TensorType, WeightType};

/// A kernel that must exist: an operation with the types of its operands.
///
/// Two operations of a graph with equal requests (the same projection of two layers, say) share a
/// kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KernelRequest {
    /// What is computed.
    pub operation: Operation,
    /// Values read, in the operation's order.
    pub inputs: Vec<TensorType>,
    /// Weights read, in the operation's order.
    pub weights: Vec<WeightType>,
    /// Caches read or written.
    pub caches: Vec<CacheType>,
    /// Values written.
    pub outputs: Vec<TensorType>,
    /// Largest number of rows that the kernel is made for (of `logit_rows` behind the head's gather). Steps bring
    /// more where [`Target::kernel_rows`] says that it serves them as well.
    pub max_rows: u64,
}

/// Order of a weight's elements in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WeightLayout {
    /// `[output, input]` as in the checkpoint.
    RowMajor,
    /// `[output / lanes, input / pair, lanes, pair]`: panels of `lanes` output rows whose elements lie
    /// side by side, `pair` consecutive inputs of one row together. Rows and inputs are padded with
    /// zeros to whole panels and pairs. Experts are panelled one by one.
    Panels {
        /// Output rows of a panel.
        lanes: u32,
        /// Consecutive inputs held together: 2 for 16-bit types, whose dword is also the geometry of
        /// the matrix unit's B tile.
        pair: u32,
        /// The weight is a gate and an up projection of `n` rows each: the panels of all gate rows are
        /// followed by as many of the up rows, and no panel has rows of both.
        separate_halves: bool,
    },
    /// `[output / rows, units / 32, rows, 32]` units of 16 bytes, each of consecutive inputs of one row:
    /// what the 32 threads of a warp read side by side. Behind the integers of a quantized weight's 32
    /// units lie their groups' scales, `[groups, rows]`, then their minima, where they have them. Inputs
    /// are padded with zeros to whole units, rows to whole panels.
    WarpPanels {
        /// Output rows of a panel: 1 for elements, so that rows lie one after the other.
        rows: u32,
        /// As in [`WeightLayout::Panels`].
        separate_halves: bool,
    },
}

impl fmt::Display for WeightLayout {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RowMajor => formatter.write_str("row_major"),
            Self::Panels { lanes, pair, separate_halves } => {
                write!(formatter, "panels({lanes}, {pair}")?;
                if *separate_halves {
                    formatter.write_str(", separate_halves")?;
                }
                formatter.write_str(")")
            }
            Self::WarpPanels { rows, separate_halves } => {
                write!(formatter, "warp_panels({rows}")?;
                if *separate_halves {
                    formatter.write_str(", separate_halves")?;
                }
                formatter.write_str(")")
            }
        }
    }
}

/// A layout that a kernel can read, and what that costs relative to its best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayoutOption {
    /// The layout.
    pub layout: WeightLayout,
    /// Relative time, 100 for the kernel's best layout.
    pub cost: u32,
}

/// Bytes moved and operations executed by one run of a kernel: `fixed + per_row · rows +
/// per_row_and_position · rows · (mean position + 1)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes read and written whatever the rows: weights.
    pub fixed_bytes: u64,
    /// Bytes of each row: activations.
    pub bytes_per_row: u64,
    /// Bytes of each row and cached position.
    pub bytes_per_row_and_position: u64,
    /// Floating-point operations of each row, a multiply-add counted as two.
    pub operations_per_row: u64,
    /// Floating-point operations of each row and cached position.
    pub operations_per_row_and_position: u64,
}

/// A target's answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelChoice {
    /// Short description of the tiles, printed after the operation: `8x32 rows x columns`.
    pub tiles: String,
    /// For each weight of the request, the layouts the kernel can read, best first.
    pub layouts: Vec<Vec<LayoutOption>>,
    /// Bytes of the arena that the kernel needs for itself while it runs.
    pub workspace_bytes: u64,
    /// What one run moves and computes.
    pub cost: Cost,
    /// Launches of a device that one run needs, one after another; none on a processor.
    pub launches: Vec<Grid>,
}

/// The blocks of a launch on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks for a group of rows.
    pub blocks: u64,
    /// Rows of a group.
    pub rows_per_block: u64,
}

impl Grid {
    /// Blocks that `rows` rows take.
    pub fn blocks_of(self, rows: u64) -> u64 {
        self.blocks * rows.div_ceil(self.rows_per_block.max(1))
    }
}

/// Why a target cannot serve a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unservable {
    /// What is wrong, with numbers: lower case, no full stop.
    pub reason: String,
}

impl fmt::Display for Unservable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.reason)
    }
}

impl std::error::Error for Unservable {}

/// What a target is. The default is one without wishes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetDescription {
    /// Name as given on the command line with its features: `x86-64-v4+avx512vnni`.
    pub name: String,
    /// Folder of the target: `cpu`, `cuda`.
    pub family: &'static str,
    /// Features that the machine must have, in the names of `/proc/cpuinfo`.
    pub required_features: Vec<&'static str>,
    /// `f32` lanes of a vector register.
    pub vector_lanes: u32,
    /// Products with quantized weights multiply integers: they want activations as
    /// [`Element::I8`](crate::Element::I8) or [`Element::I16`](crate::Element::I16).
    pub multiplies_integers: bool,
    /// Attention over caches of bf16 multiplies pairs: it wants queries in bf16, and rounds its weights.
    pub multiplies_bf16_pairs: bool,
    /// Attention of one row is to come as a part for each block of positions, so that there is work for all
    /// cores however few heads the cache has.
    pub splits_attention: bool,
    /// The arena lies in memory of a device: the host sees what is copied to it.
    pub has_own_memory: bool,
    /// Starting a kernel takes so long that steps of one row should have few: they want norms in front of
    /// products, and the way into the caches behind them, inside the products' kernels.
    pub prefers_few_launches: bool,
    /// Steps of several rows that do not wait for one another run together. Those of one row always may.
    pub joins_steps_of_prompts: bool,
    /// Most rows of each step list for prompts, ascending: a prompt goes through the last in chunks, and what
    /// is left through the first that holds it.
    pub prompt_rows: &'static [u64],
    /// Elements of the longest row that a product can normalize.
    pub longest_fused_norm: u64,
}

/// A finished, immutable target.
pub trait Target {
    /// Name, features, vector width.
    fn description(&self) -> &TargetDescription;

    /// Answers a request.
    ///
    /// # Errors
    ///
    /// [`Unservable`] with the numbers that do not fit.
    fn choose(&self, request: &KernelRequest) -> Result<KernelChoice, Unservable>;

    /// The rows of the kernel that serves a request: requests that differ in their `max_rows` alone share a
    /// kernel where these are equal.
    fn kernel_rows(&self, request: &KernelRequest) -> u64;

    /// Bytes of a weight in a layout, padding included.
    fn weight_bytes(&self, weight: &WeightType, layout: WeightLayout) -> u64;

    /// Bytes of a cache, padding included.
    fn cache_bytes(&self, cache: &CacheType) -> u64;
}

//! How weights and caches lie in memory; `pack` brings weights there. No MLIR here.
//!
//! Panels put `lanes` output rows side by side, so that a matrix product needs no reduction across
//! lanes, any input length works without a tail, and decode, prompt and the gather of a tied embedding
//! read the same bytes.

use std::ops::Range;

use qwen2c_request::{CACHE_BLOCK_POSITIONS, CacheKind, CacheType, Quantization, WeightType};

/// Extents of a weight in panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PanelGeometry {
    /// Matrices one after the other: experts, or 1.
    pub(super) matrices: u64,
    /// Rows of one matrix.
    pub(super) rows: u64,
    /// Inputs of one row.
    pub(super) columns: u64,
    /// Rows of a panel.
    pub(super) lanes: u64,
    /// Consecutive inputs held together.
    pub(super) pair: u64,
    /// Gate rows and up rows have panels of their own.
    pub(super) separate_halves: bool,
    /// Bytes of an element; of a quantized weight the integers of a dword share 4.
    element_bytes: u64,
    /// Integers with scales instead of elements.
    pub(super) quantization: Option<Quantization>,
}

impl PanelGeometry {
    /// Geometry of `weight`, `[rows, columns]` or `[matrices, rows, columns]`, in panels.
    pub(crate) fn new(weight: &WeightType, lanes: u32, pair: u32, separate_halves: bool) -> Self {
        let extents = weight.extents();
        let (matrices, rows, columns) = match extents[..] {
            [matrices, rows, columns] => (matrices, rows, columns),
            [rows, columns] => (1, rows, columns),
            _ => (1, 1, weight.columns()),
        };
        Self {
            matrices,
            rows,
            columns,
            lanes: lanes.into(),
            pair: pair.into(),
            separate_halves,
            element_bytes: weight.element.bytes(),
            quantization: weight.quantization,
        }
    }

    /// Panels of one matrix.
    pub(super) fn panels(self) -> u64 {
        if self.separate_halves {
            2 * (self.rows / 2).div_ceil(self.lanes)
        } else {
            self.rows.div_ceil(self.lanes)
        }
    }

    /// Bytes of a panel: elements, or chunks of integers with scales.
    pub(super) fn panel_bytes(self) -> u64 {
        match self.quantization {
            Some(quantization) => {
                let chunks = ChunkGeometry { lanes: self.lanes, quantization };
                chunks.bytes(self.columns)
            }
            None => self.columns.div_ceil(self.pair) * self.pair * self.lanes * self.element_bytes,
        }
    }

    /// Bytes of one matrix.
    pub(super) fn matrix_bytes(self) -> u64 {
        self.panels() * self.panel_bytes()
    }

    /// Bytes of all matrices.
    pub(crate) fn bytes(self) -> u64 {
        self.matrices * self.matrix_bytes()
    }

    /// First row of a panel and how many of its rows exist.
    pub(super) fn panel_rows(self, panel: u64) -> (u64, u64) {
        if self.separate_halves {
            let (half_rows, half_panels) = (self.rows / 2, self.panels() / 2);
            let first = panel % half_panels * self.lanes;
            (panel / half_panels * half_rows + first, self.lanes.min(half_rows - first))
        } else {
            let first = panel * self.lanes;
            (first, self.lanes.min(self.rows - first))
        }
    }

    /// Panels of all matrices.
    pub(crate) fn all_panels(self) -> u64 {
        self.matrices * self.panels()
    }

    /// First row of each of these panels, with panels and rows of all matrices numbered through, and how many
    /// of its rows exist.
    pub(super) fn rows_of_panels(self, panels: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
        panels.map(move |panel| {
            let (matrix, panel) = (panel / self.panels(), panel % self.panels());
            let (first, present) = self.panel_rows(panel);
            (matrix * self.rows + first, present)
        })
    }
}

/// Groups of a chunk: with two, the scales of 16 lanes fill a cache line, and chunks start on lines.
pub(super) const CHUNK_GROUPS: u64 = 2;

/// How a quantized panel lies in memory: chunk after chunk of two groups, each the scales of both,
/// `[groups, lanes]`, their minima, `[groups, lanes]`, where they have them, padding up to a vector of dwords,
/// then the dwords of both, `[dwords, lanes]` in the order of [`Quantization::first_bit`]. The last chunk may
/// have one group, and its last group fewer inputs.
///
/// Scales come first because they are read first: a panel is read line after line, without a step back, which
/// is what a processor that fetches ahead by itself looks for. Behind the dwords they cost an EPYC of the
/// fourth generation 3 to 29 % of its bandwidth, more where memory was faster.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkGeometry {
    /// Rows of the panel.
    pub(super) lanes: u64,
    /// Bits and group size.
    pub(super) quantization: Quantization,
}

/// Where a group lies in its chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GroupPlace {
    /// Byte of the chunk at which its dwords start.
    pub(super) dwords_at_bytes: u64,
    /// Byte of the chunk at which its scales start.
    pub(super) scales_at_bytes: u64,
    /// Byte of the chunk at which its minima start, where it has them.
    pub(super) minima_at_bytes: Option<u64>,
    /// Inputs that exist.
    pub(super) inputs: u32,
}

impl ChunkGeometry {
    /// Inputs of a whole chunk.
    pub(super) fn inputs(self) -> u64 {
        CHUNK_GROUPS * u64::from(self.quantization.group)
    }

    /// Bytes of the chunks of a row of `inputs`.
    pub(super) fn bytes(self, inputs: u64) -> u64 {
        let (whole, rest) = (inputs / self.inputs(), inputs % self.inputs());
        let chunk_bytes = |inputs: u64| self.scalings_bytes(inputs) + self.dwords_bytes(inputs);
        whole * chunk_bytes(self.inputs()) + chunk_bytes(rest)
    }

    /// Bytes of the scales and minima of a chunk of `inputs`, with the padding behind them: where its dwords
    /// start.
    pub(super) fn scalings_bytes(self, inputs: u64) -> u64 {
        let scalings = if self.quantization.has_minimum { 2 } else { 1 };
        let groups = inputs.div_ceil(self.quantization.group.into());
        (scalings * groups * self.scales_bytes()).next_multiple_of(self.lanes * 4)
    }

    /// Bytes of the dwords of `inputs`.
    fn dwords_bytes(self, inputs: u64) -> u64 {
        inputs.div_ceil(self.quantization.per_dword().into()) * self.lanes * 4
    }

    /// Bytes of the scales of one group.
    fn scales_bytes(self) -> u64 {
        self.lanes * self.quantization.scale.bytes()
    }

    /// The groups of a chunk that has `inputs`.
    pub(super) fn groups(self, inputs: u64) -> impl Iterator<Item = GroupPlace> {
        let group = u64::from(self.quantization.group);
        let groups = inputs.div_ceil(group);
        let minima = groups * self.scales_bytes();
        (0..groups).map(move |index| GroupPlace {
            dwords_at_bytes: self.scalings_bytes(inputs) + self.dwords_bytes(index * group),
            scales_at_bytes: index * self.scales_bytes(),
            minima_at_bytes: self.quantization.has_minimum.then(|| minima + index * self.scales_bytes()),
            inputs: group.min(inputs - index * group) as u32,
        })
    }
}

/// Elements of a value head as stored: whole vectors, so that the weighted sum has no tail.
pub(super) fn padded_head_dim(lanes: u32, head_dim: u64) -> u64 {
    head_dim.next_multiple_of(lanes.into())
}

/// Elements of one block of one (slot, head): `[256 / 32, head_dim, 32]` for keys (lanes run over positions),
/// `[256, padded head_dim]` for values (lanes run over the head); as many where they lie as pairs.
pub(super) fn cache_block_elements(lanes: u32, cache: &CacheType) -> u64 {
    CACHE_BLOCK_POSITIONS
        * match cache.kind {
            CacheKind::Key => cache.head_dim,
            CacheKind::Value => padded_head_dim(lanes, cache.head_dim),
        }
}

/// Bytes of a cache: `[slot, kv_head, block]` of [`cache_block_elements`].
pub(super) fn cache_bytes(lanes: u32, cache: &CacheType) -> u64 {
    cache.slots * cache.kv_heads * cache.blocks() * cache_block_elements(lanes, cache) * cache.element.bytes()
}

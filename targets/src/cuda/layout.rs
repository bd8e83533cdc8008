//! How weights and caches lie in a device's memory; `pack` brings weights there. No MLIR here.
//!
//! A warp reads 512 bytes with one instruction when its 32 threads load 16 bytes each, side by side. A *unit*
//! is such a load: consecutive inputs of one output row, all in one group of a quantized weight or in whole
//! groups. A thread that goes down the rows of a panel keeps its inputs in registers and needs one load of
//! scales for all of them.

use std::ops::Range;

use qwen2c_request::{CACHE_BLOCK_POSITIONS, CacheType, Element, Quantization, WeightType};

/// Bytes of a unit: the widest load of a thread.
pub(crate) const UNIT_BYTES: u64 = 16;

/// Bytes that memory gives at least: blocks of a quantized weight begin at multiples of it, so that a warp's
/// 512 bytes are 16 sectors and not 17.
const SECTOR_BYTES: u64 = 32;

/// Units that a warp loads side by side.
pub(crate) const BLOCK_UNITS: u64 = 32;

/// Extents of a weight in warp panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WarpGeometry {
    /// Matrices one after the other: experts, or 1.
    pub(super) matrices: u64,
    /// Rows of one matrix.
    pub(super) rows: u64,
    /// Inputs of one row.
    pub(super) columns: u64,
    /// Rows of a panel.
    pub(super) panel_rows: u64,
    /// Gate rows and up rows have panels of their own.
    pub(super) separate_halves: bool,
    /// Type of an element, where the weight is not quantized.
    pub(super) element: Element,
    /// Integers with scales instead of elements.
    pub(super) quantization: Option<Quantization>,
}

impl WarpGeometry {
    /// Geometry of `weight`, `[rows, columns]` or `[matrices, rows, columns]`, with panels of `panel_rows`.
    pub(crate) fn new(weight: &WeightType, panel_rows: u32, separate_halves: bool) -> Self {
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
            panel_rows: panel_rows.into(),
            separate_halves,
            element: weight.element,
            quantization: weight.quantization,
        }
    }

    /// Inputs of a unit.
    pub(crate) fn unit_inputs(self) -> u64 {
        match self.quantization {
            Some(quantization) => UNIT_BYTES * 8 / u64::from(quantization.bits),
            None => UNIT_BYTES / self.element.bytes(),
        }
    }

    /// Units of a row, the last of which may be partly padding.
    pub(crate) fn units(self) -> u64 {
        self.columns.div_ceil(self.unit_inputs())
    }

    /// Panels of one matrix.
    pub(crate) fn panels(self) -> u64 {
        if self.separate_halves {
            2 * (self.rows / 2).div_ceil(self.panel_rows)
        } else {
            self.rows.div_ceil(self.panel_rows)
        }
    }

    /// First row of a panel and how many of its rows exist.
    pub(crate) fn panel_rows_at(self, panel: u64) -> (u64, u64) {
        if self.separate_halves {
            let (half_rows, half_panels) = (self.rows / 2, self.panels() / 2);
            let first = panel % half_panels * self.panel_rows;
            (panel / half_panels * half_rows + first, self.panel_rows.min(half_rows - first))
        } else {
            let first = panel * self.panel_rows;
            (first, self.panel_rows.min(self.rows - first))
        }
    }

    /// Groups that `units` begin or belong to.
    pub(crate) fn groups(self, units: u64) -> u64 {
        match self.quantization {
            Some(quantization) => (units * self.unit_inputs()).div_ceil(quantization.group.into()),
            None => 0,
        }
    }

    /// Bytes of one group's scales, or minima, of all rows of a panel.
    pub(crate) fn scaling_bytes(self) -> u64 {
        self.quantization.map_or(0, |quantization| self.panel_rows * quantization.scale.bytes())
    }

    /// Byte of a block of `units` at which its scales start.
    pub(crate) fn scales_at_bytes(self, units: u64) -> u64 {
        units * self.panel_rows * UNIT_BYTES
    }

    /// Byte of a block of `units` at which its minima start, where it has them.
    pub(crate) fn minima_at_bytes(self, units: u64) -> Option<u64> {
        let has_minimum = self.quantization.is_some_and(|quantization| quantization.has_minimum);
        has_minimum.then(|| self.scales_at_bytes(units) + self.groups(units) * self.scaling_bytes())
    }

    /// Bytes of a block of `units`, at most 32.
    pub(crate) fn block_bytes(self, units: u64) -> u64 {
        let end = self.minima_at_bytes(units).unwrap_or_else(|| self.scales_at_bytes(units));
        if self.quantization.is_none() {
            return end;
        }
        (end + self.groups(units) * self.scaling_bytes()).next_multiple_of(SECTOR_BYTES)
    }

    /// Bytes of a panel: its blocks one after the other.
    pub(crate) fn panel_bytes(self) -> u64 {
        let (whole, rest) = (self.units() / BLOCK_UNITS, self.units() % BLOCK_UNITS);
        whole * self.block_bytes(BLOCK_UNITS) + self.block_bytes(rest)
    }

    /// Bytes of one matrix.
    pub(crate) fn matrix_bytes(self) -> u64 {
        self.panels() * self.panel_bytes()
    }

    /// Bytes of all matrices.
    pub(crate) fn bytes(self) -> u64 {
        self.matrices * self.matrix_bytes()
    }

    /// Panels of all matrices.
    pub(crate) fn all_panels(self) -> u64 {
        self.matrices * self.panels()
    }

    /// First row of each of these panels, with panels and rows of all matrices numbered through, and how many
    /// of its rows exist.
    pub(crate) fn rows_of_panels(self, panels: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
        panels.map(move |panel| {
            let (matrix, panel) = (panel / self.panels(), panel % self.panels());
            let (first, present) = self.panel_rows_at(panel);
            (matrix * self.rows + first, present)
        })
    }
}

/// Bit of a dword at which the integer of its `input`-th input starts. The halves of a dword hold
/// neighbours, so that one mask takes a pair of inputs for both halves of a register.
pub(crate) const fn first_bit(bits: u32, input: u32) -> u32 {
    match bits {
        8 => input * 8,
        _ => input % 2 * 16 + input / 2 * 4,
    }
}

/// Elements of one head in a cache: whole loads of 16 bytes.
pub(crate) fn padded_head_dim(cache: &CacheType) -> u64 {
    cache.head_dim.next_multiple_of(UNIT_BYTES / cache.element.bytes())
}

/// Bytes of a cache: `[slot, kv_head, block, 256, padded head_dim]`, keys and values alike.
pub(crate) fn cache_bytes(cache: &CacheType) -> u64 {
    let positions = cache.blocks() * CACHE_BLOCK_POSITIONS;
    cache.slots * cache.kv_heads * positions * padded_head_dim(cache) * cache.element.bytes()
}

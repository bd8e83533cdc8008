//! The inner product of the matrix kernels: some rows of activations times some panels of weights.
//!
//! ```text
//! for input pair:                        weights stream, one load a panel
//!   for row, panel: sum[row, panel] += x[row, 2p] · w[2p, lanes]; += x[row, 2p + 1] · w[2p + 1, lanes]
//! ```
//!
//! A dword of two bf16 widens with one shift and one mask; each sum is one chain in ascending input
//! order, so that a row gets the same bits whatever rows and panels stand beside it. Per pair and panel:
//! 1 load + 2 bit operations, per row 2 multiply-adds: with 4 panels and one row the chain of 8 cycles
//! takes 256 bytes of weights, well above what memory gives a core.
//!
//! Where the processor has `vdpbf16ps`, it multiplies the dwords as they are, 32 products an instruction.
//! Where it has a matrix unit, `matrix_order` says how sums of bf16 are added.
//!
//! Quantized weights are widened to `integer · scale` in registers, so that the product is that of the
//! dequantized weights:
//!
//! ```text
//! for group: scale[lanes] of each panel
//!   for dword of the group, input in it:  2 shifts, conversion, multiplication; then as above
//! ```
//!
//! That is 5 operations for a vector of weights on decode; 8 rows share the first 4 on a prompt.

use qwen2c_request::{Element, Quantization, QuantizedRow, WeightLayout, WeightType};

use super::Kernel;
use super::fetch_ahead::fetch_ahead;
use super::matrix_order::{is_in_matrix_order, sums_in_matrix_order};
use super::matrix_product::LINE_BYTES;
use super::quantize_rows::QuantizedBuffer;
use crate::builder::{Buffer, Compare, Scalar, Val};
use crate::cpu::layout::{CHUNK_GROUPS, ChunkGeometry, PanelGeometry};

/// A product under construction.
pub(super) struct PanelProduct<'k> {
    /// Activations.
    activations: Buffer<'k>,
    /// Panels of one matrix.
    panels: Buffer<'k>,
    /// Their geometry.
    pub(super) geometry: PanelGeometry,
}

/// Geometry of weight operand `index`.
pub(super) fn geometry(layouts: &[WeightLayout], weight: &WeightType, lanes: u32) -> PanelGeometry {
    match layouts[0] {
        WeightLayout::Panels { lanes, pair, separate_halves } => {
            PanelGeometry::new(weight, lanes, pair, separate_halves)
        }
        // `choose` offers panels alone for products.
        WeightLayout::RowMajor | WeightLayout::WarpPanels { .. } => {
            PanelGeometry::new(weight, lanes, 1, false)
        }
    }
}

impl<'k> PanelProduct<'k> {
    /// The product of input 0 with weight 0, whose panels start at `first_byte` (an expert's matrix).
    pub(super) fn new(kernel: &Kernel<'k, '_>, first_byte: Val<'k>) -> Self {
        let geometry = geometry(kernel.layouts, kernel.weight_type(0), kernel.lanes);
        Self { activations: kernel.input(0), panels: kernel.weight(0).at_bytes(first_byte), geometry }
    }

    /// Sums `[row][panel]` for rows of activations and panels with these numbers.
    pub(super) fn sums(
        &self,
        kernel: &Kernel<'k, '_>,
        rows: &[Val<'k>],
        panels: &[Val<'k>],
    ) -> Vec<Vec<Val<'k>>> {
        let (k, lanes, columns) = (kernel.k, kernel.lanes, self.geometry.columns);
        let count = panels.len();
        let panels: Vec<Buffer<'k>> = panels
            .iter()
            .map(|panel| self.panels.at_bytes(*panel * k.int(self.geometry.panel_bytes())))
            .collect();
        let extents = QuantizedRow::new(self.activations.element, columns);
        let sums = match (self.geometry.quantization, extents) {
            (Some(quantization), Some(extents)) => {
                let row = |row: &Val<'k>| QuantizedBuffer::new(self.activations, extents, *row);
                let rows: Vec<QuantizedBuffer<'k>> = rows.iter().map(row).collect();
                self.integer_sums(kernel, &rows, &panels, quantization)
            }
            (quantization, _) => {
                let row = |row: &Val<'k>| self.activations.at(*row * k.int(columns));
                let rows: Vec<Buffer<'k>> = rows.iter().map(row).collect();
                let zeros = vec![k.float(0.0, lanes); rows.len() * panels.len()];
                match quantization {
                    Some(quantization) => self.quantized_sums(kernel, &rows, &panels, quantization, &zeros),
                    None if is_in_matrix_order(
                        kernel.instructions,
                        self.activations.element,
                        self.geometry,
                    ) =>
                    {
                        sums_in_matrix_order(kernel, self.geometry.columns, &rows, &panels, &zeros)
                    }
                    None => self.plain_sums(kernel, &rows, &panels, &zeros),
                }
            }
        };
        sums.chunks(count).map(<[Val<'k>]>::to_vec).collect()
    }

    fn plain_sums(
        &self,
        kernel: &Kernel<'k, '_>,
        rows: &[Buffer<'k>],
        panels: &[Buffer<'k>],
        zeros: &[Val<'k>],
    ) -> Vec<Val<'k>> {
        let (k, lanes, geometry) = (kernel.k, kernel.lanes, self.geometry);
        let step = |index: Val<'k>, inputs: u64, sums: &[Val<'k>]| {
            let place = index * k.int(lanes);
            for panel in panels {
                fetch_ahead(kernel, *panel, place);
            }
            if geometry.pair == 1 {
                let weights = vec![panels.iter().map(|panel| panel.load(place, lanes)).collect()];
                return accumulate(rows, &weights, sums, |row| vec![row.load(index, 1).splat(lanes)]);
            }
            if let Some(name) = kernel.instructions.bf16_dot {
                let weights = panels.iter().map(|panel| panel.load_as(Scalar::I32, place, lanes));
                let x = |row: &Buffer<'k>| match inputs {
                    2 => row.load_as(Scalar::I32, index, 1),
                    // What lies behind the last input belongs to the next row.
                    _ => {
                        row.load_as(Scalar::I16, k.int(geometry.columns - 1), 1).extend_unsigned(Scalar::I32)
                    }
                };
                return add_bf16_pairs(name, rows, &weights.collect::<Vec<_>>(), sums, x);
            }
            let load = |panel: &Buffer<'k>| panel.load_as(Scalar::I32, place, lanes).bf16_pair();
            let (low, high): (Vec<_>, Vec<_>) = panels.iter().map(load).unzip();
            if inputs == 2 {
                return accumulate(rows, &[low, high], sums, |row| {
                    let pair = row.load_as(Scalar::I32, index, 1).splat(lanes).bf16_pair();
                    vec![pair.0, pair.1]
                });
            }
            // The last input of an odd number, whose partner in the pair is padding.
            let last = k.int(geometry.columns - 1);
            accumulate(rows, &[low], sums, |row| vec![row.load(last, 1).splat(lanes)])
        };
        let whole = k.int(geometry.columns / geometry.pair);
        let sums = k.for_each(k.int(0), whole, 1, zeros, |index, sums| step(index, geometry.pair, sums));
        match geometry.columns % geometry.pair {
            0 => sums,
            rest => step(whole, rest, &sums),
        }
    }

    fn quantized_sums(
        &self,
        kernel: &Kernel<'k, '_>,
        rows: &[Buffer<'k>],
        panels: &[Buffer<'k>],
        quantization: Quantization,
        zeros: &[Val<'k>],
    ) -> Vec<Val<'k>> {
        let k = kernel.k;
        let per_dword = quantization.per_dword();
        self.for_each_group(kernel, panels, quantization, zeros, |group, sums| {
            let rows: Vec<Buffer<'k>> =
                rows.iter().map(|row| row.at(group.number * k.int(quantization.group))).collect();
            let step = |dword: Val<'k>, inputs: u32, sums: &[Val<'k>]| {
                let inputs = Inputs { dword, inputs, quantization };
                dword_step(kernel, &rows, group, &inputs, sums)
            };
            let whole = group.inputs / per_dword;
            let mut sums =
                k.for_each(k.int(0), k.int(whole), 1, sums, |dword, sums| step(dword, per_dword, sums));
            // A dword that is partly empty.
            if group.inputs % per_dword > 0 {
                sums = step(k.int(whole), group.inputs % per_dword, &sums);
            }
            sums
        })
    }

    /// Carries `sums` through all groups of some panels in order.
    pub(super) fn for_each_group(
        &self,
        kernel: &Kernel<'k, '_>,
        panels: &[Buffer<'k>],
        quantization: Quantization,
        sums: &[Val<'k>],
        add_group: impl Fn(&Group<'k>, &[Val<'k>]) -> Vec<Val<'k>>,
    ) -> Vec<Val<'k>> {
        let (k, columns) = (kernel.k, self.geometry.columns);
        let chunks = ChunkGeometry { lanes: self.geometry.lanes, quantization };
        let add_chunk = |chunk: Val<'k>, inputs: u64, sums: &[Val<'k>]| {
            let start = chunk * k.int(chunks.bytes(chunks.inputs()));
            let mut sums = sums.to_vec();
            for (index, place) in (0_u64..).zip(chunks.groups(inputs)) {
                let at = |bytes: u64| -> Vec<Buffer<'k>> {
                    panels.iter().map(|panel| panel.at_bytes(start + k.int(bytes))).collect()
                };
                let scalings = |bytes: u64| -> Vec<Val<'k>> {
                    // Those of two groups may share a line.
                    for panel in at(bytes).into_iter().filter(|_| bytes.is_multiple_of(LINE_BYTES)) {
                        fetch_ahead(kernel, panel, k.int(0));
                    }
                    let buffers = at(bytes).into_iter().map(|buffer| buffer.seen_as(quantization.scale));
                    buffers.map(|buffer| buffer.load(k.int(0), kernel.lanes)).collect()
                };
                let group = Group {
                    number: chunk * k.int(CHUNK_GROUPS) + k.int(index),
                    inputs: place.inputs,
                    dwords: at(place.dwords_at_bytes),
                    scales: scalings(place.scales_at_bytes),
                    minima: place.minima_at_bytes.map(scalings),
                };
                sums = add_group(&group, &sums);
            }
            sums
        };
        let whole = k.int(columns / chunks.inputs());
        let sums =
            k.for_each(k.int(0), whole, 1, sums, |chunk, sums| add_chunk(chunk, chunks.inputs(), sums));
        match columns % chunks.inputs() {
            0 => sums,
            rest => add_chunk(whole, rest, &sums),
        }
    }
}

/// A group of inputs of some quantized panels.
pub(super) struct Group<'k> {
    /// Number in the row.
    pub(super) number: Val<'k>,
    /// Inputs that exist.
    pub(super) inputs: u32,
    /// Dwords of each panel, `[dwords, lanes]`.
    pub(super) dwords: Vec<Buffer<'k>>,
    /// Scales of each panel's rows.
    pub(super) scales: Vec<Val<'k>>,
    /// Minima of each panel's rows, where there are any.
    pub(super) minima: Option<Vec<Val<'k>>>,
}

/// `sums[row][panel] + Σ x[row][input] · weights[input][panel]`, inputs in order.
pub(super) fn accumulate<'k>(
    rows: &[Buffer<'k>],
    weights: &[Vec<Val<'k>>],
    sums: &[Val<'k>],
    activations: impl Fn(&Buffer<'k>) -> Vec<Val<'k>>,
) -> Vec<Val<'k>> {
    let mut sums = sums.to_vec();
    let panels = sums.len() / rows.len();
    for (row, sums) in rows.iter().zip(sums.chunks_mut(panels)) {
        for (x, weights) in activations(row).into_iter().zip(weights) {
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum = x.multiply_add(*weight, *sum);
            }
        }
    }
    sums
}

/// `sums[row][panel]` and the products of one pair of bf16 inputs, by the instruction `name`.
fn add_bf16_pairs<'k>(
    name: &str,
    rows: &[Buffer<'k>],
    weights: &[Val<'k>],
    sums: &[Val<'k>],
    pair: impl Fn(&Buffer<'k>) -> Val<'k>,
) -> Vec<Val<'k>> {
    let mut sums = sums.to_vec();
    for (row, sums) in rows.iter().zip(sums.chunks_mut(weights.len())) {
        let x = pair(row).splat(weights[0].ty.lanes).as_lanes_of(Scalar::Bf16);
        for (sum, weights) in sums.iter_mut().zip(weights) {
            *sum = sum.instruction(name, &[weights.as_lanes_of(Scalar::Bf16), x], sum.ty);
        }
    }
    sums
}

/// A dword of quantized weights, `inputs` of which exist.
struct Inputs<'k> {
    dword: Val<'k>,
    inputs: u32,
    quantization: Quantization,
}

/// The inputs of one dword of every row and panel.
fn dword_step<'k>(
    kernel: &Kernel<'k, '_>,
    rows: &[Buffer<'k>],
    group: &Group<'k>,
    Inputs { dword, inputs, quantization }: &Inputs<'k>,
    sums: &[Val<'k>],
) -> Vec<Val<'k>> {
    let (k, lanes) = (kernel.k, kernel.lanes);
    let per_dword = quantization.per_dword();
    let place = *dword * k.int(lanes);
    let load = |dwords: &Buffer<'k>| {
        fetch_ahead(kernel, *dwords, place);
        dwords.load_as(Scalar::I32, place, lanes)
    };
    let packed: Vec<Val<'k>> = group.dwords.iter().map(load).collect();
    let mut sums = sums.to_vec();
    let first = *dword * k.int(per_dword);
    let activations = |row: &Buffer<'k>, input: u32| -> Vec<Val<'k>> {
        if row.element == Element::Bf16 && input + 1 < *inputs {
            let pair = row.at(first).load_as(Scalar::I32, k.int(input / 2), 1).splat(lanes).bf16_pair();
            return vec![pair.0, pair.1];
        }
        let last = (input + 2).min(*inputs);
        (input..last).map(|input| row.load(first + k.int(input), 1).splat(lanes)).collect()
    };
    for input in (0..*inputs).step_by(2) {
        let count = 2.min(inputs - input);
        let weights: Vec<Vec<Val<'k>>> = (input..input + count)
            .map(|input| {
                let integers = packed.iter().map(|packed| widened(*packed, quantization, input));
                let scaled = integers.zip(&group.scales);
                match &group.minima {
                    None => scaled.map(|(integer, scale)| integer * *scale).collect(),
                    Some(minima) => scaled
                        .zip(minima)
                        .map(|((integer, scale), minimum)| integer.multiply_add(*scale, *minimum))
                        .collect(),
                }
            })
            .collect();
        sums = accumulate(rows, &weights, &sums, |row| activations(row, input));
    }
    sums
}

/// The integers of the `input`-th inputs of some dwords as `f32`.
pub(super) fn widened<'k>(packed: Val<'k>, quantization: &Quantization, input: u32) -> Val<'k> {
    let field = packed.field(quantization.first_bit(input), quantization.bits);
    let bias = field.builder().int_vector(Scalar::I32, quantization.bias().into(), field.ty.lanes);
    let integer = if quantization.has_minimum { field } else { field - bias };
    integer.to_float()
}

/// The panels of a tile: one from each of several streams of memory.
///
/// The panels of a matrix (of each half, where gate and up are separate) are cut into as many contiguous
/// pieces as a tile has streams, and tile `t` takes the `t`-th panel of each piece. A worker that computes
/// consecutive tiles reads each piece from front to back: several long streams are what brings the most
/// bytes from memory.
pub(super) struct PanelStreams {
    /// Panels of a matrix, or of each of its halves.
    panels: u64,
    /// Panels of one piece; the last pieces may have fewer.
    piece_panels: u64,
    /// Each panel of the first half comes with its partner of the second.
    has_halves: bool,
}

impl PanelStreams {
    /// At most `streams` streams; an even number where the matrix has halves.
    pub(super) fn new(geometry: PanelGeometry, streams: u64) -> Self {
        let halves = if geometry.separate_halves { 2 } else { 1 };
        let panels = geometry.panels() / halves;
        Self { panels, piece_panels: panels.div_ceil(streams / halves), has_halves: halves == 2 }
    }

    /// Number of tiles.
    pub(super) fn tiles(&self) -> u64 {
        self.piece_panels
    }

    /// Emits `body(panels)` for tile number `tile`, with the numbers of its panels, those of halves in
    /// pairs: once for tiles with as many panels as any, once more for those with one less.
    pub(super) fn with_tile<'k>(&self, kernel: &Kernel<'k, '_>, tile: Val<'k>, body: impl Fn(&[Val<'k>])) {
        let k = kernel.k;
        let pieces = self.panels.div_ceil(self.piece_panels);
        let of_first_pieces = |count: u64| {
            let first_half = (0..count).map(|piece| tile + k.int(piece * self.piece_panels));
            let panels: Vec<Val<'k>> = if self.has_halves {
                first_half.flat_map(|panel| [panel, panel + k.int(self.panels)]).collect()
            } else {
                first_half.collect()
            };
            body(&panels);
        };
        let in_last_piece = self.panels - (pieces - 1) * self.piece_panels;
        if in_last_piece == self.piece_panels {
            of_first_pieces(pieces);
        } else {
            k.when_else(
                tile.compare(Compare::Less, k.int(in_last_piece)),
                || of_first_pieces(pieces),
                || of_first_pieces(pieces - 1),
            );
        }
    }
}

/// Where results lie: columns of a row, with a last vector that may be cut.
pub(super) struct ResultRow<'k> {
    /// First element of the row.
    pub(super) out: Buffer<'k>,
    /// Columns of the result.
    pub(super) columns: u64,
}

impl<'k> ResultRow<'k> {
    /// Stores `value(load)` at `column`, where `load(buffer)` gives a vector of another row of the same
    /// width at that column.
    pub(super) fn store(
        &self,
        kernel: &Kernel<'k, '_>,
        column: Val<'k>,
        value: impl FnOnce(&dyn Fn(Buffer<'k>) -> Val<'k>) -> Val<'k>,
    ) {
        let (k, lanes) = (kernel.k, kernel.lanes);
        if self.columns.is_multiple_of(u64::from(lanes)) {
            self.out.store(column, value(&|buffer| buffer.load(column, lanes)));
        } else {
            let left = (k.int(self.columns) - column).truncate(Scalar::I32);
            let mask = k.iota(lanes).compare(Compare::Less, left.splat(lanes));
            self.out.store_masked(column, value(&|buffer| buffer.load_masked(column, mask)), mask);
        }
    }
}

/// Consecutive inputs of a row that a product of this weight reads together.
pub(in crate::cpu) const fn pair_of(weight: &WeightType) -> u32 {
    match (weight.quantization, weight.element) {
        (Some(quantization), _) => quantization.per_dword(),
        (None, Element::Bf16) => 2,
        (None, Element::F32 | Element::F16 | Element::I32 | Element::I8 { .. } | Element::I16 { .. }) => 1,
    }
}

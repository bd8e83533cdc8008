//! The inner product where activations are integers of 8 or 16 bits: integers are multiplied and added
//! exactly, and each group's sum is scaled once.
//!
//! ```text
//! for group:
//!   total[row, panel] = −bias · sum of the row's integers        weights are stored unsigned: + bias
//!   for dword of 4 inputs:                 weights stream, one load for 4 (8 bits) or 8 (4 bits) inputs
//!     total[row, panel] += Σ₄ a[row, input] · w[lanes, input]
//!   sum[row, panel] += total · (scale of w[lanes] · scale of a[row])
//!   where weights have minima:  bias is 0;  sum[row, panel] += minimum of w[lanes] · Σ a[row]
//! ```
//!
//! With VNNI the innermost line is one instruction (`vpdpbusd`): 64 products. Without it, 4-bit weights
//! multiply bytes to 16-bit pairs (`vpmaddubsw`), whose sums over 32 inputs stay below 8 · 2 · 15 · 128 =
//! 30720 and are widened once (`vpmaddwd` with ones); 8-bit weights would overflow there and are widened
//! first. Integers are exact on all of these ways, and the floats of a group are added in one order, so
//! that every level, and a row alone or among others, gives the same bits.
//!
//! Activations of 16 bits are two planes of bytes. Where bytes are multiplied, each plane has a total of its
//! own, and a group ends with `256 · total of the high bytes + total of the low bytes`; where bytes are
//! widened first, the planes are put together instead, at no cost. The largest total, of 128 inputs of
//! 32512 and 255, is 1.1 · 10⁹ and stays within 32 bits.

use qwen2c_request::Quantization;

use super::Kernel;
use super::fetch_ahead::fetch_ahead;
use super::panel_product::{Group, PanelProduct};
use super::quantize_rows::QuantizedBuffer;
use crate::builder::{Buffer, Scalar, Ty, Val};

/// Inputs of a block: as many as 16-bit sums of products with 4-bit weights can hold.
const BLOCK_INPUTS: u32 = 32;

/// Totals of a row and a panel: of the planes of its activations, or of all together.
fn totals_of(kernel: &Kernel<'_, '_>, bits: u32, planes: usize) -> usize {
    let widens = kernel.instructions.byte_products.dot.is_none() && bits == 8;
    if widens { 1 } else { planes }
}

/// Dwords of one block of inputs of a group.
struct Block {
    bits: u32,
    /// Dwords that exist.
    dwords: u32,
}

impl<'k> PanelProduct<'k> {
    /// Sums `[row][panel]`, row by row, of rows of integers.
    pub(super) fn integer_sums(
        &self,
        kernel: &Kernel<'k, '_>,
        rows: &[QuantizedBuffer<'k>],
        panels: &[Buffer<'k>],
        quantization: Quantization,
    ) -> Vec<Val<'k>> {
        let zeros = vec![kernel.k.float(0.0, kernel.lanes); rows.len() * panels.len()];
        self.for_each_group(kernel, panels, quantization, &zeros, |group, sums| {
            add_group(kernel, rows, group, quantization, sums)
        })
    }
}

/// `sums[row][panel]` and the products of one group.
fn add_group<'k>(
    kernel: &Kernel<'k, '_>,
    rows: &[QuantizedBuffer<'k>],
    group: &Group<'k>,
    quantization: Quantization,
    sums: &[Val<'k>],
) -> Vec<Val<'k>> {
    let (k, lanes) = (kernel.k, kernel.lanes);
    let (per_dword, panels) = (quantization.per_dword(), group.dwords.len());
    let integers: Vec<Vec<Buffer<'k>>> = rows.iter().map(|row| row.planes(group.number)).collect();
    let of_panel = totals_of(kernel, quantization.bits, integers[0].len());
    let starts = rows.iter().flat_map(|row| {
        let zero = k.int_vector(Scalar::I32, 0, lanes);
        let mut starts = vec![zero; of_panel];
        if !quantization.has_minimum {
            let negated_sum = row.negated_sums().load(group.number, 1).splat(lanes);
            starts[of_panel - 1] = negated_sum.shift_left(i64::from(quantization.bits) - 1);
        }
        starts.repeat(panels)
    });
    let mut totals: Vec<Val<'k>> = starts.collect();
    let block_dwords = BLOCK_INPUTS / per_dword;
    let dwords = group.inputs.div_ceil(per_dword);
    let (whole, rest) = (dwords / block_dwords, dwords % block_dwords);
    let add_block = |index: Val<'k>, dwords: u32, totals: &[Val<'k>]| {
        let of_block = |plane: &Buffer<'k>| plane.at(index * k.int(BLOCK_INPUTS));
        let integers: Vec<Vec<Buffer<'k>>> =
            integers.iter().map(|planes| planes.iter().map(of_block).collect()).collect();
        let first = index * k.int(i64::from(block_dwords * lanes) * 4);
        let weights: Vec<Buffer<'k>> = group.dwords.iter().map(|dwords| dwords.at_bytes(first)).collect();
        add_block(kernel, &integers, &weights, &Block { bits: quantization.bits, dwords }, totals)
    };
    totals = k
        .for_each(k.int(0), k.int(whole), 1, &totals, |index, totals| add_block(index, block_dwords, totals));
    if rest > 0 {
        totals = add_block(k.int(whole), rest, &totals);
    }
    let mut results = Vec::with_capacity(sums.len());
    let totals: Vec<Val<'k>> = totals.chunks(of_panel).map(join_planes).collect();
    for (row, (totals, sums)) in rows.iter().zip(totals.chunks(panels).zip(sums.chunks(panels))) {
        let scale = row.scales().load(group.number, 1).splat(lanes);
        for ((total, sum), weight_scale) in totals.iter().zip(sums).zip(&group.scales) {
            results.push(total.to_float().multiply_add(*weight_scale * scale, *sum));
        }
        if let Some(minima) = &group.minima {
            // Σ a · minimum: the minimum times the sum of the row's integers and their scale.
            let first = results.len() - panels;
            let negated_sum = row.negated_sums().load(group.number, 1).to_float();
            let negated = (negated_sum * row.scales().load(group.number, 1)).splat(lanes);
            for (result, minimum) in results[first..].iter_mut().zip(minima) {
                *result = *result - negated * *minimum;
            }
        }
    }
    results
}

/// `256 · high + low`, or the only one.
pub(super) fn join_planes<'k>(totals: &[Val<'k>]) -> Val<'k> {
    match totals {
        [high, low] => high.shift_left(8) + *low,
        _ => totals[0],
    }
}

/// `totals[row][panel][plane]` and the products of one block.
fn add_block<'k>(
    kernel: &Kernel<'k, '_>,
    rows: &[Vec<Buffer<'k>>],
    panels: &[Buffer<'k>],
    block: &Block,
    totals: &[Val<'k>],
) -> Vec<Val<'k>> {
    let (k, lanes, bits) = (kernel.k, kernel.lanes, block.bits);
    let of_panel = totals.len() / (rows.len() * panels.len());
    let mut totals: Vec<Total<'k>> = totals.iter().map(|total| Total::new(*total)).collect();
    for dword in 0..block.dwords {
        let place = k.int(dword * lanes);
        let load = |panel: &Buffer<'k>| {
            fetch_ahead(kernel, *panel, place);
            panel.load_as(Scalar::I32, place, lanes)
        };
        let packed: Vec<Val<'k>> = panels.iter().map(load).collect();
        // Each part has the unsigned bytes of four inputs.
        let parts: u32 = if bits == 4 { 2 } else { 1 };
        for part in 0..parts {
            let weights: Vec<Val<'k>> = packed
                .iter()
                .map(|packed| if bits == 4 { nibbles(*packed, part) } else { *packed })
                .collect();
            for (planes, totals) in rows.iter().zip(totals.chunks_mut(panels.len() * of_panel)) {
                let place = k.int(dword * parts + part);
                let load = |plane: &Buffer<'k>| plane.load_as(Scalar::I32, place, 1).splat(lanes);
                let activations: Vec<Val<'k>> = planes.iter().map(load).collect();
                for (totals, weights) in totals.chunks_mut(of_panel).zip(&weights) {
                    // One total of all planes, or one of each.
                    for (total, planes) in totals.iter_mut().zip(activations.chunks(planes.len() / of_panel))
                    {
                        total.add_products(kernel, *weights, planes, bits);
                    }
                }
            }
        }
    }
    totals.into_iter().map(|total| total.finish(kernel)).collect()
}

/// The low or the high halves of all bytes.
pub(super) fn nibbles(packed: Val<'_>, part: u32) -> Val<'_> {
    let lowered = if part == 0 { packed } else { packed.shift_right(4) };
    lowered.and_bits(0x0f0f_0f0f)
}

/// A total under construction: 32-bit lanes, and 16-bit lanes that are added to them at the end.
struct Total<'k> {
    wide: Val<'k>,
    narrow: Option<Val<'k>>,
}

impl<'k> Total<'k> {
    const fn new(wide: Val<'k>) -> Self {
        Self { wide, narrow: None }
    }

    /// Adds the products of four unsigned weights and four signed activations of each lane, in one plane or
    /// in two that are put together here.
    fn add_products(&mut self, kernel: &Kernel<'k, '_>, weights: Val<'k>, planes: &[Val<'k>], bits: u32) {
        let names = &kernel.instructions.byte_products;
        let (bytes, halves) = (Scalar::I8, Scalar::I16);
        let activations = planes[planes.len() - 1];
        if let Some(name) = names.dot {
            let operands = [weights.as_lanes_of(bytes), activations.as_lanes_of(bytes)];
            self.wide = self.wide.instruction(name, &operands, self.wide.ty);
        } else if bits == 4 {
            let pairs = weights.as_lanes_of(bytes).instruction(
                names.byte_pairs,
                &[activations.as_lanes_of(bytes)],
                Ty::vector(halves, 2 * kernel.lanes),
            );
            self.narrow = Some(self.narrow.map_or(pairs, |narrow| narrow + pairs));
        } else {
            let (weights, activations) = (weights.as_lanes_of(halves), activations.as_lanes_of(halves));
            let mut even = activations.shift_left(8).shift_right_signed(8);
            let mut odd = activations.shift_right_signed(8);
            if let [high, _] = planes {
                let high = high.as_lanes_of(halves);
                even = high.shift_left(8) + even;
                odd = high.and_bits(-256) + odd;
            }
            for (weights, activations) in [(weights.and_bits(0xff), even), (weights.shift_right(8), odd)] {
                let products = weights.instruction(names.half_pairs, &[activations], self.wide.ty);
                self.wide = self.wide + products;
            }
        }
    }

    fn finish(self, kernel: &Kernel<'k, '_>) -> Val<'k> {
        match self.narrow {
            None => self.wide,
            Some(narrow) => {
                let ones = kernel.k.int_vector(Scalar::I16, 1, 2 * kernel.lanes);
                let name = kernel.instructions.byte_products.half_pairs;
                self.wide + narrow.instruction(name, &[ones], self.wide.ty)
            }
        }
    }
}

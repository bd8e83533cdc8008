//! What all matrix-vector products share: a warp multiplies some output rows with a few rows of activations.
//!
//! ```text
//! for block of 32 units of inputs:                      one unit for each thread of the warp
//!   weights = 16 bytes of every output row              all loads before the first product
//!   for dword of the unit:
//!     for row of activations, output row: sum += weights · x
//!   quantized: total += scale · sum (+ minimum · Σ x)   a unit has inputs of one group alone
//! fold the totals over the warp's threads
//! ```
//!
//! A weight is read once, 512 bytes side by side. For each 16 bytes of weights a thread needs the inputs of
//! its unit once, whatever the number of output rows, and those come from shared memory or a cache.

use qwen2c_request::Element;

use super::Kernel;
use crate::builder::{Buffer, Compare, KernelBuilder, Scalar, Ty, Val, WARP_THREADS};
use crate::cuda::layout::{BLOCK_UNITS, UNIT_BYTES, WarpGeometry, first_bit};

/// Dwords of a unit.
const UNIT_DWORDS: u32 = 4;

/// A row of activations, `[columns]`.
#[derive(Clone, Copy)]
pub(super) enum InputRow<'k> {
    /// As it stands in the arena.
    Plain(Buffer<'k>),
    /// In shared memory, as the threads of a warp read it side by side: the first 16 bytes of the inputs of
    /// every unit, then the second ones, and so on. Padding is zero.
    Units(Buffer<'k>),
}

/// Parts of 16 bytes that the inputs of a unit have in [`InputRow::Units`].
pub(super) fn unit_parts(geometry: WarpGeometry) -> u64 {
    geometry.unit_inputs() * geometry.element.bytes() / UNIT_BYTES
}

/// Units from one part to the next in [`InputRow::Units`]: so many that the parts of neighbouring units,
/// which are written together, lie in different banks.
pub(super) fn units_of_part(geometry: WarpGeometry) -> u64 {
    /// Units that all banks of shared memory hold side by side.
    const UNITS_OF_BANKS: u64 = 8;
    let parts = unit_parts(geometry);
    if parts == 1 {
        return geometry.units();
    }
    let offset = UNITS_OF_BANKS / parts;
    (geometry.units() + UNITS_OF_BANKS - offset).next_multiple_of(UNITS_OF_BANKS) - UNITS_OF_BANKS + offset
}

impl InputRow<'_> {
    fn element(self) -> Element {
        match self {
            Self::Plain(row) | Self::Units(row) => row.element,
        }
    }
}

/// A panel of weights.
#[derive(Clone, Copy)]
pub(super) struct Panel<'k> {
    /// Memory in front of it, which panels share where they can: a thread keeps the address in registers.
    pub(super) start: Buffer<'k>,
    /// Its first byte behind that.
    pub(super) at_bytes: u64,
}

impl<'k> Panel<'k> {
    /// The panel from byte `offset + behind_bytes` on.
    pub(super) fn at(self, offset: Val<'k>, behind_bytes: u64) -> Buffer<'k> {
        let behind = offset.builder().int(self.at_bytes + behind_bytes);
        self.start.at_bytes(offset).at_bytes(behind)
    }
}

/// One product.
pub(super) struct UnitProduct<'k, 'a> {
    /// The weight's geometry.
    pub(super) geometry: WarpGeometry,
    /// Each panel that the warp multiplies.
    pub(super) panels: &'a [Panel<'k>],
    /// Rows of activations.
    pub(super) inputs: &'a [InputRow<'k>],
    /// The thread's number in its warp.
    pub(super) lane: Val<'k>,
    /// Which warps share the inputs: this one's number, and how many there are.
    pub(super) split: (Val<'k>, u64),
}

impl<'k> UnitProduct<'k, '_> {
    /// `[panel, row of the panel, row of activations]`, folded over the warp: every thread has them.
    pub(super) fn sums(&self, kernel: &Kernel<'k, '_>) -> Vec<Val<'k>> {
        let k = kernel.k;
        let geometry = self.geometry;
        let (whole, rest) = (geometry.units() / BLOCK_UNITS, geometry.units() % BLOCK_UNITS);
        let count = self.panels.len() * geometry.panel_rows as usize * self.inputs.len();
        let zeros = vec![k.float(0.0, 1); count];
        let (part, parts) = self.split;
        let mut sums = k.for_each(part, k.int(whole), parts as i64, &zeros, |block, sums| {
            self.add_block(kernel, block, BLOCK_UNITS, sums)
        });
        if rest > 0 {
            let is_mine = self.lane.compare(Compare::Less, k.int(rest));
            let turn = k.int(whole % parts);
            let is_mine = k.both(is_mine, part.compare(Compare::Equal, turn));
            sums = k.values_when(is_mine, &sums, || self.add_block(kernel, k.int(whole), rest, &sums));
        }
        sums.into_iter().map(|sum| sum.reduce_lanes(crate::builder::Reduction::Sum, WARP_THREADS)).collect()
    }

    /// Adds the thread's unit of a block of `units`.
    fn add_block(
        &self,
        kernel: &Kernel<'k, '_>,
        block: Val<'k>,
        units: u64,
        sums: &[Val<'k>],
    ) -> Vec<Val<'k>> {
        let k = kernel.k;
        let geometry = self.geometry;
        let start = block * k.int(geometry.block_bytes(BLOCK_UNITS));
        let weights: Vec<Val<'k>> = self
            .panels
            .iter()
            .flat_map(|panel| {
                let start = start + self.lane * k.int(UNIT_BYTES);
                (0..geometry.panel_rows).map(move |row| {
                    let unit = panel.at(start, row * units * UNIT_BYTES);
                    unit.seen_as(Element::I32).load_aligned_as(Scalar::I32, k.int(0), UNIT_DWORDS)
                })
            })
            .collect();
        let scalings = self.scalings(kernel, start, units);
        let unit = block * k.int(BLOCK_UNITS) + self.lane;
        let first = unit * k.int(geometry.unit_inputs());
        // Padding is at the end of the last block.
        let is_padded = units < BLOCK_UNITS && !geometry.columns.is_multiple_of(geometry.unit_inputs());
        let mut partial: Vec<Val<'k>> =
            if scalings.is_empty() { sums.to_vec() } else { vec![k.float(0.0, 1); sums.len()] };
        let mut input_sums = vec![k.float(0.0, 1); self.inputs.len()];
        let per_dword = geometry.unit_inputs() / u64::from(UNIT_DWORDS);
        // As many dwords at a time as one load of inputs serves.
        let x_bytes = self.inputs[0].element().bytes();
        let dwords = (UNIT_BYTES / x_bytes / per_dword).clamp(1, UNIT_DWORDS.into()) as u32;
        for dword in (0..UNIT_DWORDS).step_by(dwords as usize) {
            let first = first + k.int(u64::from(dword) * per_dword);
            let widen = |unit: &Val<'k>| {
                let dwords = dword..dword + dwords;
                dwords.flat_map(|dword| widen_dword(k, &geometry, unit.lane(dword))).collect::<Vec<_>>()
            };
            let widened: Vec<Vec<Val<'k>>> = weights.iter().map(widen).collect();
            for (row, x) in self.inputs.iter().enumerate() {
                let count = u64::from(dwords) * per_dword;
                let x = match *x {
                    InputRow::Plain(x) => load_inputs(k, x, first, count, geometry.columns, is_padded),
                    InputRow::Units(x) => {
                        let part = u64::from(dword) * per_dword * x_bytes / UNIT_BYTES;
                        load_from_units(k, x, unit, units_of_part(geometry), (part, count))
                    }
                };
                for (place, weights) in widened.iter().enumerate() {
                    let sum = &mut partial[place * self.inputs.len() + row];
                    for (weight, x) in weights.iter().zip(&x) {
                        *sum = weight.multiply_add(*x, *sum);
                    }
                }
                if geometry.quantization.is_some_and(|quantization| quantization.has_minimum) {
                    input_sums[row] = x.iter().fold(input_sums[row], |sum, x| sum + *x);
                }
            }
        }
        if scalings.is_empty() {
            return partial;
        }
        let of_place = |place: usize| scalings[place / self.inputs.len()];
        sums.iter()
            .zip(&partial)
            .enumerate()
            .map(|(place, (sum, partial))| {
                let (scale, minimum) = of_place(place);
                let sum = scale.multiply_add(*partial, *sum);
                match minimum {
                    Some(minimum) => minimum.multiply_add(input_sums[place % self.inputs.len()], sum),
                    None => sum,
                }
            })
            .collect()
    }

    /// Scale and minimum of the thread's unit in each row of each panel; none of elements.
    fn scalings(
        &self,
        kernel: &Kernel<'k, '_>,
        start: Val<'k>,
        units: u64,
    ) -> Vec<(Val<'k>, Option<Val<'k>>)> {
        let (k, geometry) = (kernel.k, self.geometry);
        let Some(quantization) = geometry.quantization else { return Vec::new() };
        let group = self.lane * k.int(geometry.unit_inputs()) / k.int(quantization.group);
        let offset = start + group * k.int(geometry.scaling_bytes());
        let rows = geometry.panel_rows as u32;
        let load = |panel: &Panel<'k>, at_bytes: u64| -> Vec<Val<'k>> {
            let scales = panel.at(offset, at_bytes).seen_as(quantization.scale);
            let per_load = (UNIT_BYTES / quantization.scale.bytes()) as u32;
            (0..rows)
                .step_by(per_load as usize)
                .flat_map(|first| {
                    let lanes = per_load.min(rows - first);
                    let loaded = scales.load_aligned(k.int(first), lanes);
                    (0..lanes).map(move |lane| loaded.lane(lane))
                })
                .collect()
        };
        self.panels
            .iter()
            .flat_map(|panel| {
                let scales = load(panel, geometry.scales_at_bytes(units));
                let minima = match geometry.minima_at_bytes(units) {
                    Some(at_bytes) => load(panel, at_bytes).into_iter().map(Some).collect(),
                    None => vec![None; scales.len()],
                };
                scales.into_iter().zip(minima)
            })
            .collect()
    }
}

/// Inputs of a row, as `f32`; those behind the row's end are zero.
fn load_inputs<'k>(
    k: &'k KernelBuilder<'k>,
    x: Buffer<'k>,
    first: Val<'k>,
    count: u64,
    columns: u64,
    is_padded: bool,
) -> Vec<Val<'k>> {
    if is_padded {
        let zero = [k.float(0.0, 1)];
        return (0..count)
            .map(|index| {
                let column = first + k.int(index);
                let exists = column.compare(Compare::Less, k.int(columns));
                k.values_when(exists, &zero, || vec![x.load(column, 1)])[0]
            })
            .collect();
    }
    // Rows follow one another without gaps: all are aligned where one is.
    let bytes = x.element.bytes();
    let lanes = count.min(UNIT_BYTES / bytes) as u32;
    if !(columns * bytes).is_multiple_of(u64::from(lanes) * bytes) {
        return (0..count).map(|index| x.load(first + k.int(index), 1)).collect();
    }
    (0..count)
        .step_by(lanes as usize)
        .flat_map(|index| {
            let loaded = x.load_aligned(first + k.int(index), lanes);
            (0..lanes).map(move |lane| loaded.lane(lane))
        })
        .collect()
}

/// Inputs of a unit from [`InputRow::Units`], as `f32`: `count` of them, from 16-byte part `part` on.
fn load_from_units<'k>(
    k: &'k KernelBuilder<'k>,
    x: Buffer<'k>,
    unit: Val<'k>,
    units: u64,
    (part, count): (u64, u64),
) -> Vec<Val<'k>> {
    let lanes = UNIT_BYTES / x.element.bytes();
    (0..count / lanes)
        .flat_map(|load| {
            let place = unit + k.int((part + load) * units);
            let loaded = x.load_aligned(place * k.int(lanes), lanes as u32);
            (0..lanes as u32).map(move |lane| loaded.lane(lane))
        })
        .collect()
}

/// The weights of a dword, as `f32` without their scales.
fn widen_dword<'k>(k: &'k KernelBuilder<'k>, geometry: &WarpGeometry, dword: Val<'k>) -> Vec<Val<'k>> {
    match (geometry.quantization, geometry.element) {
        (Some(quantization), _) => (0..32 / quantization.bits)
            .map(|input| {
                let field = dword.field(first_bit(quantization.bits, input), quantization.bits);
                widen_integer(k, field, quantization.bias())
            })
            .collect(),
        (None, Element::Bf16) => {
            let (low, high) = dword.bf16_pair();
            vec![low, high]
        }
        (None, Element::F16) => {
            let pair = dword.f16_pair();
            vec![pair.lane(0), pair.lane(1)]
        }
        (None, _) => vec![dword.bitcast(Scalar::F32)],
    }
}

/// A non-negative integer below 2²³ in 32 bits, less `bias`, as `f32`: the integer becomes the low bits of
/// 2²³'s mantissa, because a conversion has a quarter of the rate of a subtraction.
pub(super) fn widen_integer<'k>(k: &'k KernelBuilder<'k>, integer: Val<'k>, bias: i32) -> Val<'k> {
    const TWO_TO_23: f32 = 8_388_608.0;
    let exponent = k.int_of(Scalar::I32, i64::from(TWO_TO_23.to_bits()));
    let float = integer.or(exponent).bitcast(Scalar::F32);
    debug_assert_eq!(float.ty, Ty::scalar(Scalar::F32));
    float - k.float(TWO_TO_23 + bias as f32, 1)
}

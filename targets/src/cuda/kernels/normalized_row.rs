//! The norm in front of a product: every block normalizes the row for itself, into shared memory.
//!
//! ```text
//! each thread: some of x and weight               all loads before the first product, if there are few
//! factor = 1/sqrt(sum(x²) / n + epsilon)          as in `rms_norm`
//! shared = x · factor · weight                    rounded to the activation type, in units
//! ```
//!
//! The row comes from a cache and the block's weights are on their way meanwhile, so that this takes less
//! than starting a kernel that does it once.

use qwen2c_request::{KernelRequest, Unservable, WeightType};

use super::rms_norm::inverse_root;
use super::unit_product::{InputRow, unit_parts, units_of_part};
use super::{DECODE_THREADS, Kernel};
use crate::builder::{Buffer, Compare, Reduction, Val};
use crate::cuda::layout::{UNIT_BYTES, WarpGeometry};

/// Elements of the row that a thread loads at once.
const LANES: u64 = 4;

/// Elements of the row that a thread holds in registers.
const MOST_OF_A_THREAD: u64 = 128;

/// Elements of a row that a block can normalize.
pub(in crate::cuda) const MOST_ELEMENTS: u64 = MOST_OF_A_THREAD * DECODE_THREADS;

/// Loads of the weight that a thread holds beside as many of the row.
const MOST_EARLY_LOADS: usize = 8;

/// Refuses rows that a block cannot hold: the target's description says so to the pass that would make them.
pub(super) fn check(request: &KernelRequest) -> Result<(), Unservable> {
    let columns = request.weights.first().map_or(0, WeightType::columns);
    if request.operation.norm().is_none() || columns <= MOST_ELEMENTS {
        return Ok(());
    }
    let reason = format!("a norm of {columns} elements inside a product; up to {MOST_ELEMENTS} fit");
    Err(Unservable { reason })
}

/// Elements of a load: rows of odd length leave the following ones at any address.
fn lanes(columns: u64) -> u64 {
    if columns.is_multiple_of(LANES) { LANES } else { 1 }
}

/// Inputs of a row with its padding.
fn padded(geometry: WarpGeometry) -> u64 {
    geometry.units() * geometry.unit_inputs()
}

/// Normalizes row `x` of `f32`, with the request's last weight, into shared memory from byte `at_bytes` on.
/// All threads of the block take part.
pub(super) fn normalize<'k>(
    kernel: &Kernel<'k, '_>,
    geometry: WarpGeometry,
    x: Buffer<'k>,
    at_bytes: u64,
) -> InputRow<'k> {
    let k = kernel.k;
    let epsilon = kernel.request.operation.norm().expect("a product with a norm").0;
    let weight = kernel.weight(kernel.request.weights.len() - 1);
    let lanes = lanes(geometry.columns);
    let (present, all) = (geometry.columns / lanes, padded(geometry) / lanes);
    let threads = kernel.shape.threads;
    let places: Vec<(u64, Val<'k>)> = (0..all.div_ceil(threads))
        .map(|load| ((load + 1) * threads, kernel.thread() + k.int(load * threads)))
        .collect();
    let load = |source: Buffer<'k>, (end, place): (u64, Val<'k>)| {
        let load = || source.load_aligned(place * k.int(lanes), lanes as u32);
        if end <= present {
            return load();
        }
        let exists = place.compare(Compare::Less, k.int(present));
        k.values_when(exists, &[k.float(0.0, lanes as u32)], || vec![load()])[0]
    };
    let loaded: Vec<Val<'k>> = places.iter().map(|place| load(x, *place)).collect();
    let is_early = places.len() <= MOST_EARLY_LOADS;
    let early: Vec<Val<'k>> = places.iter().filter(|_| is_early).map(|place| load(weight, *place)).collect();

    let values = loaded.iter().flat_map(|x| (0..lanes as u32).map(|lane| x.lane(lane)));
    let squares = values.fold(k.float(0.0, 1), |sum, x| x.multiply_add(x, sum));
    let squares = kernel.reduce_block(squares, Reduction::Sum);
    let factor = inverse_root(k, squares, geometry.columns, epsilon).splat(lanes as u32);

    let row = k.shared_memory(geometry.element, at_bytes);
    for (index, ((end, place), x)) in places.into_iter().zip(loaded).enumerate() {
        let weight = early.get(index).copied().unwrap_or_else(|| load(weight, (end, place)));
        let store = || {
            let at = place_in_units(geometry, place * k.int(lanes));
            row.store_aligned(at, x * factor * weight);
        };
        if end <= all { store() } else { k.when(place.compare(Compare::Less, k.int(all)), store) }
    }
    k.barrier();
    InputRow::Units(row)
}

/// Where an input of a row stands in [`InputRow::Units`].
fn place_in_units<'k>(geometry: WarpGeometry, input: Val<'k>) -> Val<'k> {
    let k = input.builder();
    if unit_parts(geometry) == 1 {
        return input;
    }
    let of_load = UNIT_BYTES / geometry.element.bytes();
    let unit_inputs = k.int(geometry.unit_inputs());
    let (unit, within) = (input / unit_inputs, input % unit_inputs);
    let part = within / k.int(of_load);
    (part * k.int(units_of_part(geometry)) + unit) * k.int(of_load) + within % k.int(of_load)
}

//! Sums of bf16 products in the order in which the matrix unit adds them (Intel's manual, `TDPBF16PS`), on
//! the vector unit: so a row gets the same bits alone and among others on a processor that has both.
//!
//! ```text
//! for 32 inputs:  even = odd = 0
//!   for input pair:  even += x[2p] · w[2p, lanes];  odd += x[2p + 1] · w[2p + 1, lanes]
//!   sum += even + odd
//! ```
//!
//! That is 2 bit operations and 2 multiply-adds for a vector of weights, where `vdpbf16ps` would be 1: 86
//! GB/s of weights in the first-level cache against 90, on a core to which memory gives 15 to 25.

use qwen2c_request::Element;

use super::Kernel;
use super::fetch_ahead::fetch_ahead;
use super::panel_product::accumulate;
use crate::builder::{Buffer, Scalar, Val};
use crate::cpu::instructions::Instructions;
use crate::cpu::layout::PanelGeometry;

/// bf16 inputs of a step: of a row of a register of the matrix unit.
pub(super) const STEP_INPUTS: u64 = 32;

/// Whether sums are added in the matrix unit's order: on a processor that has one, for any number of rows.
/// An input length that no step divides has no use for the unit.
pub(super) fn is_in_matrix_order(
    instructions: Instructions,
    activations: Element,
    geometry: PanelGeometry,
) -> bool {
    instructions.matrix.is_some()
        && activations == Element::Bf16
        && geometry.quantization.is_none()
        && geometry.pair == 2
        && geometry.columns.is_multiple_of(STEP_INPUTS)
}

/// Sums `[row][panel]`, row by row, over `columns` inputs.
pub(super) fn sums_in_matrix_order<'k>(
    kernel: &Kernel<'k, '_>,
    columns: u64,
    rows: &[Buffer<'k>],
    panels: &[Buffer<'k>],
    zeros: &[Val<'k>],
) -> Vec<Val<'k>> {
    let (k, lanes) = (kernel.k, kernel.lanes);
    let pairs = STEP_INPUTS / 2;
    k.for_each(k.int(0), k.int(columns / 2), pairs as i64, zeros, |first, sums| {
        let chains = [zeros, zeros].concat();
        let chains = k.for_each(first, first + k.int(pairs), 1, &chains, |pair, chains| {
            let load = |panel: &Buffer<'k>| {
                let place = pair * k.int(lanes);
                fetch_ahead(kernel, *panel, place);
                panel.load_as(Scalar::I32, place, lanes).bf16_pair()
            };
            let (even, odd): (Vec<_>, Vec<_>) = panels.iter().map(load).unzip();
            let pair_of = |row: &Buffer<'k>| row.load_as(Scalar::I32, pair, 1).splat(lanes).bf16_pair();
            let (even_chains, odd_chains) = chains.split_at(zeros.len());
            let even = accumulate(rows, &[even], even_chains, |row| vec![pair_of(row).0]);
            let odd = accumulate(rows, &[odd], odd_chains, |row| vec![pair_of(row).1]);
            [even, odd].concat()
        });
        let (even, odd) = chains.split_at(zeros.len());
        sums.iter().zip(even.iter().zip(odd)).map(|(sum, (even, odd))| *sum + (*even + *odd)).collect()
    })
}

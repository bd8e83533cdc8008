//! `top_k`: the experts of a row, largest probability first, the lower number first where equal. A block is a
//! row.
//!
//! ```text
//! for expert, shared out to threads:
//!   rank = count of experts with a larger probability, or an equal one and a lower number
//!   if rank < k: chosen[rank], weights[rank] = expert, probability
//! weights / Σ weights        with `normalize`, in order of choice
//! ```

use super::Kernel;
use crate::builder::{Compare, Scalar};

/// One row.
pub(super) fn body(kernel: &Kernel<'_, '_>, choices: u64, normalize: bool) {
    let k = kernel.k;
    let experts = k.int(kernel.input_type(0).row_elements());
    let row = kernel.row();
    let source = kernel.input(0).at(row * experts);
    let weights = kernel.output(0).at(row * k.int(choices));
    let chosen = kernel.output(1).at(row * k.int(choices));
    let (zero, one) = (k.int(0), k.int(1));
    kernel.for_each(experts, |expert| {
        let probability = source.load(expert, 1);
        let rank = k.for_each(zero, experts, 1, &[zero], |other, rank| {
            let candidate = source.load(other, 1);
            // Either larger, or not smaller and in front.
            let is_larger = candidate.compare(Compare::Greater, probability);
            let is_smaller = candidate.compare(Compare::Less, probability);
            let in_front = other.compare(Compare::Less, expert).select(one, zero);
            let where_equal = is_smaller.select(zero, in_front);
            vec![rank[0] + is_larger.select(one, where_equal)]
        })[0];
        k.when(rank.compare(Compare::Less, k.int(choices)), || {
            weights.store(rank, probability);
            chosen.store(rank, expert.truncate(Scalar::I32));
        });
    });
    if normalize {
        k.barrier();
        let sum = (0..choices).fold(k.float(0.0, 1), |sum, choice| sum + weights.load(k.int(choice), 1));
        // Everybody has read the weights before the first is replaced.
        k.barrier();
        kernel.for_each(k.int(choices), |choice| weights.store(choice, weights.load(choice, 1) / sum));
    }
}

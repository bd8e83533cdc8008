//! `top_k`: the experts of a row, largest probability first, the lower number first where equal.
//!
//! ```text
//! for choice in 0..k:
//!   best = first expert with the largest probability left
//!   take it, mark it with −1
//! weights / Σ weights        with `normalize`
//! ```

use qwen2c_request::Element;

use super::Kernel;
use crate::builder::{Compare, Scalar, Val};

/// One row.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, row: Val<'k>, choices: u64, normalize: bool) {
    let k = kernel.k;
    let count = kernel.input_type(0).row_elements();
    let experts = k.int(count);
    let source = kernel.input(0).at(row * experts);
    let left = k.stack_array(Element::F32, count);
    k.for_each_chunk(experts, kernel.lanes, |offset, lanes| left.store(offset, source.load(offset, lanes)));
    let weights = kernel.output(0).at(row * k.int(choices));
    let chosen = kernel.output(1).at(row * k.int(choices));

    let sum = k.for_each(k.int(0), k.int(choices), 1, &[k.float(0.0, 1)], |choice, sum| {
        let best = k.for_each(k.int(0), experts, 1, &[k.float(-0.5, 1), k.int(0)], |expert, best| {
            let probability = left.load(expert, 1);
            let is_larger = probability.compare(Compare::Greater, best[0]);
            vec![is_larger.select(probability, best[0]), is_larger.select(expert, best[1])]
        });
        weights.store(choice, best[0]);
        chosen.store(choice, best[1].truncate(Scalar::I32));
        left.store(best[1], k.float(-1.0, 1));
        vec![sum[0] + best[0]]
    });
    if normalize {
        k.repeat(k.int(0), k.int(choices), 1, |choice| {
            weights.store(choice, weights.load(choice, 1) / sum[0])
        });
    }
}

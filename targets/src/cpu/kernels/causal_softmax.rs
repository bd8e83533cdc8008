//! `causal_softmax`: over the positions that a row sees. A tile is one head of one row.

use super::Kernel;
use super::functions;
use crate::builder::Val;

fn heads(kernel: &Kernel<'_, '_>) -> u64 {
    let context = context(kernel);
    kernel.input_type(0).row_elements() / context
}

fn context(kernel: &Kernel<'_, '_>) -> u64 {
    let last = kernel.input_type(0).dimensions.last();
    last.and_then(|dimension| dimension.size.constant()).unwrap_or(1)
}

/// Rows times heads.
pub(super) fn tiles<'k>(kernel: &Kernel<'k, '_>) -> Val<'k> {
    kernel.rows * kernel.k.int(heads(kernel))
}

/// One head of one row.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, tile: Val<'k>) {
    let k = kernel.k;
    let row = tile / k.int(heads(kernel));
    let base = tile * k.int(context(kernel));
    let (scores, out) = (kernel.input(0).at(base), kernel.output(0).at(base));
    let length = kernel.input(1).load_index(row) + k.int(1);
    functions::softmax(
        k,
        length,
        kernel.lanes,
        |offset, lanes| scores.load(offset, lanes),
        |offset, value| out.store(offset, value),
    );
}

//! `causal_softmax`: over the positions that a row sees. A block is one head of one row.

use qwen2c_request::KernelRequest;

use super::softmax::softmax;
use super::{Kernel, Shape};

fn context(request: &KernelRequest) -> u64 {
    request.inputs[0].columns()
}

fn heads(request: &KernelRequest) -> u64 {
    request.inputs[0].row_elements() / context(request)
}

/// A block for each head.
pub(super) fn shape(request: &KernelRequest) -> Shape {
    Shape { blocks: heads(request), ..Shape::row(request) }
}

/// One head of one row.
pub(super) fn body(kernel: &Kernel<'_, '_>) {
    let k = kernel.k;
    let row = kernel.row();
    let head = row * k.int(heads(kernel.request)) + kernel.block();
    let base = head * k.int(context(kernel.request));
    let length = kernel.input(1).load_index(row) + k.int(1);
    softmax(kernel, kernel.input(0).at(base), kernel.output(0).at(base), length);
}

//! What a kernel of any family is built from: its request, and a buffer for each of its operands.

use qwen2c_request::{CacheType, Element, KernelRequest, TensorType, WeightLayout, WeightType};

use crate::builder::{Buffer, KernelBuilder, Val};

/// Builder, request and operands of a kernel under construction.
pub(crate) struct Operands<'k, 'r> {
    /// Emits operations.
    pub(crate) k: &'k KernelBuilder<'k>,
    /// What is computed.
    pub(crate) request: &'r KernelRequest,
    /// Layout of each weight.
    pub(crate) layouts: &'r [WeightLayout],
    /// One buffer for each operand, in the order of the request; a workspace comes last.
    pub(crate) buffers: Vec<Buffer<'k>>,
    /// Rows of this step.
    pub(crate) rows: Val<'k>,
}

impl<'k, 'r> Operands<'k, 'r> {
    pub(crate) fn input(&self, index: usize) -> Buffer<'k> {
        self.buffers[index]
    }

    pub(crate) fn weight(&self, index: usize) -> Buffer<'k> {
        self.buffers[self.request.inputs.len() + index]
    }

    pub(crate) fn cache(&self, index: usize) -> Buffer<'k> {
        self.buffers[self.request.inputs.len() + self.request.weights.len() + index]
    }

    pub(crate) fn output(&self, index: usize) -> Buffer<'k> {
        let before = self.request.inputs.len() + self.request.weights.len() + self.request.caches.len();
        self.buffers[before + index]
    }

    pub(crate) fn input_type(&self, index: usize) -> &'r TensorType {
        &self.request.inputs[index]
    }

    pub(crate) fn output_type(&self, index: usize) -> &'r TensorType {
        &self.request.outputs[index]
    }

    pub(crate) fn weight_type(&self, index: usize) -> &'r WeightType {
        &self.request.weights[index]
    }

    pub(crate) fn cache_type(&self, index: usize) -> &'r CacheType {
        &self.request.caches[index]
    }

    /// The parts of a table that `group_rows` writes and grouped products read.
    pub(crate) fn group_table(&self, table: Buffer<'k>, experts: u64) -> GroupTable<'k> {
        let k = self.k;
        GroupTable {
            active_count: table,
            active: table.at(k.int(1)),
            offsets: table.at(k.int(1 + experts)),
            entries: table.at(k.int(2 + 2 * experts)),
        }
    }
}

/// Element type of each operand, in the order of the request, without a workspace.
pub(crate) fn operand_elements(request: &KernelRequest) -> Vec<Element> {
    let inputs = request.inputs.iter().map(|ty| ty.element);
    let weights = request.weights.iter().map(|ty| ty.element);
    let caches = request.caches.iter().map(|ty| ty.element);
    let outputs = request.outputs.iter().map(|ty| ty.element);
    inputs.chain(weights).chain(caches).chain(outputs).collect()
}

/// Which (row, choice) entries each expert has: `[active count | active experts | offsets | entries]`.
pub(crate) struct GroupTable<'k> {
    /// Number of experts with entries.
    pub(crate) active_count: Buffer<'k>,
    /// Their numbers, ascending.
    pub(crate) active: Buffer<'k>,
    /// First entry of each expert, and the end.
    pub(crate) offsets: Buffer<'k>,
    /// `row · k + choice`.
    pub(crate) entries: Buffer<'k>,
}

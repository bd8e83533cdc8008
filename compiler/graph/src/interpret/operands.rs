//! An operation's operands in the order of its signature.

use super::cache::CacheStore;
use super::{InterpretError, Rows, Tensor, unreadable};
use crate::{Graph, Op, TensorSource, Weight};

/// Elements of a weight that are held at once.
const BLOCK_ELEMENTS: usize = 1 << 18;

/// What an operation may read and write.
pub(super) struct Operands<'a> {
    pub(super) graph: &'a Graph,
    pub(super) op: &'a Op,
    pub(super) rows: Rows,
    pub(super) values: &'a [Option<Tensor>],
    pub(super) source: &'a dyn TensorSource,
    pub(super) caches: &'a mut Vec<CacheStore>,
    pub(super) kept_weights: &'a mut Vec<Option<Vec<f32>>>,
}

impl<'a> Operands<'a> {
    fn input(&self, index: usize) -> &'a Tensor {
        let values = self.values;
        values[self.op.inputs[index].0 as usize].as_ref().expect("a verified graph defines before it uses")
    }

    /// Elements of an input of floating-point type.
    pub(super) fn floats(&self, index: usize) -> &'a [f32] {
        match self.input(index) {
            Tensor::Floats(elements) => elements,
            Tensor::Integers(_) => unreachable!("a verified graph has operands of the right type"),
        }
    }

    /// Elements of an input of integers.
    pub(super) fn integers(&self, index: usize) -> &'a [i32] {
        match self.input(index) {
            Tensor::Integers(elements) => elements,
            Tensor::Floats(_) => unreachable!("a verified graph has operands of the right type"),
        }
    }

    /// Elements of an input's row.
    pub(super) fn input_width(&self, index: usize) -> usize {
        self.graph.value(self.op.inputs[index]).ty.row_elements() as usize
    }

    /// Elements of a result's row.
    pub(super) fn output_width(&self, index: usize) -> usize {
        self.graph.value(self.op.outputs[index]).ty.row_elements() as usize
    }

    /// Extents of an input's constant dimensions.
    pub(super) fn input_extents(&self, index: usize) -> Vec<usize> {
        let ty = &self.graph.value(self.op.inputs[index]).ty;
        let constant = ty.dimensions.iter().filter_map(|dimension| dimension.size.constant());
        constant.map(|size| size as usize).collect()
    }

    /// Rows of this step for the operation's first input.
    pub(super) fn rows(&self) -> usize {
        self.rows.of(&self.graph.value(self.op.inputs[0]).ty)
    }

    /// A result of zeros.
    pub(super) fn zeros(&self, index: usize) -> Vec<f32> {
        let ty = &self.graph.value(self.op.outputs[index]).ty;
        vec![0.0; self.rows.of(ty) * self.output_width(index)]
    }

    /// A weight of the operation.
    pub(super) fn weight(&self, index: usize) -> &'a Weight {
        self.graph.weight(self.op.weights[index])
    }

    /// All elements of a vector, rounded to its type; read once in the interpreter's life.
    pub(super) fn kept_weight(&mut self, index: usize) -> Result<&[f32], InterpretError> {
        let weight = self.weight(index);
        let place = &mut self.kept_weights[self.op.weights[index].0 as usize];
        if place.is_none() {
            let mut elements = vec![0.0; (weight.rows() * weight.ty.columns()) as usize];
            let read = weight.read_rounded_rows(self.source, 0, &mut elements);
            read.map_err(|cause| unreadable(weight, cause))?;
            *place = Some(elements);
        }
        Ok(place.as_deref().expect("it was just read"))
    }

    /// One row of a weight, rounded to its type.
    pub(super) fn weight_row(&self, index: usize, row: u64, out: &mut [f32]) -> Result<(), InterpretError> {
        let weight = self.weight(index);
        weight.read_rounded_rows(self.source, row, out).map_err(|cause| unreadable(weight, cause))
    }

    /// Calls `each` with rows `first` to `first + count` of a weight and their numbers, counted from 0,
    /// reading a block of rows at a time.
    pub(super) fn for_each_weight_row(
        &self,
        index: usize,
        first: u64,
        count: u64,
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<(), InterpretError> {
        let columns = self.weight(index).ty.columns() as usize;
        let block_rows = (BLOCK_ELEMENTS / columns).max(1) as u64;
        let mut block = vec![0.0; (block_rows.min(count)) as usize * columns];
        let mut row = 0;
        while row < count {
            let rows = block_rows.min(count - row) as usize;
            let block = &mut block[..rows * columns];
            self.weight_row(index, first + row, block)?;
            for (offset, elements) in block.chunks_exact(columns).enumerate() {
                each(row as usize + offset, elements);
            }
            row += rows as u64;
        }
        Ok(())
    }

    /// The caches an operation names, in order.
    pub(super) fn cache(&mut self, index: usize) -> &mut CacheStore {
        &mut self.caches[self.op.caches[index].0 as usize]
    }

    /// Integers of an input as indices below `limit`.
    pub(super) fn indices(&self, index: usize, limit: u64) -> Result<Vec<usize>, InterpretError> {
        let name = &self.graph.value(self.op.inputs[index]).name;
        let convert = |number: &i32| {
            let fits = u64::try_from(*number).ok().filter(|number| *number < limit);
            let message =
                || InterpretError::Input(format!("`{name}` holds {number}, needs less than {limit}"));
            fits.map(|number| number as usize).ok_or_else(message)
        };
        self.integers(index).iter().map(convert).collect()
    }
}

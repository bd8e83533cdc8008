//! The graph executed by plain loops: the reference for everything that is compiled.
//!
//! Every operation follows its formula, sums in `f64`, and rounds each value to its element type, as a
//! kernel does when it stores one. Weights are read by blocks of rows, so that a model of any size can
//! be interpreted in little memory.

mod attention;
mod cache;
mod elementwise;
mod experts;
mod matmul;
mod norm;
mod operands;
#[cfg(test)]
mod tests;

use std::fmt;

use qwen2c_request::{Element, Operation, Size, TensorType, quantize_activations};

use crate::{Graph, SourceError, TensorSource, ValueId, VerifyError, Weight, verify};
use cache::CacheStore;
use operands::Operands;

/// Elements of a value, row-major without gaps.
#[derive(Clone, Debug, PartialEq)]
pub enum Tensor {
    /// Of any floating-point type, widened.
    Floats(Vec<f32>),
    /// Token ids, positions, expert numbers.
    Integers(Vec<i32>),
}

impl Tensor {
    fn len(&self) -> usize {
        match self {
            Self::Floats(elements) => elements.len(),
            Self::Integers(elements) => elements.len(),
        }
    }

    /// Rounds every element to the type of `ty`, integers with scales by groups of each row.
    fn round(&mut self, ty: &TensorType) {
        let Self::Floats(elements) = self else { return };
        match ty.element {
            Element::F32 => {}
            element if element.integer_group().is_some() => {
                elements.chunks_mut(ty.columns() as usize).for_each(|row| quantize_activations(element, row))
            }
            element => elements.iter_mut().for_each(|value| *value = element.round(*value)),
        }
    }
}

/// Why a graph could not be interpreted.
#[derive(Debug)]
pub enum InterpretError {
    /// The graph breaks a rule: a bug of whoever made it.
    Graph(VerifyError),
    /// An input of the step is missing or does not fit: what was found and what was needed.
    Input(String),
    /// A weight could not be read from the checkpoint.
    Weight {
        /// Name of the weight in the graph.
        name: String,
        /// What its source says.
        cause: SourceError,
    },
}

impl fmt::Display for InterpretError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Graph(error) => write!(formatter, "the graph is not valid: {error}"),
            Self::Input(message) => formatter.write_str(message),
            Self::Weight { name, cause } => write!(formatter, "weight `{name}` cannot be read: {cause}"),
        }
    }
}

impl std::error::Error for InterpretError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Graph(error) => Some(error),
            Self::Input(_) => None,
            Self::Weight { cause, .. } => Some(cause.as_ref()),
        }
    }
}

/// Extents of the variable dimensions in this step.
#[derive(Clone, Copy, Debug, Default)]
struct Rows {
    rows: usize,
    logit_rows: usize,
}

impl Rows {
    /// Elements of the first dimension of `ty`, or 1 where that is constant.
    fn of(self, ty: &TensorType) -> usize {
        match ty.dimensions.first().map(|dimension| dimension.size) {
            Some(Size::Rows) => self.rows,
            Some(Size::LogitRows) => self.logit_rows,
            _ => 1,
        }
    }
}

/// Runs a graph step by step; the caches live from one step to the next.
pub struct Interpreter<'a> {
    graph: &'a Graph,
    source: &'a dyn TensorSource,
    caches: Vec<CacheStore>,
    /// Vectors, kept once they were read.
    kept_weights: Vec<Option<Vec<f32>>>,
    /// For each operation, the values that nothing reads after it.
    dead_after: Vec<Vec<ValueId>>,
}

impl<'a> Interpreter<'a> {
    /// An interpreter with empty caches.
    ///
    /// # Errors
    ///
    /// [`InterpretError::Graph`] where `graph` is not valid.
    pub fn new(graph: &'a Graph, source: &'a dyn TensorSource) -> Result<Self, InterpretError> {
        verify(graph).map_err(InterpretError::Graph)?;
        Ok(Self {
            graph,
            source,
            caches: graph.caches.iter().map(|cache| CacheStore::new(&cache.ty)).collect(),
            kept_weights: vec![None; graph.weights.len()],
            dead_after: dead_after(graph),
        })
    }

    /// Runs a step of a model's graph: row `r` is token `tokens[r]` at `positions[r]` of `slots[r]`.
    /// Returns the logits `[logit_rows, vocabulary]` of the rows named by `logit_rows`.
    ///
    /// # Errors
    ///
    /// Numbers out of range, a weight that cannot be read, a graph with other inputs than a model's.
    pub fn step(
        &mut self,
        tokens: &[u32],
        positions: &[u32],
        slots: &[u32],
        logit_rows: &[u32],
    ) -> Result<Vec<f32>, InterpretError> {
        let integers = |name: &str, numbers: &[u32]| {
            let converted: Result<Vec<i32>, _> =
                numbers.iter().map(|number| i32::try_from(*number)).collect();
            let message = || InterpretError::Input(format!("input `{name}` holds a number above 2^31"));
            converted.map(Tensor::Integers).map_err(|_| message())
        };
        let inputs = [
            ("token", integers("token", tokens)?),
            ("position", integers("position", positions)?),
            ("slot", integers("slot", slots)?),
            ("logit_rows", integers("logit_rows", logit_rows)?),
        ];
        match self.evaluate(&inputs)?.into_iter().next() {
            Some(Tensor::Floats(logits)) => Ok(logits),
            _ => Err(InterpretError::Input("the graph has no logits as its output".to_owned())),
        }
    }

    /// Runs a step of any graph with named inputs; returns its outputs in order.
    ///
    /// The rows of the step follow from the inputs; inputs that the graph does not have are ignored.
    ///
    /// # Errors
    ///
    /// An input that is missing or does not fit, a weight that cannot be read.
    pub fn evaluate(&mut self, inputs: &[(&str, Tensor)]) -> Result<Vec<Tensor>, InterpretError> {
        let graph = self.graph;
        let mut values: Vec<Option<Tensor>> = vec![None; graph.values.len()];
        let rows = self.take_inputs(inputs, &mut values)?;
        for (index, op) in graph.operations.iter().enumerate() {
            let mut operands = Operands {
                graph,
                op,
                rows,
                values: &values,
                source: self.source,
                caches: &mut self.caches,
                kept_weights: &mut self.kept_weights,
            };
            let results = execute(&mut operands)?;
            for (id, mut result) in op.outputs.iter().zip(results) {
                result.round(&graph.value(*id).ty);
                values[id.0 as usize] = Some(result);
            }
            for id in &self.dead_after[index] {
                values[id.0 as usize] = None;
            }
        }
        let output =
            |id: &ValueId| values[id.0 as usize].clone().expect("a verified graph defines its outputs");
        Ok(graph.outputs.iter().map(output).collect())
    }

    /// Stores the inputs as values; the number of rows is that of the inputs.
    fn take_inputs(
        &self,
        inputs: &[(&str, Tensor)],
        values: &mut [Option<Tensor>],
    ) -> Result<Rows, InterpretError> {
        let mut rows = Rows::default();
        for id in &self.graph.inputs {
            let value = self.graph.value(*id);
            let name = &value.name;
            let fault = |message: String| Err(InterpretError::Input(format!("input `{name}` {message}")));
            let Some((_, tensor)) = inputs.iter().find(|(given, _)| given == name) else {
                return fault("is not given".to_owned());
            };
            if matches!(tensor, Tensor::Integers(_)) != (value.ty.element == Element::I32) {
                return fault(format!("is of another type, needs {}", value.ty.element));
            }
            let row_elements = value.ty.row_elements() as usize;
            let known = match value.ty.dimensions[0].size {
                Size::Rows => &mut rows.rows,
                Size::LogitRows => &mut rows.logit_rows,
                Size::Constant(_) => &mut 1,
            };
            let found = tensor.len() / row_elements;
            if found == 0 || !tensor.len().is_multiple_of(row_elements) || (*known != 0 && *known != found) {
                let needed = if *known == 0 { "one or more".to_owned() } else { known.to_string() };
                let len = tensor.len();
                return fault(format!("has {len} elements, needs {needed} rows of {row_elements}"));
            }
            *known = found;
            values[id.0 as usize] = Some(tensor.clone());
        }
        Ok(rows)
    }
}

/// For each operation, the values whose last reader it is.
fn dead_after(graph: &Graph) -> Vec<Vec<ValueId>> {
    let mut last_reader = vec![None; graph.values.len()];
    for (index, op) in graph.operations.iter().enumerate() {
        for id in op.inputs.iter().chain(&op.outputs) {
            last_reader[id.0 as usize] = Some(index);
        }
    }
    for id in &graph.outputs {
        last_reader[id.0 as usize] = None;
    }
    let mut dead = vec![Vec::new(); graph.operations.len()];
    for (value, reader) in last_reader.into_iter().enumerate() {
        if let Some(index) = reader {
            dead[index].push(ValueId(value as u32));
        }
    }
    dead
}

/// What an operation returns: its results, not yet rounded.
type Results = Result<Vec<Tensor>, InterpretError>;

fn execute(operands: &mut Operands<'_>) -> Results {
    match operands.op.operation {
        Operation::Embed => matmul::embed(operands),
        // Rounding to the result's type does it.
        Operation::QuantizeRows => elementwise::map(operands, |x| x),
        Operation::Matmul { bias, residual, silu_multiply, .. } => {
            matmul::matmul(operands, bias, residual, silu_multiply)
        }
        Operation::AddBias => matmul::add_bias(operands),
        Operation::RmsNorm { epsilon } => norm::rms_norm(operands, epsilon.0),
        Operation::AddAndNorm { epsilon } => norm::add_and_norm(operands, epsilon.0),
        Operation::Rotate { head_dim } => attention::rotate(operands, head_dim as usize),
        Operation::WriteCache => attention::write_cache(operands),
        Operation::RotateAndWriteCache { heads, bias } => {
            attention::rotate_and_write_cache(operands, heads as usize, bias)
        }
        Operation::ProjectAndWriteCache { heads, bias, .. } => {
            attention::project_and_write_cache(operands, heads as usize, bias)
        }
        Operation::AttentionScores { heads, scale } => {
            attention::attention_scores(operands, heads as usize, scale.0)
        }
        Operation::CausalSoftmax => attention::causal_softmax(operands),
        Operation::AttentionValues { heads, rounded } => {
            attention::attention_values(operands, heads as usize, rounded)
        }
        Operation::Attention { heads, scale, rounded } => {
            attention::attention(operands, heads as usize, scale.0, rounded)
        }
        Operation::AttentionBlocks { heads, scale, rounded } => {
            attention::attention_blocks(operands, heads as usize, scale.0, rounded)
        }
        Operation::MergeBlocks { heads } => attention::merge_blocks(operands, heads as usize),
        Operation::GatherRows => elementwise::gather_rows(operands),
        Operation::Scale { factor } => elementwise::map(operands, |x| x * factor.0),
        Operation::Silu => elementwise::map(operands, elementwise::silu),
        Operation::Sigmoid => elementwise::map(operands, elementwise::sigmoid),
        Operation::Add => elementwise::zip(operands, |a, b| a + b),
        Operation::Multiply => elementwise::zip(operands, |a, b| a * b),
        Operation::SiluMultiply => elementwise::zip(operands, |gate, up| elementwise::silu(gate) * up),
        Operation::ScaleRows => elementwise::scale_rows(operands),
        Operation::Slice { first } => elementwise::slice(operands, first as usize),
        Operation::Softmax => experts::softmax(operands),
        Operation::TopK { k, normalize } => experts::top_k(operands, k as usize, normalize),
        Operation::GroupRows { experts } => experts::group_rows(operands, experts as usize),
        Operation::ExpertMatmul { grouped, silu_multiply } => {
            experts::expert_matmul(operands, grouped, silu_multiply)
        }
        Operation::CombineExperts { residual } => experts::combine_experts(operands, residual),
    }
}

/// A failed read of `weight`.
fn unreadable(weight: &Weight, cause: SourceError) -> InterpretError {
    InterpretError::Weight { name: weight.name.clone(), cause }
}

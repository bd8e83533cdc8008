//! Adds operations, values and weights to the graph under the current layer's name.

use qwen2c_request::{
    CacheKind, CacheType, Dimension, Element, Operation, Quantization, Real, TensorType, WeightType,
};

use super::{GraphOptions, WeightStorage};
use crate::{CacheId, Graph, ModelConfig, Op, ValueId, Weight, WeightId, WeightPart, WeightSource};

/// A product and nothing else.
pub(super) const MATMUL: Operation =
    Operation::Matmul { norm: None, bias: false, residual: false, silu_multiply: false };

/// A named extent.
pub(super) type Extent = (&'static str, u64);

/// The graph so far, and what every block needs.
pub(super) struct Builder<'a> {
    pub(super) graph: Graph,
    pub(super) config: &'a ModelConfig,
    options: &'a GraphOptions,
    /// The block that is being built; names and operations get its number.
    pub(super) layer: Option<u64>,
    /// `i32[rows]`
    pub(super) token: ValueId,
    /// `i32[rows]`
    pub(super) position: ValueId,
    /// `i32[rows]`
    pub(super) slot: ValueId,
    /// `i32[logit_rows]`
    pub(super) logit_rows: ValueId,
    /// `f32[context, head_dim]`
    pub(super) rope: WeightId,
}

impl<'a> Builder<'a> {
    pub(super) fn new(config: &'a ModelConfig, options: &'a GraphOptions) -> Self {
        let mut graph = Graph { name: config.name.clone(), ..Graph::default() };
        let indices = |dimension| TensorType { dimensions: vec![dimension], element: Element::I32 };
        let token = graph.add_value("token", indices(Dimension::rows()));
        let position = graph.add_value("position", indices(Dimension::rows()));
        let slot = graph.add_value("slot", indices(Dimension::rows()));
        let logit_rows = graph.add_value("logit_rows", indices(Dimension::logit_rows()));
        graph.inputs = vec![token, position, slot, logit_rows];
        let rope = graph.add_weight(Weight {
            name: "rope".to_owned(),
            ty: WeightType {
                dimensions: vec![
                    Dimension::constant("context", options.context),
                    Dimension::constant("head_dim", config.head_dim),
                ],
                element: Element::F32,
                quantization: None,
            },
            source_columns: config.head_dim,
            source: WeightSource::UnresolvedRopeTable,
            layout: None,
        });
        Self { graph, config, options, layer: None, token, position, slot, logit_rows, rope }
    }

    /// `name`, or `layers.3.name` inside a block.
    fn full_name(&self, name: &str) -> String {
        self.layer.map_or(name.to_owned(), |layer| format!("layers.{layer}.{name}"))
    }

    /// The checkpoint's name of a tensor of the current block.
    pub(super) fn tensor(&self, name: &str) -> String {
        self.layer.map_or(name.to_owned(), |layer| format!("model.layers.{layer}.{name}"))
    }

    /// `f32[rows, name=size]`
    pub(super) fn rows_of(&self, name: &str, size: u64) -> TensorType {
        let dimensions = vec![Dimension::rows(), Dimension::constant(name, size)];
        TensorType { dimensions, element: Element::F32 }
    }

    /// `f32[logit_rows, name=size]`
    pub(super) fn logit_rows_of(&self, name: &str, size: u64) -> TensorType {
        let dimensions = vec![Dimension::logit_rows(), Dimension::constant(name, size)];
        TensorType { dimensions, element: Element::F32 }
    }

    /// `ty` in the activation type.
    pub(super) fn rounded(&self, ty: TensorType) -> TensorType {
        TensorType { element: self.options.dtype, ..ty }
    }

    /// A vector kept in f32: norm weights and biases.
    pub(super) fn vector(&mut self, name: &str, extent: Extent, tensor: &str) -> WeightId {
        let part = WeightPart { tensor: self.tensor(tensor), rows: extent.1, padded_rows: extent.1 };
        self.exact_weight(name, &[extent], part)
    }

    /// A linear weight `[output, input]` in the program's type.
    pub(super) fn matrix(&mut self, name: &str, extents: [Extent; 2], tensor: &str) -> WeightId {
        let rows = extents[0].1;
        let part = WeightPart { tensor: self.tensor(tensor), rows, padded_rows: rows };
        self.linear_weight(name, &extents, vec![part])
    }

    /// A linear weight `[output, input]` kept in f32: what decides between experts.
    pub(super) fn exact_matrix(&mut self, name: &str, extents: [Extent; 2], tensor: &str) -> WeightId {
        let rows = extents[0].1;
        let part = WeightPart { tensor: self.tensor(tensor), rows, padded_rows: rows };
        self.exact_weight(name, &extents, part)
    }

    /// How a linear weight made of these parts is quantized. Embedding and head, which stand outside the
    /// blocks, are quantized one step finer than the blocks, since every token passes through them.
    fn quantization(&self, parts: &[WeightPart]) -> Option<Quantization> {
        match &self.options.storage {
            WeightStorage::Elements => None,
            WeightStorage::Quantized(quantization) if self.layer.is_some() => Some(*quantization),
            WeightStorage::Quantized(quantization) => Some(Quantization { bits: 8, ..*quantization }),
            WeightStorage::ByTensor(tensors) => {
                let mut found = parts.iter().map(|part| tensors.get(&part.tensor).copied());
                let first = found.next()??;
                found.all(|quantization| quantization == Some(first)).then_some(first)
            }
        }
    }

    /// Weights of all experts, `[experts, output, input]`; `tensor` names that of an expert.
    pub(super) fn expert_matrices(
        &mut self,
        name: &str,
        extents: [Extent; 3],
        tensor: impl Fn(u64) -> String,
    ) -> WeightId {
        let [(_, experts), (_, rows), _] = extents;
        let part = |expert| WeightPart { tensor: self.tensor(&tensor(expert)), rows, padded_rows: rows };
        let parts = (0..experts).map(part).collect();
        self.linear_weight(name, &extents, parts)
    }

    fn linear_weight(&mut self, name: &str, extents: &[Extent], parts: Vec<WeightPart>) -> WeightId {
        let quantization = self.quantization(&parts);
        self.weight(name, extents, self.options.dtype, quantization, parts)
    }

    fn exact_weight(&mut self, name: &str, extents: &[Extent], part: WeightPart) -> WeightId {
        self.weight(name, extents, Element::F32, None, vec![part])
    }

    fn weight(
        &mut self,
        name: &str,
        extents: &[Extent],
        element: Element,
        quantization: Option<Quantization>,
        parts: Vec<WeightPart>,
    ) -> WeightId {
        let dimensions = extents.iter().map(|(name, size)| Dimension::constant(*name, *size)).collect();
        let ty = WeightType { dimensions, element, quantization };
        self.graph.add_weight(Weight {
            name: self.full_name(name),
            source_columns: ty.columns(),
            ty,
            source: WeightSource::Tensors(parts),
            layout: None,
        })
    }

    /// The current block's cache of keys or values.
    pub(super) fn cache(&mut self, name: &str, kind: CacheKind) -> CacheId {
        let ty = CacheType {
            kind,
            slots: self.options.slots,
            kv_heads: self.config.kv_heads,
            context: self.options.context,
            head_dim: self.config.head_dim,
            element: self.options.dtype,
        };
        self.graph.add_cache(self.full_name(name), ty)
    }

    /// Adds an operation with one result.
    pub(super) fn apply(
        &mut self,
        name: &str,
        operation: Operation,
        inputs: &[ValueId],
        weights: &[WeightId],
        ty: TensorType,
    ) -> ValueId {
        self.apply_to_caches(operation, inputs, weights, &[], &[(name, ty)])[0]
    }

    /// Adds an operation; the results are named and typed by `outputs`.
    pub(super) fn apply_to_caches(
        &mut self,
        operation: Operation,
        inputs: &[ValueId],
        weights: &[WeightId],
        caches: &[CacheId],
        outputs: &[(&str, TensorType)],
    ) -> Vec<ValueId> {
        let outputs: Vec<ValueId> =
            outputs.iter().map(|(name, ty)| self.graph.add_value(self.full_name(name), ty.clone())).collect();
        self.graph.operations.push(Op {
            operation,
            layer: self.layer,
            inputs: inputs.to_vec(),
            weights: weights.to_vec(),
            caches: caches.to_vec(),
            outputs: outputs.clone(),
        });
        outputs
    }

    /// `h / sqrt(mean(h²) + epsilon) * w`, in the activation type.
    pub(super) fn norm(&mut self, name: &str, hidden: ValueId, tensor: &str) -> ValueId {
        let extent = ("hidden", self.config.hidden);
        let weight = self.vector(name, extent, tensor);
        let operation = Operation::RmsNorm { epsilon: Real(self.config.epsilon) };
        let ty = self.rounded(self.rows_of(extent.0, extent.1));
        self.apply(name, operation, &[hidden], &[weight], ty)
    }

    /// `x · wᵀ`, named `name`, with the weight `name.weight` of `extents` `[output, input]`.
    pub(super) fn linear(&mut self, name: &str, x: ValueId, extents: [Extent; 2], tensor: &str) -> ValueId {
        let weight = self.matrix(&format!("{name}.weight"), extents, tensor);
        let ty = self.rows_of(extents[0].0, extents[0].1);
        self.apply(name, MATMUL, &[x], &[weight], ty)
    }

    /// `h + y` on the residual stream.
    pub(super) fn add(&mut self, name: &str, hidden: ValueId, y: ValueId) -> ValueId {
        let ty = self.rows_of("hidden", self.config.hidden);
        self.apply(name, Operation::Add, &[hidden, y], &[], ty)
    }
}

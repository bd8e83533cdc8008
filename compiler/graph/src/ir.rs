//! The graph's data: values, weights, caches and operations in execution order.

use std::fmt;

use qwen2c_request::{CacheType, Operation, TensorType};

use crate::Weight;

/// Index of a [`Value`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// Index of a [`Weight`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub u32);

/// Index of a [`Cache`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheId(pub u32);

/// A tensor in the arena, written by exactly one operation or by the runtime before the step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Name in the text form, unique in the graph: `layers.0.attention_norm`.
    pub name: String,
    /// Shape and element type.
    pub ty: TensorType,
}

/// A layer's key or value cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Name in the text form: `layers.0.key`.
    pub name: String,
    /// Shape, element type, kind.
    pub ty: CacheType,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// What is computed.
    pub operation: Operation,
    /// The block it belongs to; none for embedding and head.
    pub layer: Option<u64>,
    /// Values read.
    pub inputs: Vec<ValueId>,
    /// Weights read.
    pub weights: Vec<WeightId>,
    /// Caches read or written.
    pub caches: Vec<CacheId>,
    /// Values written.
    pub outputs: Vec<ValueId>,
}

/// A graph. Operations are in execution order; values, weights and caches are addressed by their
/// index, which never changes (a pass that drops the last use leaves the entry, and
/// `remove_dead_values` clears it away).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Graph {
    /// Name in the text form.
    pub name: String,
    /// A device runs all operations in one launch, with barriers between them.
    pub is_persistent: bool,
    /// All values.
    pub values: Vec<Value>,
    /// All weights.
    pub weights: Vec<Weight>,
    /// All caches.
    pub caches: Vec<Cache>,
    /// Operations in execution order.
    pub operations: Vec<Op>,
    /// Values that the runtime writes before a step: `token`, `position`, `slot`, `logit_rows`.
    pub inputs: Vec<ValueId>,
    /// Values that the runtime reads after a step: the logits, and the largest of them where a pass leaves
    /// those.
    pub outputs: Vec<ValueId>,
}

impl Graph {
    /// Adds a value.
    pub fn add_value(&mut self, name: impl Into<String>, ty: TensorType) -> ValueId {
        let id = ValueId(self.values.len() as u32);
        self.values.push(Value { name: name.into(), ty });
        id
    }

    /// Adds a weight.
    pub fn add_weight(&mut self, weight: Weight) -> WeightId {
        let id = WeightId(self.weights.len() as u32);
        self.weights.push(weight);
        id
    }

    /// Adds a cache.
    pub fn add_cache(&mut self, name: impl Into<String>, ty: CacheType) -> CacheId {
        let id = CacheId(self.caches.len() as u32);
        self.caches.push(Cache { name: name.into(), ty });
        id
    }

    /// The value with this id.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    /// The weight with this id.
    pub fn weight(&self, id: WeightId) -> &Weight {
        &self.weights[id.0 as usize]
    }

    /// The cache with this id.
    pub fn cache(&self, id: CacheId) -> &Cache {
        &self.caches[id.0 as usize]
    }
}

impl fmt::Display for ValueId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "value {}", self.0)
    }
}

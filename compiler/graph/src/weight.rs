//! Weights as the graph sees them: a type, and where the elements come from.

use qwen2c_request::{WeightLayout, WeightType};

/// Why a tensor could not be read.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// Gives the elements of a checkpoint's tensors by their canonical (Hugging Face) names.
///
/// A tensor is a list of rows along its last dimension; a vector is one row.
pub trait TensorSource {
    /// Fills `out` with consecutive rows of `columns` elements from `first_row` on, widened to `f32`.
    ///
    /// # Errors
    ///
    /// When the tensor is missing, has another shape, or cannot be read.
    fn read_rows(
        &self,
        tensor: &str,
        columns: u64,
        first_row: u64,
        out: &mut [f32],
    ) -> Result<(), SourceError>;
}

/// A run of a weight's rows that comes from one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightPart {
    /// Canonical name of the tensor: `model.layers.0.self_attn.q_proj.weight`.
    pub tensor: String,
    /// Rows taken from the tensor (for a vector: elements).
    pub rows: u64,
    /// Rows the part occupies in the weight, `rows` or more; the rest is zero.
    pub padded_rows: u64,
}

/// Table of cosines and sines, `f32[context, head_dim]`: see [`qwen2c_request::Operation::Rotate`].
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// `head_dim / 2` frequencies, radians per position.
    pub inverse_frequencies: Vec<f32>,
    /// Multiplies cosines and sines.
    pub attention_factor: f32,
}

impl Eq for RopeTable {}

/// Where a weight's elements come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightSource {
    /// Parts of checkpoint tensors, one after the other along the rows (experts stacked: all rows of
    /// expert 0, then expert 1, …; for vectors along the only dimension).
    Tensors(Vec<WeightPart>),
    /// Computed when the program is built.
    RopeTable(RopeTable),
    /// Rotary table whose frequencies `resolve_rope` has yet to compute from the configuration.
    UnresolvedRopeTable,
}

/// A weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Name in the text form, unique in the graph: `layers.0.qkv.weight`.
    pub name: String,
    /// Shape (padding included) and format as stored.
    pub ty: WeightType,
    /// Columns taken from the tensors, at most the type's; the rest is zero.
    pub source_columns: u64,
    /// Where the elements come from.
    pub source: WeightSource,
    /// Chosen by `choose_weight_layouts`.
    pub layout: Option<WeightLayout>,
}

//! The language between the graph and the targets.
//!
//! A graph operation says *what* must be computed, once for all targets; together with the types of
//! its operands it is a [`KernelRequest`]. A [`Target`] answers with a [`KernelChoice`]: tiles,
//! the weight layouts it can read, and what the kernel moves and computes. Every single graph
//! operation is a valid request, otherwise the unfused twin of a program could not be built.
//!
//! # Operands
//!
//! A kernel receives its operands as an array of pointers in this order: inputs, weights, caches,
//! outputs. The only scalars it gets are the number of rows of the step and the number of the tile.

mod activations;
mod choice;
mod groups;
mod operation;
mod quantize;
mod quantize_with_minima;
mod tensor;

pub use activations::{QuantizedRow, SMALLEST_ACTIVATION, quantize_activations};
pub use choice::{
    Cost, Grid, KernelChoice, KernelRequest, LayoutOption, Target, TargetDescription, Unservable,
    WeightLayout,
};
pub use groups::{QuantizedBlock, QuantizedRows, quantize_weights, round_row};
pub use operation::{Operation, Real};
pub use quantize::{QuantizationError, quantize_groups};
pub use quantize_with_minima::quantize_groups_with_minima;
pub use tensor::{
    CACHE_BLOCK_POSITIONS, CacheKind, CacheType, Dimension, Element, GROUP_SIZES, Quantization, Size,
    TensorType, WeightType,
};
pub use tensor::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};

//! Graph of a Qwen2 model, from its configuration to a plan of steps.
//!
//! This crate knows no target: it asks one through [`qwen2c_request::Target`]. It does no IO: weights
//! come through [`TensorSource`].

mod config;
mod interpret;
mod ir;
mod minima;
mod model;
pub mod passes;
pub mod plan;
pub mod schedule;
mod text;
mod verify;
mod weight;

pub use config::{ExpertConfig, Family, ModelConfig, Rope, RopeScaling};
pub use interpret::{InterpretError, Interpreter, Tensor};
pub use ir::{Cache, CacheId, Graph, Op, Value, ValueId, WeightId};
pub use minima::{SampleError, settle_minima};
pub use model::{GraphOptions, WeightStorage, build_graph};
pub use text::{ParseError, parse_graph, print_graph};
pub use verify::{VerifyError, verify};
pub use weight::{RopeTable, SourceError, TensorSource, Weight, WeightPart, WeightSource};

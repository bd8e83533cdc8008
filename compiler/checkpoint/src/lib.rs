//! Readers of checkpoints: configuration, tensors, tokenizer, chat template.
//!
//! [`open_model`] is the way in: it takes what `--model`, `--weights` and `--revision` say and gives a
//! [`ModelDescription`] with a source of tensors. Formats are told apart here and nowhere else: behind
//! [`qwen2c_graph::TensorSource`] every tensor has its Hugging Face name, row-major order and `f32`
//! values.
//!
//! Checkpoints are hostile: whatever a file holds ends in values or in a
//! [`qwen2c_format::Diagnostic`], and memory is bounded by the size of the file's header. Tensors are
//! read by positioned reads of row blocks and never mapped: a file cut short meanwhile would be a signal
//! instead of an error.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

mod blocks;
mod chat_template;
mod checkpoint;
mod config;
mod description;
mod encoding;
mod expected;
mod files;
mod generation;
mod gguf;
mod hub;
mod models;
mod open;
mod random;
mod safetensors;
mod tensors;
pub mod tokenizer;

pub use checkpoint::Checkpoint;
pub use config::{ConfigField, parse_config_json, print_config_table};
pub use description::{ModelDescription, TokenizerSource, describe_checkpoint};
pub use hub::DownloadEvent;
pub use models::{KnownModel, known_models, parameter_count};
pub use open::{ModelRequest, OpenedModel, describe_model, open_model, open_model_at_hand};
pub use random::RandomWeights;

//! GGUF version 3: the header of the file, and what it says about a model.
//!
//! A GGUF file is metadata (key, type, value), a list of tensors, and their data. Dimensions come fastest
//! first. The format is ggml's; names and metadata keys are those of llama.cpp's converter.

mod configuration;
mod cursor;
mod header;
mod names;
mod vocabulary;

pub(crate) use configuration::describe_gguf;
pub(crate) use header::GgufFile;
pub(crate) use names::{canonical_tensors, insert_experts};

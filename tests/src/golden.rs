//! The tiny checkpoints of `goldens/` and what HF transformers computed from them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use crate::{Tensor, read_tensors, repository};

/// Names of the tiny checkpoints: the entries of `goldens/variants.py` and `goldens/gguf_variants.py`.
pub const GOLDENS: [&str; 11] = [
    "dense-gqa",
    "dense-head80",
    "dense-mha",
    "dense-yarn",
    "gguf-llama",
    "gguf-qwen2",
    "gguf-qwen2moe",
    "llama",
    "moe-normalized",
    "moe-sparse-step",
    "talking",
];

/// Where the tiny checkpoints lie.
pub fn goldens_directory() -> PathBuf {
    repository().join("tests/goldens")
}

/// A prompt and what the reference made of it.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// Ids.
    pub tokens: Vec<u32>,
    /// Greedy ids after it; empty where the reference was not asked.
    pub greedy: Vec<u32>,
    /// Distance of the two best logits at each greedy step.
    pub gaps: Vec<f32>,
    /// Positions whose logits were kept.
    pub positions: Vec<usize>,
    /// `[positions, vocabulary]`.
    pub logits: Tensor,
}

/// A tiny checkpoint.
#[derive(Clone, Debug)]
pub struct Golden {
    /// Its name.
    pub name: String,
    /// By length.
    pub prompts: BTreeMap<usize, Prompt>,
}

/// A list of numbers in JSON.
pub(crate) fn numbers<T>(value: &Value, convert: impl Fn(f64) -> T) -> Vec<T> {
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().map(|item| convert(item.as_f64().expect("a number"))).collect()
}

impl Golden {
    /// Reads the checkpoint's reference.
    #[track_caller]
    pub fn load(name: &str) -> Self {
        let directory = goldens_directory().join(name);
        let text = std::fs::read(directory.join("expected.json")).expect("the reference's prompts");
        let expected: Value = serde_json::from_slice(&text).expect("JSON");
        let mut tensors = read_tensors(&directory.join("expected.safetensors"));
        let mut prompts = BTreeMap::new();
        for (length, prompt) in expected["prompts"].as_object().expect("prompts by length") {
            let positions = tensors.remove(&format!("positions_{length}")).expect("positions");
            let prompt = Prompt {
                tokens: numbers(&prompt["tokens"], |id| id as u32),
                greedy: numbers(&prompt["greedy"], |id| id as u32),
                gaps: numbers(&prompt["gaps"], |gap| gap as f32),
                positions: positions.values.iter().map(|&position| position as usize).collect(),
                logits: tensors.remove(&format!("logits_{length}")).expect("logits"),
            };
            prompts.insert(length.parse().expect("a length"), prompt);
        }
        Self { name: name.to_owned(), prompts }
    }

    /// What `--model` takes: the directory, or the GGUF file in it.
    pub fn model(&self) -> PathBuf {
        let directory = goldens_directory().join(&self.name);
        let gguf = directory.join("model.gguf");
        if gguf.is_file() { gguf } else { directory }
    }
}

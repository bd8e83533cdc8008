//! The full-size model of the tests: SmolLM2-135M-Instruct.

use std::path::PathBuf;

use serde_json::Value;

use crate::golden::numbers;
use crate::{goldens_directory, skip};

/// A prompt of ids with the reference's greedy ids and the gaps of the two best logits.
#[derive(Clone, Debug)]
pub struct GreedyAnswer {
    /// Short name.
    pub name: String,
    /// Prompt.
    pub tokens: Vec<u32>,
    /// Answer.
    pub greedy: Vec<u32>,
    /// Distance of the two best logits at each step.
    pub gaps: Vec<f32>,
}

/// The GGUF file named by `QWEN2C_TEST_SMOLLM2_GGUF`, which `tests/run` sets; without it the test is
/// skipped, and says so.
pub fn smollm2_gguf() -> Option<PathBuf> {
    let path = std::env::var_os("QWEN2C_TEST_SMOLLM2_GGUF").map(PathBuf::from);
    if path.is_none() {
        skip("QWEN2C_TEST_SMOLLM2_GGUF names no file; `tests/run` fetches it");
    }
    path
}

/// What HF transformers answers on the widened weights (`goldens/smollm2.py`).
pub fn smollm2_golden() -> Vec<GreedyAnswer> {
    let text = std::fs::read(goldens_directory().join("smollm2.json")).expect("the reference's answers");
    let expected: Value = serde_json::from_slice(&text).expect("JSON");
    let prompts = expected["prompts"].as_object().expect("prompts by name");
    prompts
        .iter()
        .map(|(name, prompt)| GreedyAnswer {
            name: name.clone(),
            tokens: numbers(&prompt["tokens"], |id| id as u32),
            greedy: numbers(&prompt["greedy"], |id| id as u32),
            gaps: numbers(&prompt["gaps"], |gap| gap as f32),
        })
        .collect()
}

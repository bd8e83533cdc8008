//! Configurations of models whose kernels have full size and of which there are few.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::Golden;

/// Qwen2-7B with one layer and few words, written to `folder`; it has no weights.
pub fn one_layer_of_7b(folder: &Path) -> PathBuf {
    let shapes = json!({
        "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4,
        "num_hidden_layers": 1, "max_window_layers": 1, "vocab_size": 2048, "tie_word_embeddings": false,
        "max_position_embeddings": 8192,
    });
    alter("dense-gqa", &shapes, folder)
}

/// Qwen1.5-MoE-A2.7B with one layer, few words, and 4 of its experts, of which 2 serve a token; it has no weights.
pub fn one_layer_of_experts(folder: &Path) -> PathBuf {
    let shapes = json!({
        "hidden_size": 2048, "intermediate_size": 5632, "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 1408, "num_experts": 4, "num_experts_per_tok": 2,
        "decoder_sparse_step": 1, "num_attention_heads": 16, "num_key_value_heads": 16,
        "num_hidden_layers": 1, "max_window_layers": 1, "vocab_size": 2048,
    });
    alter("moe-sparse-step", &shapes, folder)
}

/// Writes a golden checkpoint's configuration with other values to `folder`.
fn alter(golden: &str, values: &Value, folder: &Path) -> PathBuf {
    let text = fs::read(Golden::load(golden).model().join("config.json")).expect("readable");
    let mut config: Value = serde_json::from_slice(&text).expect("JSON");
    for (name, value) in values.as_object().expect("an object") {
        config[name] = value.clone();
    }
    fs::write(folder.join("config.json"), config.to_string()).expect("writable");
    folder.to_path_buf()
}

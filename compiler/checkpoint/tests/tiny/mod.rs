//! Tiny checkpoints, written by the test that reads them.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::path::Path;

use qwen2c_checkpoint::Checkpoint;
use qwen2c_graph::TensorSource;
use serde_json::{Value, json};

/// A tensor to be written: its shape and its values in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) shape: Vec<u64>,
    pub(crate) values: Vec<f32>,
}

pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// Values that every type of 16 bits holds exactly, different for each name and place.
pub(crate) fn tensor(name: &str, shape: &[u64]) -> Tensor {
    let seed = name.bytes().fold(17_u64, |hash, byte| (hash * 31 + u64::from(byte)) % 1009);
    let count = shape.iter().product::<u64>();
    let values = (0..count).map(|index| ((seed + index * 37) % 127) as f32 / 64.0 - 1.0).collect();
    Tensor { shape: shape.to_vec(), values }
}

/// Two layers, three heads over one, tied.
pub(crate) fn dense_config() -> Value {
    json!({
        "model_type": "qwen2", "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2,
        "num_attention_heads": 3, "num_key_value_heads": 1, "vocab_size": 11, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "max_position_embeddings": 64, "tie_word_embeddings": true
    })
}

/// One layer of three experts, two at a time, with an untied head.
pub(crate) fn moe_config() -> Value {
    json!({
        "model_type": "qwen2_moe", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 7, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "max_position_embeddings": 64, "tie_word_embeddings": false,
        "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 6,
        "shared_expert_intermediate_size": 10
    })
}

/// The tensors of a configuration made above, written out independently of the reader.
pub(crate) fn tensors(config: &Value) -> Tensors {
    let size = |key: &str| config[key].as_u64().unwrap();
    let (hidden, vocabulary) = (size("hidden_size"), size("vocab_size"));
    let head_dim = hidden / size("num_attention_heads");
    let key_value = head_dim * size("num_key_value_heads");
    let mut tensors = Tensors::new();
    let mut add = |name: String, shape: &[u64]| {
        tensors.insert(name.clone(), tensor(&name, shape));
    };
    add("model.embed_tokens.weight".into(), &[vocabulary, hidden]);
    add("model.norm.weight".into(), &[hidden]);
    if config["tie_word_embeddings"] == json!(false) {
        add("lm_head.weight".into(), &[vocabulary, hidden]);
    }
    for layer in 0..size("num_hidden_layers") {
        let prefix = format!("model.layers.{layer}");
        add(format!("{prefix}.input_layernorm.weight"), &[hidden]);
        add(format!("{prefix}.post_attention_layernorm.weight"), &[hidden]);
        for (letter, rows) in [("q", hidden), ("k", key_value), ("v", key_value)] {
            add(format!("{prefix}.self_attn.{letter}_proj.weight"), &[rows, hidden]);
            add(format!("{prefix}.self_attn.{letter}_proj.bias"), &[rows]);
        }
        add(format!("{prefix}.self_attn.o_proj.weight"), &[hidden, hidden]);
        let mut mlp = |prefix: String, width: u64| {
            add(format!("{prefix}.gate_proj.weight"), &[width, hidden]);
            add(format!("{prefix}.up_proj.weight"), &[width, hidden]);
            add(format!("{prefix}.down_proj.weight"), &[hidden, width]);
        };
        if config["model_type"] == json!("qwen2_moe") {
            mlp(format!("{prefix}.mlp.shared_expert"), size("shared_expert_intermediate_size"));
            for expert in 0..size("num_experts") {
                mlp(format!("{prefix}.mlp.experts.{expert}"), size("moe_intermediate_size"));
            }
            add(format!("{prefix}.mlp.gate.weight"), &[size("num_experts"), hidden]);
            add(format!("{prefix}.mlp.shared_expert_gate.weight"), &[1, hidden]);
        } else {
            mlp(format!("{prefix}.mlp"), size("intermediate_size"));
        }
    }
    tensors
}

/// A safetensors file.
pub(crate) fn safetensors_bytes(tensors: &Tensors, dtype: &str) -> Vec<u8> {
    let mut data = Vec::new();
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    for (name, tensor) in tensors {
        let start = data.len();
        for value in &tensor.values {
            match dtype {
                "F32" => data.extend(value.to_le_bytes()),
                "BF16" => data.extend(((value.to_bits() >> 16) as u16).to_le_bytes()),
                "F16" => data.extend(half_bits(*value).to_le_bytes()),
                other => panic!("{other}"),
            }
        }
        let entry = json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    with_header(&Value::Object(header).to_string(), &data)
}

/// A safetensors file with this header.
pub(crate) fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// The f16 of a value that f16 holds exactly and normally, or of 0.
pub(crate) fn half_bits(value: f32) -> u16 {
    if value == 0.0 {
        return 0;
    }
    let bits = value.to_bits();
    let exponent = ((bits >> 23) & 0xff) as i32 - 127 + 15;
    ((bits >> 16) & 0x8000) as u16 | ((exponent as u16) << 10) | ((bits >> 13) & 0x3ff) as u16
}

/// Writes a directory with one file of tensors.
pub(crate) fn write_folder(folder: &Path, config: &Value, tensors: &[u8]) {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("model.safetensors"), tensors).unwrap();
}

/// Reads a tensor three rows at a time.
pub(crate) fn read(checkpoint: &Checkpoint, name: &str, shape: &[u64]) -> Vec<f32> {
    let columns = *shape.last().unwrap();
    let rows = shape.iter().product::<u64>() / columns;
    let mut values = vec![0.0; (rows * columns) as usize];
    for (block, out) in (0..).zip(values.chunks_mut(3 * columns as usize)) {
        checkpoint.read_rows(name, columns, block * 3, out).unwrap();
    }
    values
}

/// Checks that a checkpoint gives exactly these tensors.
pub(crate) fn check_values(checkpoint: &Checkpoint, expected: &Tensors) {
    for (name, tensor) in expected {
        assert_eq!(read(checkpoint, name, &tensor.shape), tensor.values, "{name}");
    }
}

/// Opens a path and reads every tensor that `known` names: whatever the files hold, this ends in values
/// or messages.
pub(crate) fn open_and_read_all(path: &Path, known: &Tensors) -> Result<(), String> {
    let checkpoint = Checkpoint::open(path).map_err(|error| error.to_string())?;
    for (name, tensor) in known {
        let mut out = vec![0.0; tensor.values.len()];
        let columns = *tensor.shape.last().unwrap();
        checkpoint.read_rows(name, columns, 0, &mut out).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// A message without the folder it was seen in.
pub(crate) fn without_folder(message: &str, folder: &Path) -> String {
    message.replace(&format!("{}/", folder.display()), "").replace(&folder.display().to_string(), "FOLDER")
}

//! llama.cpp's tensor names, and the order of Llama's rows, brought to Hugging Face's.

use std::collections::BTreeMap;

use qwen2c_format::Diagnostic;
use qwen2c_graph::{Family, ModelConfig};

use super::header::GgufFile;
use crate::tensors::{RowOrder, StoredTensor};

/// What a name below `blk.N.` stands for below `model.layers.N.`.
const BLOCK_NAMES: [(&str, &str); 19] = [
    ("attn_norm.weight", "input_layernorm.weight"),
    ("attn_q.weight", "self_attn.q_proj.weight"),
    ("attn_q.bias", "self_attn.q_proj.bias"),
    ("attn_k.weight", "self_attn.k_proj.weight"),
    ("attn_k.bias", "self_attn.k_proj.bias"),
    ("attn_v.weight", "self_attn.v_proj.weight"),
    ("attn_v.bias", "self_attn.v_proj.bias"),
    ("attn_output.weight", "self_attn.o_proj.weight"),
    ("ffn_norm.weight", "post_attention_layernorm.weight"),
    ("ffn_gate.weight", "mlp.gate_proj.weight"),
    ("ffn_up.weight", "mlp.up_proj.weight"),
    ("ffn_down.weight", "mlp.down_proj.weight"),
    ("ffn_gate_inp.weight", "mlp.gate.weight"),
    ("ffn_gate_inp_shexp.weight", "mlp.shared_expert_gate.weight"),
    ("ffn_gate_shexp.weight", "mlp.shared_expert.gate_proj.weight"),
    ("ffn_up_shexp.weight", "mlp.shared_expert.up_proj.weight"),
    ("ffn_down_shexp.weight", "mlp.shared_expert.down_proj.weight"),
    ("attn_output.bias", "self_attn.o_proj.bias"),
    ("attn_rot_embd", "self_attn.rotary_emb.inv_freq"),
];

/// Tensors that hold all experts of a layer.
const EXPERT_NAMES: [(&str, &str); 3] = [
    ("ffn_gate_exps.weight", "gate_proj"),
    ("ffn_up_exps.weight", "up_proj"),
    ("ffn_down_exps.weight", "down_proj"),
];

/// The file's tensors under canonical names, merged experts as one tensor each.
pub(crate) fn canonical_tensors(
    gguf: &GgufFile,
    config: &ModelConfig,
) -> Result<BTreeMap<String, StoredTensor>, Diagnostic> {
    let mut tensors = BTreeMap::new();
    for (name, tensor) in &gguf.tensors {
        match name.as_str() {
            "token_embd.weight" => {
                tensors.insert("model.embed_tokens.weight".to_owned(), tensor.clone());
            }
            "output_norm.weight" => {
                tensors.insert("model.norm.weight".to_owned(), tensor.clone());
            }
            "output.weight" => {
                tensors.insert("lm_head.weight".to_owned(), tensor.clone());
            }
            "rope_freqs.weight" => {
                return Err(Diagnostic::new("the file scales its rotary frequencies")
                    .at(gguf.file.place())
                    .found("tensor `rope_freqs.weight`")
                    .cause("the scaling of Llama 3.1 is not compiled; only unscaled rotation and YaRN are"));
            }
            _ => insert_block_tensor(&mut tensors, name, tensor, config)
                .map_err(|diagnostic| diagnostic.at(gguf.file.place()))?,
        }
    }
    Ok(tensors)
}

fn insert_block_tensor(
    tensors: &mut BTreeMap<String, StoredTensor>,
    name: &str,
    tensor: &StoredTensor,
    config: &ModelConfig,
) -> Result<(), Diagnostic> {
    let unknown = || {
        Diagnostic::new(format!("tensor `{name}` is not part of a {} model", config.family.name()))
            .cause("a tensor that is ignored would change the text without an error")
    };
    let (layer, rest) =
        name.strip_prefix("blk.").and_then(|name| name.split_once('.')).ok_or_else(unknown)?;
    let layer: u64 = layer.parse().map_err(|_| unknown())?;
    let prefix = format!("model.layers.{layer}");
    if let Some((_, projection)) = EXPERT_NAMES.iter().find(|(known, _)| *known == rest) {
        return insert_experts(tensors, name, &prefix, tensor, config, &[projection]);
    }
    let (_, canonical) = BLOCK_NAMES.iter().find(|(known, _)| *known == rest).ok_or_else(unknown)?;
    let mut tensor = tensor.clone();
    if config.family == Family::Llama && (rest.starts_with("attn_q.") || rest.starts_with("attn_k.")) {
        tensor.order = RowOrder::InterleavedHalves { head_dim: config.head_dim };
    }
    tensors.insert(format!("{prefix}.{canonical}"), tensor);
    Ok(())
}

/// Inserts each expert of the merged tensor `name`, `[experts, rows, columns]`. An expert's rows are
/// shared out evenly over `projections`.
pub(crate) fn insert_experts(
    tensors: &mut BTreeMap<String, StoredTensor>,
    name: &str,
    prefix: &str,
    merged: &StoredTensor,
    config: &ModelConfig,
    projections: &[&str],
) -> Result<(), Diagnostic> {
    let needed = config.experts.as_ref().map_or(0, |experts| experts.experts);
    let parts = projections.len() as u64;
    let (experts, rows) = match merged.shape[..] {
        [experts, rows, _] if experts == needed && rows.is_multiple_of(parts) => (experts, rows),
        _ => {
            return Err(Diagnostic::new(format!("tensor `{name}` has the wrong shape"))
                .found(format!("{:?}", merged.shape))
                .needed(format!("[{needed}, rows, columns]: the configuration has {needed} experts")));
        }
    };
    for expert in 0..experts {
        for (part, projection) in (0..).zip(projections) {
            let slice = merged.slice(expert * rows + part * (rows / parts), rows / parts);
            tensors.insert(format!("{prefix}.mlp.experts.{expert}.{projection}.weight"), slice);
        }
    }
    Ok(())
}

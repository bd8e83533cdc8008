//! `config.json`: the configuration of a Hugging Face checkpoint.

use qwen2c_format::Diagnostic;
use qwen2c_graph::{ExpertConfig, Family, ModelConfig, Rope, RopeScaling};
use serde_json::{Map, Value};

use super::limits::check_limits;
use super::reader::{FieldReader, model_name};
use super::rope::read_rope;
use super::table::{ConfigField, config_fields};

/// Reads a configuration.
///
/// `head_stored` says whether the checkpoint stores `lm_head.weight`: it decides about tying where
/// `tie_word_embeddings` is absent; `None` where there are no tensors to ask. `place` is where the object
/// was seen.
///
/// # Errors
///
/// When a value is missing, contradicts another, or is not served.
pub fn parse_config_json(
    object: &Map<String, Value>,
    head_stored: Option<bool>,
    place: &str,
) -> Result<(ModelConfig, Vec<ConfigField>), Diagnostic> {
    let mut reader = FieldReader::new(object, place);
    let family = read_family(&mut reader)?;
    refuse_other_mathematics(&reader, family)?;
    let layers = reader.required_count("layers", "num_hidden_layers")?;
    refuse_sliding_window(&reader, layers)?;

    let hidden = reader.required_count("hidden", "hidden_size")?;
    let heads = reader.required_count("heads", "num_attention_heads")?;
    let kv_heads = read_kv_heads(&mut reader, family, heads)?;
    let head_dim = read_head_dim(&mut reader, hidden, heads)?;
    let (rope, max_context) = read_context(&mut reader)?;
    let mut config = ModelConfig {
        name: String::new(),
        family,
        hidden,
        layers,
        heads,
        kv_heads,
        head_dim,
        intermediate: reader.required_count("intermediate", "intermediate_size")?,
        vocabulary: reader.required_count("vocabulary", "vocab_size")?,
        qkv_bias: read_qkv_bias(&mut reader, family)?,
        tied_embedding: read_tied(&mut reader, head_stored)?,
        epsilon: reader.real("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        rope,
        max_context,
        experts: if family == Family::Qwen2Moe { Some(read_experts(&mut reader)?) } else { None },
    };
    let found = reader.value("rms_norm_eps").is_some();
    reader.record_default("epsilon", "rms_norm_eps", found);
    check_limits(&config, place)?;
    config.name = model_name(&config);
    reader.record("name", "family and number of parameters");
    let fields = config_fields(&config, &|name| reader.origin(name));
    Ok((config, fields))
}

/// The family; all others are refused by name.
fn read_family(reader: &mut FieldReader<'_>) -> Result<Family, Diagnostic> {
    let model_type = reader.text("model_type")?.ok_or_else(|| {
        reader
            .missing("model_type")
            .needed("`qwen2`, `qwen2_moe` or `llama`")
            .help("is this the `config.json` of a transformers checkpoint?")
    })?;
    reader.record("family", "`model_type`");
    let family = match model_type {
        "qwen2" => Family::Qwen2,
        "qwen2_moe" => Family::Qwen2Moe,
        "llama" => Family::Llama,
        other => {
            let reason = match other {
                "qwen" => "first-generation Qwen (dynamic NTK rotation, logn attention) is not compiled yet",
                "qwen3" | "qwen3_moe" => "Qwen3 normalizes queries and keys, which no block here does",
                "qwen2_vl" | "qwen2_5_vl" | "qwen2_audio" | "qwen2_5_omni" => {
                    "pictures and sound are not compiled, only text models"
                }
                _ => "the compiler knows the blocks of Qwen2, Qwen2-MoE and Llama alone",
            };
            return Err(reader
                .refused("model_type", other, reason)
                .needed("`qwen2`, `qwen2_moe` or `llama`"));
        }
    };
    Ok(family)
}

/// Refuses what would be computed differently from what the keys say.
fn refuse_other_mathematics(reader: &FieldReader<'_>, family: Family) -> Result<(), Diagnostic> {
    if let Some(activation) = reader.text("hidden_act")?
        && !matches!(activation, "silu" | "swish")
    {
        return Err(reader
            .refused("hidden_act", activation, "the family's MLP is gated by SiLU")
            .needed("`silu`"));
    }
    if let Some(quantization) = reader.object("quantization_config")? {
        let method = quantization.get("quant_method").and_then(Value::as_str).unwrap_or("unnamed");
        return Err(reader
            .refused("quantization_config", method, "quantized checkpoints are not read yet, except GGUF")
            .help("pass the unquantized checkpoint, or a GGUF file"));
    }
    if reader.value("dual_chunk_attention_config").is_some() {
        return Err(reader.refused(
            "dual_chunk_attention_config",
            "present",
            "dual chunk attention is not compiled yet",
        ));
    }
    let biases: &[&str] =
        if family == Family::Llama { &["attention_bias", "mlp_bias"] } else { &["mlp_bias"] };
    for &key in biases {
        if reader.flag(key)? == Some(true) {
            return Err(reader
                .refused(key, "true", "output and MLP projections have no biases in a block of this family")
                .needed("`false`"));
        }
    }
    Ok(())
}

/// Refuses layers that do not attend to everything.
fn refuse_sliding_window(reader: &FieldReader<'_>, layers: u64) -> Result<(), Diagnostic> {
    const REASON: &str = "sliding-window attention is not compiled; no released Qwen2 uses it, and its rules differ between versions";
    if reader.flag("use_sliding_window")? == Some(true) {
        return Err(reader
            .refused("use_sliding_window", "true", REASON)
            .needed("`false`")
            .help("set it to `false` if the prompts stay within `sliding_window`"));
    }
    let Some(types) = reader.value("layer_types") else {
        return Ok(());
    };
    let types = types.as_array().map(Vec::as_slice).unwrap_or_default();
    if types.len() as u64 != layers {
        return Err(Diagnostic::new("`layer_types` does not list every layer")
            .at(reader.place())
            .found(format!("{} entries", types.len()))
            .needed(format!("`num_hidden_layers` {layers}")));
    }
    match types.iter().find(|kind| kind.as_str() != Some("full_attention")) {
        None => Ok(()),
        Some(kind) => Err(reader
            .refused("layer_types", kind.as_str().unwrap_or("not a string"), REASON)
            .needed("`full_attention`")),
    }
}

fn read_kv_heads(reader: &mut FieldReader<'_>, family: Family, heads: u64) -> Result<u64, Diagnostic> {
    if let Some(kv_heads) = reader.count("num_key_value_heads")? {
        reader.record("kv_heads", "`num_key_value_heads`");
        return Ok(kv_heads);
    }
    if family == Family::Llama {
        reader.record("kv_heads", "derived: `num_attention_heads`, as `num_key_value_heads` is absent");
        return Ok(heads);
    }
    Err(reader.missing("num_key_value_heads"))
}

fn read_head_dim(reader: &mut FieldReader<'_>, hidden: u64, heads: u64) -> Result<u64, Diagnostic> {
    if let Some(head_dim) = reader.count("head_dim")? {
        reader.record("head_dim", "`head_dim`");
        return Ok(head_dim);
    }
    if heads == 0 || !hidden.is_multiple_of(heads) {
        return Err(Diagnostic::new("`head_dim` cannot be derived")
            .at(reader.place())
            .found(format!("`hidden_size` {hidden}, `num_attention_heads` {heads}"))
            .needed("a multiple, or `head_dim`"));
    }
    reader.record("head_dim", "derived: `hidden_size` / `num_attention_heads`");
    Ok(hidden / heads)
}

/// Rotation, and the largest context it serves. With YaRN that is the stretched context: configurations
/// keep the original one in `max_position_embeddings`.
fn read_context(reader: &mut FieldReader<'_>) -> Result<(Rope, u64), Diagnostic> {
    let max_positions = reader.required_count("max_context", "max_position_embeddings")?;
    let rope = read_rope(reader, max_positions)?;
    let max_context = match rope.scaling {
        RopeScaling::None => max_positions,
        RopeScaling::Yarn { factor, original_context, .. } => {
            reader.record("max_context", "derived: `original_max_position_embeddings` · `factor`");
            (original_context as f64 * factor) as u64
        }
    };
    Ok((rope, max_context))
}

fn read_qkv_bias(reader: &mut FieldReader<'_>, family: Family) -> Result<bool, Diagnostic> {
    match family {
        Family::Qwen2 => {
            reader.record("qkv_bias", "the family's blocks have them");
            Ok(true)
        }
        Family::Qwen2Moe => reader.flag_or("qkv_bias", "qkv_bias", true),
        Family::Llama => reader.flag_or("qkv_bias", "attention_bias", false),
    }
}

fn read_tied(reader: &mut FieldReader<'_>, head_stored: Option<bool>) -> Result<bool, Diagnostic> {
    if reader.value("tie_word_embeddings").is_none() && head_stored == Some(false) {
        reader.record("tied_embedding", "derived: the checkpoint stores no `lm_head.weight`");
        return Ok(true);
    }
    reader.flag_or("tied_embedding", "tie_word_embeddings", false)
}

fn read_experts(reader: &mut FieldReader<'_>) -> Result<ExpertConfig, Diagnostic> {
    let dense_layers = reader.counts("mlp_only_layers")?;
    reader.record_default("dense_layers", "mlp_only_layers", dense_layers.is_some());
    Ok(ExpertConfig {
        experts: reader.required_count("experts", "num_experts")?,
        experts_per_token: reader.required_count("experts_per_token", "num_experts_per_tok")?,
        intermediate: reader.required_count("expert_intermediate", "moe_intermediate_size")?,
        shared_intermediate: reader
            .required_count("shared_expert_intermediate", "shared_expert_intermediate_size")?,
        normalize_weights: reader.flag_or("normalize_expert_weights", "norm_topk_prob", false)?,
        sparse_step: reader.count_or("sparse_step", "decoder_sparse_step", 1)?,
        dense_layers: dense_layers.unwrap_or_default(),
    })
}

//! The metadata of a GGUF file as a model's description.

use std::collections::BTreeMap;

use qwen2c_format::{Diagnostic, GenerationDefaults};
use qwen2c_graph::{ExpertConfig, Family, ModelConfig, Rope, RopeScaling};
use qwen2c_request::Quantization;
use serde_json::{Map, Value};

use super::header::{GgufFile, MetadataValue};
use super::names::canonical_tensors;
use super::vocabulary::{GgufVocabulary, read_vocabulary};
use crate::config::{FieldReader, check_limits, config_fields, model_name, yarn_scaling};
use crate::description::{ModelDescription, TokenizerSource};
use crate::generation::check_ids;
use crate::tensors::StoredTensor;

/// Describes the model of a GGUF file.
pub(crate) fn describe_gguf(gguf: &GgufFile) -> Result<ModelDescription, Diagnostic> {
    let place = gguf.file.place();
    let scalars = scalar_metadata(gguf);
    let mut reader = FieldReader::new(&scalars, &place);
    refuse_split_file(&reader)?;
    let architecture = read_architecture(&reader)?;
    reader.record("family", "`general.architecture`");
    let mut config = read_config(gguf, &mut reader, &architecture)?;
    check_limits(&config, &place)?;
    match given_name(&reader)? {
        Some(name) => {
            config.name = name;
            reader.record("name", "`general.basename` and `general.size_label`");
        }
        None => {
            config.name = model_name(&config);
            reader.record("name", "family and number of parameters");
        }
    }
    let vocabulary = read_vocabulary(gguf)?;
    let generation = read_generation(&reader, vocabulary.as_ref())?;
    check_ids(&generation, config.vocabulary, &place)?;
    Ok(ModelDescription {
        fields: config_fields(&config, &|name| reader.origin(name)),
        generation,
        chat_template: reader.text("tokenizer.chat_template")?.map(str::to_owned),
        template_tokens: vocabulary.as_ref().map(template_tokens).unwrap_or_default(),
        tokenizer: vocabulary.map_or(TokenizerSource::Absent, |known| TokenizerSource::Gguf(known.tokenizer)),
        quantized_tensors: quantized_tensors(gguf, &config)?,
        config,
    })
}

/// The tensors that consist of blocks, with what the blocks consist of.
fn quantized_tensors(
    gguf: &GgufFile,
    config: &ModelConfig,
) -> Result<BTreeMap<String, Quantization>, Diagnostic> {
    let quantized = |(name, tensor): (String, StoredTensor)| Some((name, tensor.encoding.quantization()?));
    Ok(canonical_tensors(gguf, config)?.into_iter().filter_map(quantized).collect())
}

/// Refuses one file of several: the others' tensors would be missing.
fn refuse_split_file(reader: &FieldReader<'_>) -> Result<(), Diagnostic> {
    match reader.count("split.count")? {
        Some(files) if files > 1 => Err(Diagnostic::new("the model is split over several GGUF files")
            .at(reader.place())
            .found(format!("{files} files"))
            .needed("one file")
            .help("join them with llama.cpp: `llama-gguf-split --merge FIRST.gguf JOINED.gguf`")),
        _ => Ok(()),
    }
}

/// The metadata without its arrays, in the form that [`FieldReader`] reads.
fn scalar_metadata(gguf: &GgufFile) -> Map<String, Value> {
    let scalar = |value: &MetadataValue| match value {
        MetadataValue::Unsigned(number) => Some(Value::from(*number)),
        MetadataValue::Signed(number) => Some(Value::from(*number)),
        MetadataValue::Real(number) => Some(Value::from(*number)),
        MetadataValue::Flag(flag) => Some(Value::from(*flag)),
        MetadataValue::Text(text) => Some(Value::from(text.clone())),
        MetadataValue::Integers(numbers) if numbers.len() <= 1024 => Some(Value::from(numbers.clone())),
        _ => None,
    };
    gguf.metadata.iter().filter_map(|(key, value)| Some((key.clone(), scalar(value)?))).collect()
}

/// The family with its prefix of keys; all others are refused by name.
struct Architecture {
    family: Family,
    prefix: &'static str,
}

impl Architecture {
    /// A key of the architecture.
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }
}

fn read_architecture(reader: &FieldReader<'_>) -> Result<Architecture, Diagnostic> {
    let name = reader.text("general.architecture")?.ok_or_else(|| reader.missing("general.architecture"))?;
    match name {
        "qwen2" => Ok(Architecture { family: Family::Qwen2, prefix: "qwen2" }),
        "qwen2moe" => Ok(Architecture { family: Family::Qwen2Moe, prefix: "qwen2moe" }),
        "llama" => Ok(Architecture { family: Family::Llama, prefix: "llama" }),
        other => {
            let reason = match other {
                "qwen" => "first-generation Qwen (dynamic NTK rotation, logn attention) is not compiled yet",
                "qwen3" | "qwen3moe" => "Qwen3 normalizes queries and keys, which no block here does",
                "qwen2vl" => "pictures are not compiled, only text models",
                _ => "the compiler knows the blocks of Qwen2, Qwen2-MoE and Llama alone",
            };
            Err(reader
                .refused("general.architecture", other, reason)
                .needed("`qwen2`, `qwen2moe` or `llama`"))
        }
    }
}

fn read_config(
    gguf: &GgufFile,
    reader: &mut FieldReader<'_>,
    architecture: &Architecture,
) -> Result<ModelConfig, Diagnostic> {
    let key = |name: &str| architecture.key(name);
    let family = architecture.family;
    if family != Family::Qwen2Moe && reader.count(&key("expert_count"))?.is_some_and(|experts| experts > 0) {
        return Err(reader.refused(
            &key("expert_count"),
            "above 0",
            "experts are compiled for `qwen2moe` alone",
        ));
    }
    let layers = reader.required_count("layers", &key("block_count"))?;
    let hidden = reader.required_count("hidden", &key("embedding_length"))?;
    let heads = reader.required_count("heads", &key("attention.head_count"))?;
    let kv_heads = reader.count_or("kv_heads", &key("attention.head_count_kv"), heads)?;
    let head_dim = read_head_dim(reader, architecture, hidden, heads)?;
    let (rope, max_context) = read_context(reader, architecture, head_dim)?;
    let epsilon_key = key("attention.layer_norm_rms_epsilon");
    let epsilon = reader.real(&epsilon_key)?.ok_or_else(|| reader.missing(&epsilon_key))? as f32;
    reader.record("epsilon", format!("`{epsilon_key}`"));
    reader.record("qkv_bias", "derived: whether `blk.0.attn_q.bias` is there");
    reader.record("tied_embedding", "derived: whether `output.weight` is absent");
    Ok(ModelConfig {
        name: String::new(),
        family,
        hidden,
        layers,
        heads,
        kv_heads,
        head_dim,
        intermediate: reader.required_count("intermediate", &key("feed_forward_length"))?,
        vocabulary: read_vocabulary_size(gguf, reader, architecture)?,
        qkv_bias: gguf.tensors.contains_key("blk.0.attn_q.bias"),
        tied_embedding: !gguf.tensors.contains_key("output.weight"),
        epsilon,
        rope,
        max_context,
        experts: match family {
            Family::Qwen2Moe => Some(read_experts(gguf, reader, architecture, layers)?),
            _ => None,
        },
    })
}

fn read_head_dim(
    reader: &mut FieldReader<'_>,
    architecture: &Architecture,
    hidden: u64,
    heads: u64,
) -> Result<u64, Diagnostic> {
    let given = reader.count(&architecture.key("attention.key_length"))?;
    let head_dim = match given {
        Some(head_dim) => head_dim,
        None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(Diagnostic::new("the size of a head cannot be derived")
                .at(reader.place())
                .found(format!("embedding length {hidden}, {heads} heads"))
                .needed("a multiple"));
        }
    };
    let origin = match given {
        Some(_) => format!("`{}`", architecture.key("attention.key_length")),
        None => "derived: embedding length / heads".to_owned(),
    };
    reader.record("head_dim", origin);
    for name in ["attention.value_length", "rope.dimension_count"] {
        let key = architecture.key(name);
        if let Some(other) = reader.count(&key)?
            && other != head_dim
        {
            return Err(reader
                .refused(&key, &other.to_string(), "keys, values and rotation have the size of a head here")
                .needed(head_dim.to_string()));
        }
    }
    Ok(head_dim)
}

/// Rotation, and the largest context that it serves.
fn read_context(
    reader: &mut FieldReader<'_>,
    architecture: &Architecture,
    head_dim: u64,
) -> Result<(Rope, u64), Diagnostic> {
    let key = |name: &str| architecture.key(name);
    let context = reader.required_count("max_context", &key("context_length"))?;
    let theta = reader.real(&key("rope.freq_base"))?;
    reader.record_default("rope_theta", &key("rope.freq_base"), theta.is_some());
    let theta = theta.unwrap_or(10_000.0);
    let kind_key = key("rope.scaling.type");
    let kind = reader.text(&kind_key)?.unwrap_or("none");
    let linear = reader.real(&key("rope.scale_linear"))?.unwrap_or(1.0);
    if kind != "yarn" && (kind != "none" || linear != 1.0) {
        let needed = "`none` or `yarn`";
        return Err(reader
            .refused(&kind_key, kind, "only unscaled rotation and YaRN are compiled")
            .needed(needed));
    }
    reader.record_default("rope_scaling", &kind_key, reader.value(&kind_key).is_some());
    if kind == "none" || head_dim == 0 {
        return Ok((Rope { theta, scaling: RopeScaling::None }, context));
    }
    let factor_key = key("rope.scaling.factor");
    let factor = reader.real(&factor_key)?.ok_or_else(|| reader.missing(&factor_key))?;
    let original = reader.count(&key("rope.scaling.original_context_length"))?.unwrap_or(context);
    let betas = [
        reader.real(&key("rope.scaling.yarn_beta_fast"))?,
        reader.real(&key("rope.scaling.yarn_beta_slow"))?,
    ];
    let scaling = yarn_scaling(factor, original, betas, None, reader.place())?;
    reader.record("max_context", "derived: original context length · factor");
    for name in ["yarn_factor", "yarn_original_context", "yarn_beta_fast", "yarn_beta_slow"] {
        reader.record(name, format!("`{}…`", key("rope.scaling.")));
    }
    Ok((Rope { theta, scaling }, (original as f64 * factor) as u64))
}

/// Rows of the embedding, which may be more than there are tokens.
fn read_vocabulary_size(
    gguf: &GgufFile,
    reader: &mut FieldReader<'_>,
    architecture: &Architecture,
) -> Result<u64, Diagnostic> {
    let embedding = gguf.tensors.get("token_embd.weight").ok_or_else(|| {
        Diagnostic::new("tensor `token_embd.weight` is missing from the checkpoint").at(reader.place())
    })?;
    let rows = embedding.rows();
    reader.record("vocabulary", "derived: rows of `token_embd.weight`");
    let differs = |needed: String| {
        Err(Diagnostic::new("the embedding has another number of rows than the vocabulary has tokens")
            .at(reader.place())
            .found(format!("{rows} rows of `token_embd.weight`"))
            .needed(needed))
    };
    let key = architecture.key("vocab_size");
    if let Some(size) = reader.count(&key)?
        && size != rows
    {
        return differs(format!("`{key}` {size}"));
    }
    match gguf.metadata.get("tokenizer.ggml.tokens") {
        Some(MetadataValue::Texts(tokens)) if tokens.len() as u64 > rows => {
            differs(format!("{} or more, for `tokenizer.ggml.tokens`", tokens.len()))
        }
        _ => Ok(rows),
    }
}

/// The experts. llama.cpp keeps neither `norm_topk_prob` nor the rule for sparse layers: no released
/// model normalizes, and a layer is sparse where it has a router.
fn read_experts(
    gguf: &GgufFile,
    reader: &mut FieldReader<'_>,
    architecture: &Architecture,
    layers: u64,
) -> Result<ExpertConfig, Diagnostic> {
    let key = |name: &str| architecture.key(name);
    // `layers` is not checked yet, and a layer needs tensors.
    let layers = layers.min(gguf.tensors.len() as u64);
    let has_router = |layer: &u64| gguf.tensors.contains_key(&format!("blk.{layer}.ffn_gate_inp.weight"));
    let dense_layers: Vec<u64> = (0..layers).filter(|layer| !has_router(layer)).collect();
    reader.record("dense_layers", "derived: layers without `ffn_gate_inp.weight`");
    reader.record("sparse_step", "derived: a layer is sparse where it has `ffn_gate_inp.weight`");
    reader.record("normalize_expert_weights", "default of the reference implementation, llama.cpp");
    let first_sparse = (0..layers).find(has_router).unwrap_or(0);
    let rows_of = |name: &str| {
        let tensor = gguf.tensors.get(&format!("blk.{first_sparse}.{name}"))?;
        tensor.shape.iter().rev().nth(1).copied()
    };
    let mut width = |name: &'static str, key: String, tensor: &str| match reader.count(&key)? {
        Some(width) => {
            reader.record(name, format!("`{key}`"));
            Ok(width)
        }
        None => {
            reader.record(name, format!("derived: rows of `{tensor}`"));
            rows_of(tensor).ok_or_else(|| reader.missing(&key))
        }
    };
    let intermediate =
        width("expert_intermediate", key("expert_feed_forward_length"), "ffn_gate_exps.weight")?;
    let shared_intermediate = width(
        "shared_expert_intermediate",
        key("expert_shared_feed_forward_length"),
        "ffn_gate_shexp.weight",
    )?;
    Ok(ExpertConfig {
        experts: reader.required_count("experts", &key("expert_count"))?,
        experts_per_token: reader.required_count("experts_per_token", &key("expert_used_count"))?,
        intermediate,
        shared_intermediate,
        normalize_weights: false,
        sparse_step: 1,
        dense_layers,
    })
}

/// The name that the file gives itself, as far as it can be part of a file name.
fn given_name(reader: &FieldReader<'_>) -> Result<Option<String>, Diagnostic> {
    let (Some(base), Some(size)) = (reader.text("general.basename")?, reader.text("general.size_label")?)
    else {
        return Ok(None);
    };
    let plain = |text: &str| -> String {
        let letters = text.chars().flat_map(char::to_lowercase).take(40);
        letters
            .map(|letter| if letter.is_ascii_alphanumeric() || letter == '.' { letter } else { '-' })
            .collect()
    };
    let name = format!("{}-{}", plain(base), plain(size));
    Ok(name.starts_with(|letter: char| letter.is_ascii_alphanumeric()).then_some(name))
}

/// Sampling defaults: `general.sampling.*` where the file has them, else greedy.
fn read_generation(
    reader: &FieldReader<'_>,
    vocabulary: Option<&GgufVocabulary>,
) -> Result<GenerationDefaults, Diagnostic> {
    let real = |key: &str, default: f64| -> Result<f32, Diagnostic> {
        let value = reader.real(key)?.unwrap_or(default);
        if (0.0..=100.0).contains(&value) { Ok(value as f32) } else { Ok(default as f32) }
    };
    let mut stop_ids = Vec::new();
    for id in vocabulary.into_iter().flat_map(|known| [known.eos_id, known.end_of_turn_id]).flatten() {
        if !stop_ids.contains(&id) {
            stop_ids.push(id);
        }
    }
    Ok(GenerationDefaults {
        stop_ids,
        bos_id: vocabulary
            .map(|known| &known.tokenizer)
            .filter(|known| known.add_bos)
            .and_then(|known| known.bos_id),
        temperature: real("general.sampling.temp", 0.0)?,
        top_k: reader.count("general.sampling.top_k")?.map_or(0, |top_k| u32::try_from(top_k).unwrap_or(0)),
        top_p: real("general.sampling.top_p", 1.0)?.min(1.0),
        repetition_penalty: real("general.sampling.penalty_repeat", 1.0)?.max(0.01),
    })
}

/// Texts of the special tokens that a chat template may name.
fn template_tokens(vocabulary: &GgufVocabulary) -> Vec<(String, String)> {
    let ids = [
        ("bos_token", vocabulary.tokenizer.bos_id),
        ("eos_token", vocabulary.eos_id),
        ("pad_token", vocabulary.padding_id),
        ("unk_token", vocabulary.unknown_id),
    ];
    ids.into_iter()
        .filter_map(|(name, id)| Some((name.to_owned(), vocabulary.token(id?)?.to_owned())))
        .collect()
}

//! `config.json`: both spellings, defaults, and every refusal with its message.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use qwen2c_checkpoint::{ConfigField, parse_config_json};
use qwen2c_graph::{Family, ModelConfig, RopeScaling};
use serde_json::{Value, json};

/// Qwen2-0.5B as released.
fn qwen2() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151_643,
        "eos_token_id": 151_643, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
        "intermediate_size": 4864, "max_position_embeddings": 131_072, "max_window_layers": 24,
        "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0,
        "sliding_window": 131_072, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "use_cache": true, "use_sliding_window": false, "vocab_size": 151_936
    })
}

/// Qwen1.5-MoE-A2.7B as released.
fn qwen2_moe() -> Value {
    with(
        qwen2(),
        json!({
            "model_type": "qwen2_moe", "hidden_size": 2048, "intermediate_size": 5632,
            "num_attention_heads": 16, "num_key_value_heads": 16, "tie_word_embeddings": false,
            "num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632, "norm_topk_prob": false, "decoder_sparse_step": 1
        }),
    )
}

/// `base` with other values for some keys; `null` removes a key.
fn with(mut base: Value, changes: Value) -> Value {
    let object = base.as_object_mut().unwrap();
    for (key, value) in changes.as_object().unwrap() {
        if value.is_null() {
            object.remove(key);
        } else {
            object.insert(key.clone(), value.clone());
        }
    }
    base
}

fn parse(config: &Value) -> Result<(ModelConfig, Vec<ConfigField>), String> {
    parse_config_json(config.as_object().unwrap(), None, "config.json").map_err(|error| error.to_string())
}

fn origin(fields: &[ConfigField], name: &str) -> String {
    fields.iter().find(|field| field.name == name).unwrap().origin.clone()
}

#[test]
fn a_release_is_read_with_the_origin_of_every_value() {
    let (config, fields) = parse(&qwen2()).unwrap();
    assert_eq!(config.family, Family::Qwen2);
    assert_eq!((config.hidden, config.layers, config.heads, config.kv_heads), (896, 24, 14, 2));
    assert_eq!((config.head_dim, config.intermediate, config.vocabulary), (64, 4864, 151_936));
    assert!(config.qkv_bias && config.tied_embedding);
    assert_eq!((config.epsilon, config.rope.theta, config.max_context), (1e-6, 1e6, 131_072));
    assert_eq!(config.rope.scaling, RopeScaling::None);
    assert_eq!(config.name, "qwen2-494m");
    assert_eq!(origin(&fields, "hidden"), "`hidden_size`");
    assert_eq!(origin(&fields, "head_dim"), "derived: `hidden_size` / `num_attention_heads`");
    assert_eq!(
        origin(&fields, "rope_scaling"),
        "default of the reference implementation, `rope_scaling` is absent"
    );
}

#[test]
fn both_spellings_mean_the_same() {
    let old = with(
        qwen2(),
        json!({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16_384}}),
    );
    let new = with(
        qwen2(),
        json!({"rope_theta": null, "torch_dtype": null, "dtype": "bfloat16",
            "layer_types": vec!["full_attention"; 24],
            "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0,
                "original_max_position_embeddings": 16_384}}),
    );
    let (old, _) = parse(&old).unwrap();
    let (new, fields) = parse(&new).unwrap();
    assert_eq!(old, new);
    assert_eq!(origin(&fields, "rope_theta"), "`rope_parameters.rope_theta`");
    assert_eq!(new.max_context, 65_536);
    let RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor } =
        new.rope.scaling
    else {
        panic!("not YaRN: {:?}", new.rope);
    };
    assert_eq!((factor, original_context, beta_fast, beta_slow), (4.0, 16_384, 32.0, 1.0));
    assert!((attention_factor - 1.138_629_436).abs() < 1e-9, "{attention_factor}");
}

#[test]
fn experts_are_read() {
    let changes = json!({"mlp_only_layers": [0, 23], "decoder_sparse_step": 2, "qkv_bias": false});
    let (config, fields) = parse(&with(qwen2_moe(), changes)).unwrap();
    let experts = config.experts.as_ref().unwrap();
    assert_eq!((experts.experts, experts.experts_per_token), (60, 4));
    assert_eq!((experts.intermediate, experts.shared_intermediate), (1408, 5632));
    assert!(!experts.normalize_weights && !config.qkv_bias);
    assert!(!config.is_sparse(0) && config.is_sparse(1) && !config.is_sparse(23));
    assert_eq!(origin(&fields, "dense_layers"), "`mlp_only_layers`");
    let (config, _) = parse(&qwen2_moe()).unwrap();
    assert_eq!(config.name, "qwen2-moe-14.3b");
}

#[test]
fn llama_is_a_block_without_biases() {
    let changes = json!({"model_type": "llama", "num_key_value_heads": null, "attention_bias": false,
        "mlp_bias": false, "rope_scaling": null});
    let (config, fields) = parse(&with(qwen2(), changes)).unwrap();
    assert_eq!((config.family, config.kv_heads, config.qkv_bias), (Family::Llama, 14, false));
    assert!(origin(&fields, "kv_heads").starts_with("derived"));
}

#[test]
fn tying_follows_the_key_and_else_the_tensors() {
    let absent = with(qwen2(), json!({"tie_word_embeddings": null}));
    let tied = |config: &Value, head_stored| {
        parse_config_json(config.as_object().unwrap(), head_stored, "config.json").unwrap().0.tied_embedding
    };
    assert!(tied(&absent, Some(false)));
    assert!(!tied(&absent, Some(true)));
    assert!(!tied(&absent, None));
    assert!(tied(&qwen2(), Some(true)));
    assert!(!tied(&with(qwen2(), json!({"tie_word_embeddings": false})), Some(false)));
}

/// Parses a changed release and compares the whole message.
fn check(base: Value, changes: Value, expected: &str) {
    let message = parse(&with(base, changes)).expect_err("the configuration must be refused");
    assert_eq!(message, expected);
}

#[test]
fn other_families_are_refused_by_name() {
    check(
        qwen2(),
        json!({"model_type": "qwen3"}),
        "`model_type` has a value that is not served\n  --> config.json\n  found: `qwen3`\n  needed: `qwen2`, `qwen2_moe` or `llama`\n  cause: Qwen3 normalizes queries and keys, which no block here does",
    );
    check(
        qwen2(),
        json!({"model_type": "qwen"}),
        "`model_type` has a value that is not served\n  --> config.json\n  found: `qwen`\n  needed: `qwen2`, `qwen2_moe` or `llama`\n  cause: first-generation Qwen (dynamic NTK rotation, logn attention) is not compiled yet",
    );
    check(
        qwen2(),
        json!({"model_type": "gpt2"}),
        "`model_type` has a value that is not served\n  --> config.json\n  found: `gpt2`\n  needed: `qwen2`, `qwen2_moe` or `llama`\n  cause: the compiler knows the blocks of Qwen2, Qwen2-MoE and Llama alone",
    );
    check(
        qwen2(),
        json!({"model_type": null}),
        "`model_type` is missing from the configuration\n  --> config.json\n  needed: `qwen2`, `qwen2_moe` or `llama`\n  help: is this the `config.json` of a transformers checkpoint?",
    );
}

#[test]
fn other_mathematics_is_refused() {
    let sliding = "sliding-window attention is not compiled; no released Qwen2 uses it, and its rules differ between versions";
    check(
        qwen2(),
        json!({"use_sliding_window": true}),
        &format!(
            "`use_sliding_window` has a value that is not served\n  --> config.json\n  found: `true`\n  needed: `false`\n  cause: {sliding}\n  help: set it to `false` if the prompts stay within `sliding_window`"
        ),
    );
    let mut types = vec!["full_attention"; 24];
    types[20] = "sliding_attention";
    check(
        qwen2(),
        json!({"layer_types": types}),
        &format!(
            "`layer_types` has a value that is not served\n  --> config.json\n  found: `sliding_attention`\n  needed: `full_attention`\n  cause: {sliding}"
        ),
    );
    check(
        qwen2(),
        json!({"layer_types": ["full_attention"]}),
        "`layer_types` does not list every layer\n  --> config.json\n  found: 1 entries\n  needed: `num_hidden_layers` 24",
    );
    check(
        qwen2(),
        json!({"hidden_act": "gelu"}),
        "`hidden_act` has a value that is not served\n  --> config.json\n  found: `gelu`\n  needed: `silu`\n  cause: the family's MLP is gated by SiLU",
    );
    check(
        qwen2(),
        json!({"quantization_config": {"quant_method": "gptq", "bits": 4}}),
        "`quantization_config` has a value that is not served\n  --> config.json\n  found: `gptq`\n  cause: quantized checkpoints are not read yet, except GGUF\n  help: pass the unquantized checkpoint, or a GGUF file",
    );
    check(
        qwen2(),
        json!({"model_type": "llama", "attention_bias": true}),
        "`attention_bias` has a value that is not served\n  --> config.json\n  found: `true`\n  needed: `false`\n  cause: output and MLP projections have no biases in a block of this family",
    );
    check(
        qwen2(),
        json!({"dual_chunk_attention_config": {"chunk_size": 8192}}),
        "`dual_chunk_attention_config` has a value that is not served\n  --> config.json\n  found: `present`\n  cause: dual chunk attention is not compiled yet",
    );
}

#[test]
fn other_rotations_are_refused() {
    let unscaled = "only unscaled rotation and YaRN are compiled; another rotation would garble the text";
    check(
        qwen2(),
        json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}),
        &format!(
            "`rope_type` has a value that is not served\n  --> config.json, `rope_scaling`\n  found: `llama3`\n  needed: `default` or `yarn`\n  cause: {unscaled}"
        ),
    );
    check(
        qwen2(),
        json!({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e6}}),
        "`rope_type` has a value that is not served\n  --> config.json, `rope_parameters`\n  found: `spiral`\n  needed: `default` or `yarn`\n  cause: the rotation is not known",
    );
    check(
        qwen2(),
        json!({"rope_theta": null}),
        "`rope_theta` is missing from the configuration\n  --> config.json\n  needed: `rope_theta`, or `rope_parameters` with `rope_theta`\n  help: the releases of Qwen2 have 1000000.0; a wrong value garbles the text without an error",
    );
    check(
        qwen2(),
        json!({"rope_parameters": {"rope_theta": 10_000.0}}),
        "the configuration gives two different values of `rope_theta`\n  --> config.json\n  found: 1000000 and, in `rope_parameters`, 10000",
    );
    check(
        qwen2(),
        json!({"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 2.0}}),
        "`mscale` is not a known parameter of YaRN\n  --> config.json, `rope_scaling`\n  cause: a parameter that is ignored would garble the text without an error",
    );
    check(
        qwen2(),
        json!({"rope_scaling": {"type": "yarn"}}),
        "`factor` is missing from the configuration\n  --> config.json, `rope_scaling`",
    );
    check(
        qwen2(),
        json!({"rope_scaling": {"type": "yarn", "factor": 0.5}}),
        "`factor` of YaRN is out of range\n  --> config.json, `rope_scaling`\n  found: 0.5\n  needed: 1 to 1024",
    );
    check(
        qwen2(),
        json!({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 1, "beta_slow": 32}}),
        "`beta_fast` or `beta_slow` of YaRN is out of range\n  --> config.json, `rope_scaling`\n  found: 1 and 32\n  needed: 0 < `beta_slow` < `beta_fast`",
    );
    check(
        qwen2(),
        json!({"rope_theta": -1.0}),
        "`rope_theta` is out of range\n  --> config.json\n  found: -1\n  needed: 1 to 1e12",
    );
}

#[test]
fn impossible_sizes_are_refused() {
    let range = |key: &str, found: &str, most: &str| {
        format!("`{key}` is out of range\n  --> config.json\n  found: {found}\n  needed: 1 to {most}")
    };
    check(qwen2(), json!({"num_hidden_layers": 0}), &range("num_hidden_layers", "0", "512"));
    check(qwen2(), json!({"vocab_size": u64::MAX}), &range("vocab_size", "18446744073709551615", "4194304"));
    check(qwen2(), json!({"head_dim": 0}), &range("head_dim", "0", "1024"));
    check(qwen2_moe(), json!({"num_experts": 0}), &range("num_experts", "0", "1024"));
    check(qwen2_moe(), json!({"decoder_sparse_step": 0}), &range("decoder_sparse_step", "0", "1048576"));
    check(
        qwen2(),
        json!({"num_attention_heads": 0, "head_dim": 64}),
        &range("num_attention_heads", "0", "1024"),
    );
    check(
        qwen2(),
        json!({"num_key_value_heads": 3}),
        "the query heads cannot be shared out over the key and value heads\n  --> config.json\n  found: `num_attention_heads` 14, `num_key_value_heads` 3\n  needed: a multiple",
    );
    check(
        qwen2(),
        json!({"head_dim": 63}),
        "`head_dim` is odd, but rotation pairs its halves\n  --> config.json\n  found: 63\n  needed: an even number",
    );
    check(
        qwen2(),
        json!({"hidden_size": 897}),
        "`head_dim` cannot be derived\n  --> config.json\n  found: `hidden_size` 897, `num_attention_heads` 14\n  needed: a multiple, or `head_dim`",
    );
    check(
        qwen2(),
        json!({"rms_norm_eps": 0.0}),
        "`rms_norm_eps` is out of range\n  --> config.json\n  found: 0\n  needed: above 0, at most 0.1",
    );
    check(
        qwen2_moe(),
        json!({"num_experts": 3}),
        "more experts are chosen for a token than there are\n  --> config.json\n  found: `num_experts_per_tok` 4, `num_experts` 3\n  needed: at most as many",
    );
    check(
        qwen2_moe(),
        json!({"mlp_only_layers": [24]}),
        "`mlp_only_layers` names a layer that does not exist\n  --> config.json\n  found: 24\n  needed: below `num_hidden_layers` 24",
    );
}

#[test]
fn wrong_types_and_missing_keys_are_named() {
    check(
        qwen2(),
        json!({"hidden_size": "896"}),
        "`hidden_size` has the wrong type\n  --> config.json\n  found: `\"896\"`\n  needed: a whole number",
    );
    check(
        qwen2(),
        json!({"hidden_size": 896.5}),
        "`hidden_size` has the wrong type\n  --> config.json\n  found: `896.5`\n  needed: a whole number",
    );
    check(
        qwen2(),
        json!({"tie_word_embeddings": "yes"}),
        "`tie_word_embeddings` has the wrong type\n  --> config.json\n  found: `\"yes\"`\n  needed: `true` or `false`",
    );
    check(
        qwen2(),
        json!({"rope_scaling": [1]}),
        "`rope_scaling` has the wrong type\n  --> config.json\n  found: `[1]`\n  needed: an object",
    );
    check(
        qwen2_moe(),
        json!({"mlp_only_layers": [-1]}),
        "`mlp_only_layers` has the wrong type\n  --> config.json\n  found: `[-1]`\n  needed: a list of whole numbers",
    );
    check(
        qwen2(),
        json!({"num_key_value_heads": null}),
        "`num_key_value_heads` is missing from the configuration\n  --> config.json",
    );
}

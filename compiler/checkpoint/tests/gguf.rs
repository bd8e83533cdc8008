//! GGUF files: names, row order, encodings, what is refused, and hostile bytes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod gguf_writer;
mod tiny;

use std::path::Path;

use gguf_writer::Gguf;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use qwen2c_checkpoint::{Checkpoint, TokenizerSource};
use qwen2c_graph::{Family, RopeScaling};
use tiny::{
    Tensors, check_values, dense_config, half_bits, moe_config, open_and_read_all, read, tensors,
    without_folder,
};

/// llama.cpp's name of a canonical tensor.
fn gguf_name(canonical: &str) -> String {
    let renames = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers.", "blk."),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
        ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
        ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
        ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("mlp.gate.", "ffn_gate_inp."),
    ];
    renames.iter().fold(canonical.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// The dense model of `tiny` as a file of this architecture, without tensors.
fn dense_metadata(architecture: &str) -> Gguf {
    let mut gguf = Gguf::default();
    let key = |name: &str| format!("{architecture}.{name}");
    gguf.text("general.architecture", architecture)
        .count(&key("block_count"), 2)
        .count(&key("embedding_length"), 12)
        .count(&key("feed_forward_length"), 20)
        .count(&key("attention.head_count"), 3)
        .count(&key("attention.head_count_kv"), 1)
        .count(&key("context_length"), 64)
        .real(&key("rope.freq_base"), 1e6)
        .real(&key("attention.layer_norm_rms_epsilon"), 1e-6);
    gguf
}

fn dense() -> Gguf {
    let mut gguf = dense_metadata("qwen2");
    for (name, tensor) in tensors(&dense_config()) {
        gguf.f32_tensor(&gguf_name(&name), &tensor.shape, &tensor.values);
    }
    gguf
}

/// Writes a file into a folder of its own and opens it.
fn open(bytes: &[u8]) -> Result<Checkpoint, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, bytes).unwrap();
    // The file stays open and readable after its folder is gone.
    Checkpoint::open(&path).map_err(|error| without_folder(&error.to_string(), folder.path()))
}

#[test]
fn a_dense_model_is_read_under_canonical_names() {
    let checkpoint = open(&dense().bytes()).unwrap();
    let config = &checkpoint.description.config;
    assert_eq!((config.family, config.hidden, config.layers), (Family::Qwen2, 12, 2));
    assert_eq!((config.heads, config.kv_heads, config.head_dim), (3, 1, 4));
    assert_eq!((config.intermediate, config.vocabulary, config.max_context), (20, 11, 64));
    assert_eq!((config.epsilon, config.rope.theta), (1e-6, 1e6));
    assert!(config.qkv_bias && config.tied_embedding);
    check_values(&checkpoint, &tensors(&dense_config()));
}

/// The experts' model: experts merged, the shared gate a vector.
fn moe() -> (Gguf, Tensors) {
    let mut gguf = Gguf::default();
    gguf.text("general.architecture", "qwen2moe")
        .count("qwen2moe.block_count", 1)
        .count("qwen2moe.embedding_length", 8)
        .count("qwen2moe.feed_forward_length", 12)
        .count("qwen2moe.attention.head_count", 2)
        .count("qwen2moe.attention.head_count_kv", 2)
        .count("qwen2moe.context_length", 64)
        .real("qwen2moe.rope.freq_base", 1e6)
        .real("qwen2moe.attention.layer_norm_rms_epsilon", 1e-6)
        .count("qwen2moe.expert_count", 3)
        .count("qwen2moe.expert_used_count", 2);
    let expected = tensors(&moe_config());
    for (name, tensor) in &expected {
        if name.contains("shared_expert_gate") {
            gguf.f32_tensor(&gguf_name(name), &tensor.shape[1..], &tensor.values);
        } else if !name.contains(".experts.") {
            gguf.f32_tensor(&gguf_name(name), &tensor.shape, &tensor.values);
        }
    }
    for (projection, rows, columns) in [("gate", 6, 8), ("up", 6, 8), ("down", 8, 6)] {
        let values: Vec<f32> = (0..3)
            .flat_map(|expert| {
                let name = format!("model.layers.0.mlp.experts.{expert}.{projection}_proj.weight");
                expected[&name].values.clone()
            })
            .collect();
        gguf.f32_tensor(&format!("blk.0.ffn_{projection}_exps.weight"), &[3, rows, columns], &values);
    }
    (gguf, expected)
}

#[test]
fn merged_experts_are_split() {
    let (gguf, expected) = moe();
    let checkpoint = open(&gguf.bytes()).unwrap();
    check_values(&checkpoint, &expected);
    let experts = checkpoint.description.config.experts.as_ref().unwrap();
    assert_eq!((experts.experts, experts.experts_per_token), (3, 2));
    assert_eq!((experts.intermediate, experts.shared_intermediate), (6, 10));
    assert!(checkpoint.description.config.is_sparse(0) && !experts.normalize_weights);
}

/// What llama.cpp's converter does to queries and keys: `[head, half, pair] -> [head, pair, half]`.
fn interleave(values: &[f32], head_dim: usize, columns: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for head in values.chunks(head_dim * columns) {
        for pair in 0..head_dim / 2 {
            for half in 0..2 {
                out.extend(&head[(half * head_dim / 2 + pair) * columns..][..columns]);
            }
        }
    }
    out
}

#[test]
fn llama_s_rows_are_put_back_in_order() {
    let expected: Tensors =
        tensors(&dense_config()).into_iter().filter(|(name, _)| !name.ends_with(".bias")).collect();
    let mut gguf = dense_metadata("llama");
    for (name, tensor) in &expected {
        let values = match name.contains("q_proj") || name.contains("k_proj") {
            true => interleave(&tensor.values, 4, 12),
            false => tensor.values.clone(),
        };
        gguf.f32_tensor(&gguf_name(name), &tensor.shape, &values);
    }
    let checkpoint = open(&gguf.bytes()).unwrap();
    assert!(!checkpoint.description.config.qkv_bias);
    check_values(&checkpoint, &expected);
}

#[test]
fn blocks_are_decoded_from_any_row_on() {
    let mut gguf = dense_metadata("qwen2");
    gguf.count("qwen2.embedding_length", 96).count("qwen2.feed_forward_length", 32);
    let mut config = dense_config();
    config["hidden_size"] = 96.into();
    config["intermediate_size"] = 32.into();
    let all = tensors(&config);
    for (name, tensor) in &all {
        if name == "model.embed_tokens.weight" {
            // Q8_0: every block a factor of 0.5 and the numbers of their places, negative in odd rows.
            let blocks = (0..11_i8).flat_map(|row| {
                (0..3_i8).flat_map(move |block| {
                    let sign = if row % 2 == 0 { 1 } else { -1 };
                    let quants = (0..32_i8).map(move |place| (sign * (place + block)) as u8);
                    half_bits(0.5).to_le_bytes().into_iter().chain(quants)
                })
            });
            gguf.tensors.push((gguf_name(name), tensor.shape.clone(), 8, blocks.collect()));
        } else {
            gguf.f32_tensor(&gguf_name(name), &tensor.shape, &tensor.values);
        }
    }
    let checkpoint = open(&gguf.bytes()).unwrap();
    let values = read(&checkpoint, "model.embed_tokens.weight", &[11, 96]);
    for (index, value) in values.iter().enumerate() {
        let (row, block, place) = (index / 96, index / 32 % 3, index % 32);
        let sign = if row % 2 == 0 { 0.5 } else { -0.5 };
        assert_eq!(*value, sign * (place + block) as f32, "element {index}");
    }
}

#[test]
fn yarn_is_read() {
    let mut gguf = dense();
    gguf.text("qwen2.rope.scaling.type", "yarn")
        .real("qwen2.rope.scaling.factor", 4.0)
        .count("qwen2.rope.scaling.original_context_length", 32);
    let config = open(&gguf.bytes()).unwrap().description.config;
    assert_eq!(config.max_context, 128);
    assert!(matches!(
        config.rope.scaling,
        RopeScaling::Yarn { factor: 4.0, original_context: 32, beta_fast: 32.0, beta_slow: 1.0, .. }
    ));
}

#[test]
fn tokenizer_template_and_defaults_come_from_the_metadata() {
    let mut gguf = dense();
    gguf.text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "qwen2")
        .texts("tokenizer.ggml.tokens", &["a", "b", "ab", "<end>"])
        .texts("tokenizer.ggml.merges", &["a b"])
        .count("qwen2.vocab_size", 11)
        .count("tokenizer.ggml.eos_token_id", 3)
        .count("tokenizer.ggml.bos_token_id", 0)
        .set("tokenizer.ggml.add_bos_token", 7, &[1])
        .text("tokenizer.chat_template", "{{ messages }}")
        .text("general.basename", "My Model")
        .text("general.size_label", "3K");
    let description = open(&gguf.bytes()).unwrap().description;
    let TokenizerSource::Gguf(tokenizer) = &description.tokenizer else {
        panic!("no tokenizer");
    };
    assert_eq!((tokenizer.model.as_str(), tokenizer.pre.as_str()), ("gpt2", "qwen2"));
    assert_eq!(tokenizer.tokens, ["a", "b", "ab", "<end>"]);
    assert_eq!(tokenizer.merges, ["a b"]);
    assert_eq!(description.chat_template.as_deref(), Some("{{ messages }}"));
    assert_eq!(description.generation.stop_ids, [3]);
    assert_eq!(description.generation.bos_id, Some(0));
    assert_eq!(description.generation.temperature, 0.0);
    let tokens = [("bos_token", "a"), ("eos_token", "<end>")];
    assert_eq!(description.template_tokens, tokens.map(|(name, text)| (name.into(), text.into())));
    assert_eq!(description.config.name, "my-model-3k");
}

/// Opens a changed file and compares the whole message.
fn check(change: impl FnOnce(&mut Gguf), expected: &str) {
    let mut gguf = dense();
    change(&mut gguf);
    assert_eq!(open(&gguf.bytes()).unwrap_err(), expected);
}

#[test]
fn what_cannot_be_served_is_named() {
    check(
        |gguf| {
            gguf.text("general.architecture", "qwen3");
        },
        "`general.architecture` has a value that is not served\n  --> m.gguf\n  found: `qwen3`\n  needed: `qwen2`, `qwen2moe` or `llama`\n  cause: Qwen3 normalizes queries and keys, which no block here does",
    );
    check(
        |gguf| gguf.tensors[0].2 = 20,
        "tensor `token_embd.weight` has a type that is not read\n  --> m.gguf\n  found: type 20, `IQ4_NL`\n  needed: `F32`, `F16`, `BF16`, `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1`, `Q8_0`, `Q4_K`, `Q5_K` or `Q6_K`\n  help: convert the model to one of these types with llama.cpp's `llama-quantize`",
    );
    let mut gguf = dense();
    gguf.tensors[0].2 = 99;
    let message = open(&gguf.bytes()).unwrap_err();
    assert!(message.contains("`token_embd.weight`") && message.contains("type 99,"), "{message}");
    check(
        |gguf| {
            gguf.f32_tensor("rope_freqs.weight", &[2], &[1.0, 2.0]);
        },
        "the file scales its rotary frequencies\n  --> m.gguf\n  found: tensor `rope_freqs.weight`\n  cause: the scaling of Llama 3.1 is not compiled; only unscaled rotation and YaRN are",
    );
    check(
        |gguf| {
            gguf.f32_tensor("blk.0.attn_q_norm.weight", &[2], &[1.0, 2.0]);
        },
        "tensor `blk.0.attn_q_norm.weight` is not part of a qwen2 model\n  --> m.gguf\n  cause: a tensor that is ignored would change the text without an error",
    );
    check(
        |gguf| gguf.tensors.retain(|(name, ..)| name != "blk.1.attn_k.bias"),
        "tensor `model.layers.1.self_attn.k_proj.bias` is missing from the checkpoint\n  needed: [4]\n  help: is this the configuration that belongs to the checkpoint?",
    );
    check(
        |gguf| {
            gguf.text("qwen2.rope.scaling.type", "linear");
        },
        "`qwen2.rope.scaling.type` has a value that is not served\n  --> m.gguf\n  found: `linear`\n  needed: `none` or `yarn`\n  cause: only unscaled rotation and YaRN are compiled",
    );
    check(
        |gguf| {
            gguf.count("qwen2.rope.dimension_count", 2);
        },
        "`qwen2.rope.dimension_count` has a value that is not served\n  --> m.gguf\n  found: `2`\n  needed: 4\n  cause: keys, values and rotation have the size of a head here",
    );
    check(
        |gguf| {
            gguf.count("qwen2.expert_count", 8);
        },
        "`qwen2.expert_count` has a value that is not served\n  --> m.gguf\n  found: `above 0`\n  cause: experts are compiled for `qwen2moe` alone",
    );
    check(
        |gguf| {
            gguf.count("qwen2.vocab_size", 12);
        },
        "the embedding has another number of rows than the vocabulary has tokens\n  --> m.gguf\n  found: 11 rows of `token_embd.weight`\n  needed: `qwen2.vocab_size` 12",
    );
    check(
        |gguf| {
            gguf.text("tokenizer.ggml.model", "gpt2").texts("tokenizer.ggml.tokens", &["a"; 12]);
        },
        "the embedding has another number of rows than the vocabulary has tokens\n  --> m.gguf\n  found: 11 rows of `token_embd.weight`\n  needed: 12 or more, for `tokenizer.ggml.tokens`",
    );
    check(
        |gguf| {
            gguf.set("split.count", 2, &3_u16.to_le_bytes());
        },
        "the model is split over several GGUF files\n  --> m.gguf\n  found: 3 files\n  needed: one file\n  help: join them with llama.cpp: `llama-gguf-split --merge FIRST.gguf JOINED.gguf`",
    );
    check(
        |gguf| {
            gguf.text("tokenizer.ggml.model", "gpt2");
        },
        "metadata key `tokenizer.ggml.tokens` has the wrong type or is missing\n  --> m.gguf\n  needed: an array of strings",
    );
}

#[test]
fn headers_that_lie_are_refused() {
    let array = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
    let starts = |change: &dyn Fn(&mut Gguf), expected: &str| {
        let mut gguf = dense();
        change(&mut gguf);
        let message = open(&gguf.bytes()).unwrap_err();
        assert!(message.contains(expected), "{message}");
    };
    starts(
        &|gguf| {
            gguf.set("x", 9, &array(9, 1));
        },
        "metadata key `x` is an array of the type 9",
    );
    starts(
        &|gguf| {
            gguf.set("x", 9, &array(0, u64::MAX));
        },
        "`x` has 18446744073709551615 elements",
    );
    starts(
        &|gguf| {
            gguf.set("x", 9, &array(8, 1 << 20));
        },
        "metadata key `x` has 1048576 elements",
    );
    starts(
        &|gguf| {
            gguf.set("x", 13, &[]);
        },
        "metadata key `x` has the unknown type 13",
    );
    starts(
        &|gguf| {
            gguf.set("x", 8, &u64::MAX.to_le_bytes());
        },
        "x of 18446744073709551615 bytes",
    );
    starts(
        &|gguf| {
            gguf.set("x", 8, &(1_u64 << 20).to_le_bytes());
        },
        "the GGUF file is cut short",
    );
    starts(
        &|gguf| gguf.metadata.push(("general.architecture".into(), 7, vec![0])),
        "metadata key `general.architecture` comes twice",
    );
    starts(
        &|gguf| {
            gguf.count("general.alignment", 0);
        },
        "`general.alignment` is not a power of two",
    );
    starts(&|gguf| gguf.tensors[0].1 = vec![1; 5], "has 5 dimensions");
    starts(&|gguf| gguf.tensors[0].1 = vec![u64::MAX, 2], "has an impossible shape");
    starts(&|gguf| gguf.tensors[0].1 = vec![1 << 40, 12], "lies outside the file");
    starts(&|gguf| gguf.tensors[0].1 = vec![30, 12], "two tensors overlap in the file");
    starts(&|gguf| gguf.tensors.push(gguf.tensors[0].clone()), "comes twice");
    let mut bytes = dense().bytes();
    bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(open(&bytes).unwrap_err().contains("18446744073709551615 tensors"));
}

#[test]
fn other_files_are_told_apart() {
    let mut bytes = dense().bytes();
    bytes[4] = 2;
    assert_eq!(
        open(&bytes).unwrap_err(),
        "this version of GGUF is not read\n  --> m.gguf\n  found: version 2\n  needed: version 3 in little-endian order\n  help: convert the model again with a current llama.cpp"
    );
    bytes[4..8].copy_from_slice(&3_u32.to_be_bytes());
    assert!(open(&bytes).unwrap_err().contains("found: version 3 in big-endian order"));
    assert_eq!(
        open(b"\x7fELF and more").unwrap_err(),
        "the file is not a GGUF file\n  --> m.gguf\n  found: `\\x7fELF` at its beginning\n  needed: `GGUF`\n  help: a safetensors checkpoint is named by its directory"
    );
    let missing = Checkpoint::open(Path::new("no-such.gguf")).unwrap_err().to_string();
    assert!(missing.starts_with("cannot read the file\n  --> no-such.gguf\n  cause: "), "{missing}");
}

#[test]
fn a_file_cut_at_any_byte_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let whole = dense().bytes();
    let known = tensors(&dense_config());
    // The padding behind the last tensor may be missing.
    let last_value = whole.iter().rposition(|&byte| byte != 0).unwrap();
    for length in (0..3000).chain((3000..last_value).step_by(89)) {
        std::fs::write(&path, &whole[..length]).unwrap();
        let message = open_and_read_all(&path, &known).unwrap_err();
        assert!(message.contains("m.gguf"), "{length}: {message}");
    }
}

#[test]
fn altered_bytes_end_in_values_or_messages() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let (gguf, known) = moe();
    let whole = gguf.bytes();
    let config = Config { cases: 2000, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[11; 32]));
    let change = (0..whole.len().min(2600), any::<u8>());
    let run = runner.run(&proptest::collection::vec(change, 1..6), |changes| {
        let mut bytes = whole.clone();
        for (place, byte) in changes {
            bytes[place] = byte;
        }
        std::fs::write(&path, &bytes).unwrap();
        let _ = open_and_read_all(&path, &known);
        Ok(())
    });
    run.unwrap();
}

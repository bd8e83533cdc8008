//! What `plan` promises, against what `build` writes.

use std::path::Path;
use std::process::Command;

use qwen2c_tests::{Build, Golden, compiler, copy_directory, run, write_tensors};
use safetensors::Dtype;
use serde_json::{Value, json};

fn plan(model: &Path, quant: &str) -> Value {
    plan_with_cache(model, quant, Path::new("/nonexistent"))
}

/// With the Hugging Face cache in a folder.
fn plan_with_cache(model: &Path, quant: &str, cache: &Path) -> Value {
    let mut command = Command::new(compiler());
    command.args(["plan", "--target", "native", "--dtype", "f32", "--bandwidth", "50", "--json"]);
    command.env("HF_HUB_CACHE", cache);
    run(command.args(["--quant", quant, "--model"]).arg(model)).success().json()
}

fn written_bytes(model: &Path, quant: &str) -> u64 {
    let program = Build::new(model).with(["--quant", quant]).finish();
    program.run(["info", "--json"]).success().json()["weight_bytes"].as_u64().expect("a number")
}

/// Puts every down projection on 16 values in each group, none of them negative, so that it wants minima.
fn put_on_grid(folder: &Path) {
    write_tensors(&folder.join("model.safetensors"), |tensors| {
        let of_down = tensors.iter_mut().filter(|(name, _)| name.ends_with("down_proj.weight"));
        for (_, (dtype, shape, bytes)) in of_down {
            *dtype = Dtype::F32;
            let elements: usize = shape.iter().product();
            let value = |index: usize| (index * 7 % 16) as f32 * 0.125;
            *bytes = (0..elements).flat_map(|index| value(index).to_le_bytes()).collect();
        }
    });
}

#[test]
fn planned_weights_are_those_that_a_build_writes_with_and_without_minima() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    copy_directory(&Golden::load("dense-gqa").model(), folder.path());
    let without = plan(folder.path(), "int4");
    assert_eq!(without["memory"]["weight_bytes"].as_u64(), Some(written_bytes(folder.path(), "int4")));
    assert!(without["most_weight_bytes"].is_null(), "{without}");
    put_on_grid(folder.path());
    let with = plan(folder.path(), "int4");
    assert_eq!(with["memory"]["weight_bytes"].as_u64(), Some(written_bytes(folder.path(), "int4")));
    let bytes = |plan: &Value, name: &str| plan[name].as_u64().expect("a number");
    let weights = |plan: &Value| bytes(&plan["memory"], "weight_bytes");
    assert!(weights(&with) > weights(&without), "the grid wants minima: {with}");
    // What needs no sample has no range either.
    assert!(plan(folder.path(), "none")["most_weight_bytes"].is_null());

    std::fs::remove_file(folder.path().join("model.safetensors")).expect("it is there");
    let unknown = plan(folder.path(), "int4");
    assert_eq!(weights(&unknown), weights(&without));
    assert!(bytes(&unknown, "most_weight_bytes") >= weights(&with), "{unknown}");
    let mut command = Command::new(compiler());
    command.args(["plan", "--target", "native", "--bandwidth", "50", "--quant", "int4", "--model", "0.5B"]);
    command.env("HF_HUB_CACHE", folder.path());
    let text = run(&mut command).success().text();
    assert!(text.contains("if their groups want minima"), "{text}");
}

/// A checkpoint of zeros that passes for `0.5B`, whose MLPs and vocabulary are small.
fn write_half_a_billion(folder: &Path) {
    let (hidden, layers, heads, kv_heads, intermediate, vocabulary) = (896, 24, 14, 2, 32, 64);
    let config = json!({
        "model_type": "qwen2", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": intermediate, "vocab_size": vocabulary,
        "max_position_embeddings": 64, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).expect("a writable folder");
    let kv = hidden / heads * kv_heads;
    let of_layer: [(&str, Vec<usize>); 12] = [
        ("input_layernorm.weight", vec![hidden]),
        ("post_attention_layernorm.weight", vec![hidden]),
        ("self_attn.q_proj.weight", vec![hidden, hidden]),
        ("self_attn.q_proj.bias", vec![hidden]),
        ("self_attn.k_proj.weight", vec![kv, hidden]),
        ("self_attn.k_proj.bias", vec![kv]),
        ("self_attn.v_proj.weight", vec![kv, hidden]),
        ("self_attn.v_proj.bias", vec![kv]),
        ("self_attn.o_proj.weight", vec![hidden, hidden]),
        ("mlp.gate_proj.weight", vec![intermediate, hidden]),
        ("mlp.up_proj.weight", vec![intermediate, hidden]),
        ("mlp.down_proj.weight", vec![hidden, intermediate]),
    ];
    let file = folder.join("model.safetensors");
    std::fs::copy(Golden::load("dense-gqa").model().join("model.safetensors"), &file).expect("a copy");
    write_tensors(&file, |tensors| {
        tensors.clear();
        let mut add = |name: String, shape: &[usize]| {
            let bytes = vec![0; 2 * shape.iter().product::<usize>()];
            tensors.insert(name, (Dtype::BF16, shape.to_vec(), bytes));
        };
        add("model.embed_tokens.weight".to_owned(), &[vocabulary, hidden]);
        add("model.norm.weight".to_owned(), &[hidden]);
        for layer in 0..layers {
            for (name, shape) in &of_layer {
                add(format!("model.layers.{layer}.{name}"), shape);
            }
        }
    });
}

#[test]
fn a_name_is_planned_by_its_checkpoint_where_a_build_would_find_it() {
    let cache = tempfile::tempdir().expect("a temporary directory");
    let folder = cache.path().join("models--Qwen--Qwen2-0.5B");
    let snapshot = folder.join("snapshots/abc123");
    for folder in [&snapshot, &folder.join("refs")] {
        std::fs::create_dir_all(folder).expect("a directory");
    }
    std::fs::write(folder.join("refs/main"), "abc123").expect("a writable folder");
    write_half_a_billion(&snapshot);
    put_on_grid(&snapshot);
    let plan = |quant: &str| plan_with_cache(Path::new("0.5B"), quant, cache.path());
    let cached = plan("int4");
    assert!(cached["most_weight_bytes"].is_null(), "{cached}");
    assert_eq!(cached["model"], "qwen2-0.5b");
    let program = cache.path().join("program");
    let mut build = Build::new("0.5B").with(["--quant", "int4"]).command(&program);
    run(build.env("HF_HUB_CACHE", cache.path())).success();
    let written = run(Command::new(&program).args(["info", "--json"])).success().json();
    assert_eq!(cached["memory"]["weight_bytes"], written["weight_bytes"]);

    // What a build would have to fetch is planned by the table of sizes.
    std::fs::remove_file(snapshot.join("model.safetensors")).expect("it is there");
    let fetched = plan("int4");
    assert!(!fetched["most_weight_bytes"].is_null(), "{fetched}");
    assert!(fetched["parameters"].as_u64() > cached["parameters"].as_u64());
}

//! Checkpoints that cannot be served: one message each, exit code 1, and no trace of an output.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use qwen2c_tests::{Build, Golden, compiler, copy_directory, run, write_tensors};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Alters a copy of a checkpoint and builds it, which must be refused with a message that names all `parts`.
#[track_caller]
fn refused(name: &str, alter: impl FnOnce(&Path), parts: &[&str]) {
    let directory = TempDir::with_prefix("qwen2c-test-").expect("a temporary directory");
    let (copy, output) = (directory.path().join(name), directory.path().join("output"));
    copy_directory(
        Golden::load(name).model().ancestors().find(|path| path.is_dir()).expect("a directory"),
        &copy,
    );
    fs::create_dir(&output).expect("a directory");
    alter(&copy);
    let gguf = copy.join("model.gguf");
    let model = if gguf.is_file() { gguf } else { copy };
    run(&mut Build::new(model).with(["--quiet"]).command(&output.join("program"))).refused(1, parts);
    let left: Vec<_> = fs::read_dir(&output).expect("readable").collect();
    assert!(left.is_empty(), "a refused build leaves nothing: {left:?}");
}

/// Replaces keys of a JSON file; null removes one.
fn edit_json(path: &Path, changes: Value) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON");
    let object = value.as_object_mut().expect("an object");
    for (key, change) in changes.as_object().expect("changes by key") {
        if change.is_null() {
            object.remove(key);
        } else {
            object.insert(key.clone(), change.clone());
        }
    }
    fs::write(path, value.to_string()).expect("writable");
}

/// A change of `config.json` that must be refused.
#[track_caller]
fn refused_config(name: &str, changes: Value, parts: &[&str]) {
    refused(name, |copy| edit_json(&copy.join("config.json"), changes), parts);
}

/// Cuts a file to this share of its length.
fn cut(path: &Path, numerator: u64, denominator: u64) {
    let bytes = fs::metadata(path).expect("a file").len();
    let file = fs::File::options().write(true).open(path).expect("writable");
    file.set_len(bytes * numerator / denominator).expect("a shorter file");
}

/// Overwrites bytes in the middle of a file.
fn overwrite(path: &Path, offset: usize, bytes: &[u8]) {
    let mut content = fs::read(path).expect("readable");
    content[offset..offset + bytes.len()].copy_from_slice(bytes);
    fs::write(path, content).expect("writable");
}

#[test]
fn missing_files_are_named() {
    let shard = "model-00002-of-00003.safetensors";
    refused("dense-mha", |copy| fs::remove_file(copy.join(shard)).expect("a shard"), &[shard]);
    refused("dense-gqa", |copy| fs::remove_file(copy.join("config.json")).expect("a file"), &["config.json"]);
    refused(
        "dense-gqa",
        |copy| fs::remove_file(copy.join("model.safetensors")).expect("a file"),
        &["safetensors"],
    );
    let nowhere = Build::new("/nonexistent/checkpoint");
    run(&mut nowhere.command(Path::new("/nonexistent/program"))).refused(1, &["/nonexistent/checkpoint"]);
}

#[test]
fn truncated_safetensors_are_seen() {
    for (numerator, denominator) in [(0, 1), (1, 1000), (1, 2), (99, 100)] {
        refused(
            "dense-gqa",
            |copy| cut(&copy.join("model.safetensors"), numerator, denominator),
            &["model.safetensors"],
        );
    }
}

#[test]
fn lying_safetensors_headers_are_seen() {
    let file = "model.safetensors";
    for length in [u64::MAX, 1 << 40, 1 << 24, 3] {
        refused("dense-gqa", |copy| overwrite(&copy.join(file), 0, &length.to_le_bytes()), &[file]);
    }
    let replaced = |from: &'static str, to: &'static str| {
        move |copy: &Path| {
            assert_eq!(from.len(), to.len(), "the header keeps its length");
            let path = copy.join(file);
            let content = fs::read(&path).expect("readable");
            let header = String::from_utf8_lossy(&content[..4096]).into_owned();
            let offset = header.find(from).unwrap_or_else(|| panic!("`{from}` is not in {header}"));
            overwrite(&path, offset, to.as_bytes());
        }
    };
    refused("dense-gqa", replaced("\"BF16\"", "\"F8XX\""), &["F8XX"]);
    refused("dense-gqa", replaced("\"data_offsets\":[0,", "\"data_offsets\":[9,"), &[file]);
    refused("dense-gqa", replaced("[257,72]", "[257,73]"), &["model.embed_tokens.weight"]);
    refused("dense-gqa", replaced("\"shape\"", "\"shap\\\""), &[file]);
}

#[test]
fn tensors_of_the_wrong_shape_or_missing_are_named() {
    let norm = "model.layers.1.input_layernorm.weight";
    let file = "model.safetensors";
    let drop_tensor = |copy: &Path| {
        write_tensors(&copy.join(file), |tensors| {
            tensors.remove(norm);
        });
    };
    refused("dense-gqa", drop_tensor, &[norm]);
    let shorten = |copy: &Path| {
        write_tensors(&copy.join(file), |tensors| {
            let tensor = tensors.get_mut(norm).expect("a norm");
            tensor.1 = vec![71];
            tensor.2.truncate(2 * 71);
        });
    };
    refused("dense-gqa", shorten, &[norm, "71", "72"]);
}

#[test]
fn values_that_are_not_numbers_are_named() {
    for (name, weight) in [
        ("dense-gqa", "model.layers.0.mlp.up_proj.weight"),
        ("dense-gqa", "model.layers.1.self_attn.k_proj.bias"),
    ] {
        let fill = |copy: &Path| {
            write_tensors(&copy.join("model.safetensors"), |tensors| {
                tensors.get_mut(weight).expect("a weight").2.fill(0xff);
            });
        };
        refused(name, fill, &[weight]);
    }
}

#[test]
fn configurations_that_are_not_served_are_refused_with_a_reason() {
    refused_config("dense-gqa", json!({"use_sliding_window": true}), &["use_sliding_window"]);
    refused_config("dense-gqa", json!({"hidden_act": "gelu"}), &["hidden_act", "gelu"]);
    refused_config("dense-gqa", json!({"rope_theta": null}), &["rope_theta"]);
    refused_config("dense-gqa", json!({"num_key_value_heads": 2}), &["num_key_value_heads"]);
    refused_config("dense-gqa", json!({"hidden_size": "many"}), &["hidden_size"]);
    refused_config("dense-gqa", json!({"vocab_size": 0}), &["vocab_size"]);
    refused_config("dense-gqa", json!({"num_hidden_layers": 1u64 << 60}), &["num_hidden_layers"]);
    refused_config("dense-gqa", json!({"rope_scaling": {"type": "longrope", "factor": 2.0}}), &["longrope"]);
    refused_config(
        "dense-gqa",
        json!({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}),
        &["qwen3"],
    );
    refused_config(
        "dense-gqa",
        json!({"quantization_config": {"quant_method": "gptq", "bits": 4}}),
        &["gptq"],
    );
    refused_config("moe-normalized", json!({"num_experts_per_tok": 31}), &["31", "30"]);
    refused_config("moe-normalized", json!({"mlp_only_layers": [7]}), &["mlp_only_layers"]);
    refused(
        "dense-gqa",
        |copy| fs::write(copy.join("config.json"), "{\"hidden_size\": 72,").expect("writable"),
        &["config.json"],
    );
}

#[test]
fn damaged_gguf_files_are_seen() {
    let path = |copy: &Path| copy.join("model.gguf");
    for (numerator, denominator) in [(0, 1), (1, 500), (1, 2), (99, 100)] {
        refused("gguf-llama", |copy| cut(&path(copy), numerator, denominator), &["model.gguf"]);
    }
    refused("gguf-llama", |copy| overwrite(&path(copy), 0, b"GGXF"), &["model.gguf"]);
    refused("gguf-llama", |copy| overwrite(&path(copy), 4, &7u32.to_le_bytes()), &["7"]);
    // Counts of tensors and of metadata that no file can hold.
    refused("gguf-llama", |copy| overwrite(&path(copy), 8, &u64::MAX.to_le_bytes()), &["model.gguf"]);
    refused("gguf-llama", |copy| overwrite(&path(copy), 16, &u64::MAX.to_le_bytes()), &["model.gguf"]);
    let other_architecture = |copy: &Path| {
        let content = fs::read(path(copy)).expect("readable");
        let key = b"general.architecture";
        let offset = content.windows(key.len()).position(|window| window == key).expect("the key");
        // Behind the key: type u32, length u64, the value `llama`.
        overwrite(&path(copy), offset + key.len() + 12, b"mamba");
    };
    refused("gguf-llama", other_architecture, &["mamba"]);
}

#[test]
fn damaged_tokenizers_are_seen() {
    let path = |copy: &Path| copy.join("tokenizer.json");
    refused("talking", |copy| cut(&path(copy), 1, 2), &["tokenizer.json"]);
    refused(
        "talking",
        |copy| fs::write(path(copy), [0xff, 0xfe, 0x00]).expect("writable"),
        &["tokenizer.json"],
    );
    let without_a_token = |copy: &Path| {
        let mut value: Value =
            serde_json::from_slice(&fs::read(path(copy)).expect("readable")).expect("JSON");
        value["model"]["vocab"].as_object_mut().expect("a vocabulary").remove("the");
        value["model"]["vocab"].as_object_mut().expect("a vocabulary").remove("a");
        fs::write(path(copy), value.to_string()).expect("writable");
    };
    refused("talking", without_a_token, &["token"]);
    let another_splitting_rule = |copy: &Path| {
        let mut value: Value =
            serde_json::from_slice(&fs::read(path(copy)).expect("readable")).expect("JSON");
        value["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("\\p{Han}+|[a-z]+");
        fs::write(path(copy), value.to_string()).expect("writable");
    };
    refused("talking", another_splitting_rule, &["split"]);
}

#[test]
fn a_context_beyond_the_model_or_the_memory_is_refused() {
    let golden = Golden::load("dense-gqa").model();
    let output = Path::new("/nonexistent/program");
    run(&mut Build::new(&golden).with(["--context", "100000"]).command(output))
        .refused(1, &["100000", "512"]);
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let mount = TempDir::with_prefix("qwen2c-test-").expect("a temporary directory");
    let path = mount.path().to_str().expect("UTF-8");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs", path]).status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("skipped: mounting a small file system needs root");
        return;
    }
    let built =
        run(&mut Build::new(Golden::load("dense-gqa").model()).command(&mount.path().join("program")));
    let left: Vec<_> = fs::read_dir(mount.path()).expect("readable").collect();
    let unmounted = Command::new("umount").arg(path).status().expect("umount");
    assert!(unmounted.success() && left.is_empty(), "left on the disk: {left:?}");
    let built_text = built.stderr.clone();
    assert_eq!(built.code(), Some(1), "{built_text}");
    assert!(built_text.contains("room") && built_text.contains("error"), "{built_text}");
    let unwritable = Build::new(Golden::load("dense-gqa").model());
    run(&mut unwritable.command(Path::new("/nonexistent/directory/program")))
        .refused(1, &["/nonexistent/directory"]);
}

#[test]
fn a_size_without_a_checkpoint_says_what_to_pass_instead() {
    let empty = TempDir::with_prefix("qwen2c-test-").expect("a temporary directory");
    let mut command = Command::new(compiler());
    command
        .args(["build", "--model", "0.5B", "--target", "x86-64-v3", "-o"])
        .arg(empty.path().join("program"));
    // An empty cache, and a hub that no machine can reach.
    command.env("HF_HOME", empty.path()).env("HF_ENDPOINT", "http://127.0.0.1:9").env("HF_HUB_OFFLINE", "1");
    run(&mut command).refused(1, &["--weights", "random"]);
    assert_eq!(
        fs::read_dir(empty.path())
            .expect("readable")
            .filter(|entry| { entry.as_ref().is_ok_and(|entry| entry.file_name() == "program") })
            .count(),
        0
    );
}

/// Whether a process works: one that has ended may be listed until its parent has looked.
fn is_alive(process: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[test]
fn an_interrupted_build_ends_the_assembler_too() {
    let directory = TempDir::with_prefix("qwen2c-test-").expect("a temporary directory");
    let (assembler, begun) = (directory.path().join("assembler"), directory.path().join("begun"));
    let script =
        format!("#!/bin/sh\nsleep 600 &\necho $! > {0}.new\nmv {0}.new {0}\nwait\n", begun.display());
    fs::write(&assembler, script).expect("writable");
    fs::set_permissions(&assembler, fs::Permissions::from_mode(0o755)).expect("an executable");
    let output = directory.path().join("program");
    let arguments = ["--target", "sm_80", "--ptxas", assembler.to_str().expect("UTF-8")];
    let mut child = Build::new(Golden::load("dense-gqa").model())
        .with(arguments)
        .command(&output)
        .spawn()
        .expect("it starts");
    let start = Instant::now();
    let wait_for = |what: &str, has_happened: &dyn Fn() -> bool| {
        while !has_happened() {
            assert!(start.elapsed() < Duration::from_secs(300), "{what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    wait_for("the assembler does not begin", &|| begun.is_file());
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(interrupted.success());
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    let process = fs::read_to_string(&begun).expect("a number");
    wait_for("the assembler works on", &|| !is_alive(process.trim()));
    let mut left: Vec<_> = fs::read_dir(directory.path())
        .expect("readable")
        .map(|entry| entry.expect("readable").file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["assembler", "begun"]);
}

//! Directories with safetensors: what is read, what is refused, and hostile bytes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod tiny;

use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use qwen2c_checkpoint::Checkpoint;
use qwen2c_graph::TensorSource;
use serde_json::{Value, json};
use tiny::{
    Tensor, Tensors, check_values, dense_config, moe_config, open_and_read_all, safetensors_bytes, tensor,
    tensors, with_header, without_folder, write_folder,
};

#[test]
fn every_element_type_is_widened() {
    for dtype in ["F32", "F16", "BF16"] {
        let folder = tempfile::tempdir().unwrap();
        let expected = tensors(&dense_config());
        write_folder(folder.path(), &dense_config(), &safetensors_bytes(&expected, dtype));
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        check_values(&checkpoint, &expected);
        let elements: usize = expected.values().map(|tensor| tensor.values.len()).sum();
        let element_bytes = if dtype == "F32" { 4 } else { 2 };
        assert_eq!(checkpoint.stored_bytes(), elements as u64 * element_bytes);
    }
}

#[test]
fn experts_are_read_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let expected = tensors(&moe_config());
    write_folder(folder.path(), &moe_config(), &safetensors_bytes(&expected, "BF16"));
    check_values(&Checkpoint::open(folder.path()).unwrap(), &expected);
}

/// Merges the experts of layer 0 as transformers 5 holds them.
fn merge_experts(mut tensors: Tensors) -> Tensors {
    let mut gate_up = Vec::new();
    let mut down = Vec::new();
    for expert in 0..3 {
        let mut take = |projection: &str| {
            let name = format!("model.layers.0.mlp.experts.{expert}.{projection}.weight");
            tensors.remove(&name).unwrap().values
        };
        gate_up.extend([take("gate_proj"), take("up_proj")].concat());
        down.extend(take("down_proj"));
    }
    let prefix = "model.layers.0.mlp.experts";
    tensors.insert(format!("{prefix}.gate_up_proj"), Tensor { shape: vec![3, 12, 8], values: gate_up });
    tensors.insert(format!("{prefix}.down_proj"), Tensor { shape: vec![3, 8, 6], values: down });
    tensors
}

#[test]
fn merged_experts_are_split() {
    let folder = tempfile::tempdir().unwrap();
    let expected = tensors(&moe_config());
    let merged = merge_experts(expected.clone());
    write_folder(folder.path(), &moe_config(), &safetensors_bytes(&merged, "F32"));
    check_values(&Checkpoint::open(folder.path()).unwrap(), &expected);
}

/// Writes tensors as two shards with an index, and returns the index.
fn write_shards(folder: &Path, config: &Value, tensors: &Tensors) -> Value {
    let mut shards = [Tensors::new(), Tensors::new()];
    let mut weight_map = serde_json::Map::new();
    for (index, (name, tensor)) in tensors.iter().enumerate() {
        shards[index % 2].insert(name.clone(), tensor.clone());
        weight_map.insert(name.clone(), json!(format!("model-{}.safetensors", index % 2)));
    }
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    for (index, shard) in shards.iter().enumerate() {
        let path = folder.join(format!("model-{index}.safetensors"));
        std::fs::write(path, safetensors_bytes(shard, "BF16")).unwrap();
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": weight_map});
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    index
}

#[test]
fn shards_are_one_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let expected = tensors(&dense_config());
    write_shards(folder.path(), &dense_config(), &expected);
    check_values(&Checkpoint::open(folder.path()).unwrap(), &expected);
}

#[test]
fn rows_outside_a_tensor_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &dense_config(), &safetensors_bytes(&tensors(&dense_config()), "F32"));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let read = |name: &str, columns, first_row, elements| {
        let result = checkpoint.read_rows(name, columns, first_row, &mut vec![0.0; elements]);
        result.map_err(|error| without_folder(&error.to_string(), folder.path()))
    };
    assert_eq!(read("model.embed_tokens.weight", 12, 10, 12), Ok(()));
    assert_eq!(
        read("model.embed_tokens.weight", 12, 10, 24).unwrap_err(),
        "tensor `model.embed_tokens.weight` has the wrong shape\n  --> model.safetensors\n  found: [11, 12]\n  needed: rows of 12 elements, 24 elements from row 10 on"
    );
    assert!(read("model.embed_tokens.weight", 6, 0, 12).is_err());
    assert!(read("model.embed_tokens.weight", 12, u64::MAX, 12).is_err());
    assert!(read("model.norm.weight", 12, 1, 12).is_err());
    assert_eq!(
        read("model.other", 12, 0, 12).unwrap_err(),
        "tensor `model.other` is missing from the checkpoint"
    );
}

/// Opens a checkpoint whose tensors were changed, and compares the whole message.
fn check(change: impl FnOnce(&mut Tensors), expected: &str) {
    let mut changed = tensors(&dense_config());
    change(&mut changed);
    check_file(&safetensors_bytes(&changed, "F32"), expected);
}

/// Opens a checkpoint with this file of tensors, reads it, and compares the whole message.
fn check_file(bytes: &[u8], expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &dense_config(), bytes);
    let message = open_and_read_all(folder.path(), &tensors(&dense_config())).unwrap_err();
    assert_eq!(without_folder(&message, folder.path()), expected);
}

#[test]
fn tensors_that_do_not_fit_the_configuration_are_named() {
    check(
        |tensors| drop(tensors.remove("model.layers.1.self_attn.k_proj.bias")),
        "tensor `model.layers.1.self_attn.k_proj.bias` is missing from the checkpoint\n  needed: [4]\n  help: is this the configuration that belongs to the checkpoint?",
    );
    check(
        |tensors| drop(tensors.insert("model.norm.weight".into(), tensor("x", &[11]))),
        "tensor `model.norm.weight` has the wrong shape\n  --> model.safetensors\n  found: [11]\n  needed: [12]\n  help: is this the configuration that belongs to the checkpoint?",
    );
    check(
        |tensors| {
            drop(tensors.insert("model.layers.0.self_attn.q_norm.weight".into(), tensor("x", &[4])));
        },
        "tensor `model.layers.0.self_attn.q_norm.weight` has no place in the model\n  --> model.safetensors\n  cause: a tensor that is ignored would change the text without an error\n  help: is this the configuration that belongs to the checkpoint?",
    );
    check(
        |tensors| tensors.get_mut("model.norm.weight").unwrap().values[7] = f32::NAN,
        "tensor `model.norm.weight` holds a value that is not a number\n  --> model.safetensors\n  found: NaN in row 0, column 7\n  needed: finite numbers\n  help: the checkpoint is damaged: fetch it again and compare its SHA-256",
    );
}

#[test]
fn a_head_that_is_said_to_be_stored_must_be() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = dense_config();
    let bytes = safetensors_bytes(&tensors(&config), "F32");
    config["tie_word_embeddings"] = json!(false);
    write_folder(folder.path(), &config, &bytes);
    let message = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(message.starts_with("tensor `lm_head.weight` is missing from the checkpoint"), "{message}");
    config.as_object_mut().unwrap().remove("tie_word_embeddings");
    write_folder(folder.path(), &config, &bytes);
    assert!(Checkpoint::open(folder.path()).unwrap().description.config.tied_embedding);
}

#[test]
fn a_folder_without_tensors_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let message = || {
        let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
        without_folder(&error, folder.path())
    };
    assert_eq!(
        message(),
        "the directory holds no `config.json`\n  --> FOLDER\n  needed: a checkpoint of HF transformers: `config.json` and `model.safetensors`\n  help: a GGUF file is named itself, not its directory"
    );
    std::fs::write(folder.path().join("config.json"), dense_config().to_string()).unwrap();
    let needed = "the directory holds no tensors\n  --> FOLDER\n  needed: `model.safetensors`, or `model.safetensors.index.json` with its shards\n  help: ";
    assert_eq!(message(), format!("{needed}pass `--weights random` to build without a checkpoint"));
    std::fs::write(folder.path().join("pytorch_model.bin"), "").unwrap();
    assert_eq!(
        message(),
        format!("{needed}PyTorch's pickled files are not read: save the model as safetensors first")
    );
    std::fs::write(folder.path().join("m.gguf"), "").unwrap();
    assert_eq!(message(), format!("{needed}to use the GGUF file, name it: `m.gguf`"));
}

/// Changes the files of a sharded checkpoint, opens it, and compares the whole message.
fn check_shards(change: impl FnOnce(&Path, Value), expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    let index = write_shards(folder.path(), &dense_config(), &tensors(&dense_config()));
    change(folder.path(), index);
    let message = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert_eq!(without_folder(&message, folder.path()), expected);
}

#[test]
fn damaged_indexes_and_missing_shards_are_named() {
    let write_index = |folder: &Path, index: &Value| {
        std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    };
    check_shards(
        |folder, _| std::fs::remove_file(folder.join("model-1.safetensors")).unwrap(),
        "a shard of the checkpoint is missing\n  --> model-1.safetensors\n  needed: the file, named in `model.safetensors.index.json`\n  help: fetch the missing file, or pass another checkpoint with `--weights`",
    );
    check_shards(
        |folder, mut index| {
            index["weight_map"]["model.norm.weight"] = json!("../model-0.safetensors");
            write_index(folder, &index);
        },
        "the index gives tensor `model.norm.weight` no valid file name\n  --> model.safetensors.index.json\n  found: \"../model-0.safetensors\"\n  needed: the name of a file beside the index",
    );
    check_shards(
        |folder, mut index| {
            index["weight_map"]["model.norm.bias"] = json!("model-0.safetensors");
            write_index(folder, &index);
        },
        "tensor `model.norm.bias` is not in the shard that the index names\n  --> model-0.safetensors\n  help: index and shards belong to different checkpoints: fetch them together",
    );
    check_shards(
        |folder, _| write_index(folder, &json!({"metadata": {}})),
        "the index has no `weight_map`\n  --> model.safetensors.index.json",
    );
}

/// A file whose only tensor has this entry, with eight bytes of data.
fn one_entry(entry: &str) -> Vec<u8> {
    with_header(&format!(r#"{{"model.norm.weight": {entry}}}"#), &[0; 8])
}

#[test]
fn headers_that_lie_are_refused() {
    let cut = "\n  help: the file is cut short: fetch it again";
    check_file(
        &one_entry(r#"{"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}"#),
        &format!(
            "tensor `model.norm.weight` lies outside the file\n  --> model.safetensors\n  found: bytes 0 to 12\n  needed: within 8 bytes of data{cut}"
        ),
    );
    check_file(
        &one_entry(r#"{"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}"#),
        &format!(
            "tensor `model.norm.weight` lies outside the file\n  --> model.safetensors\n  found: bytes 8 to 0\n  needed: within 8 bytes of data{cut}"
        ),
    );
    check_file(
        &one_entry(r#"{"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}"#),
        "tensor `model.norm.weight` has another length than its shape\n  --> model.safetensors\n  found: 8 bytes\n  needed: 12 bytes for [3] of F32",
    );
    check_file(
        &one_entry(r#"{"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 8]}"#),
        "tensor `model.norm.weight` is larger than any file\n  --> model.safetensors\n  found: [4294967296, 4294967296]",
    );
    check_file(
        &one_entry(r#"{"dtype": "F32", "shape": [], "data_offsets": [0, 4]}"#),
        "tensor `model.norm.weight` has no elements or too many dimensions\n  --> model.safetensors\n  found: []",
    );
    check_file(
        &one_entry(r#"{"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}"#),
        "tensor `model.norm.weight` has an element type that is not read\n  --> model.safetensors\n  found: `F8_E4M3`\n  needed: `F32`, `F16` or `BF16`\n  help: quantized checkpoints are not read yet, except GGUF",
    );
    let entry = r#"{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}"#;
    check_file(
        &with_header(&format!(r#"{{"a": {entry}, "b": {entry}}}"#), &[0; 8]),
        "two tensors overlap in the file\n  --> model.safetensors\n  found: `a` ends at byte 138, `b` begins at byte 130",
    );
    check_file(
        &with_header(&format!(r#"{{"a": {entry}, "a": {entry}}}"#), &[0; 8]),
        "the header of the safetensors file is damaged\n  --> model.safetensors\n  cause: `a` comes twice at line 1 column 65",
    );
    let lfs = "\n  help: fetch the file again; a Git LFS pointer is a text of about 130 bytes";
    let not_safetensors = "the file is not a safetensors file, or cut short\n  --> model.safetensors";
    check_file(
        &[&u64::MAX.to_le_bytes()[..], b"{}"].concat(),
        &format!(
            "{not_safetensors}\n  found: a header length of 18446744073709551615 bytes\n  needed: at most 2{lfs}"
        ),
    );
    check_file(
        b"abc",
        &format!("{not_safetensors}\n  found: 3 bytes\n  needed: 8 bytes of header length{lfs}"),
    );
}

#[test]
fn a_file_cut_at_any_byte_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let known = Tensors::from([("model.norm.weight".to_owned(), tensor("model.norm.weight", &[12]))]);
    let whole = safetensors_bytes(&tensors(&dense_config()), "BF16");
    // Every byte of the header, and some of the data: all of them end in the same check.
    for length in (0..2500).chain((2500..whole.len()).step_by(97)) {
        write_folder(folder.path(), &dense_config(), &whole[..length]);
        let message = open_and_read_all(folder.path(), &known).unwrap_err();
        assert!(message.contains("model.safetensors"), "{length}: {message}");
    }
}

#[test]
fn a_file_cut_while_it_is_read_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let whole = safetensors_bytes(&tensors(&dense_config()), "F32");
    write_folder(folder.path(), &dense_config(), &whole);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    write_folder(folder.path(), &dense_config(), &whole[..whole.len() - 20]);
    let read = checkpoint.read_rows("model.norm.weight", 12, 0, &mut [0.0; 12]);
    let message = without_folder(&read.unwrap_err().to_string(), folder.path());
    assert!(message.starts_with("tensor `model.norm.weight` cannot be read\n  --> model.safetensors"));
}

/// A runner whose cases are the same in every run.
fn runner(cases: u32) -> TestRunner {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]))
}

#[test]
fn altered_bytes_end_in_values_or_messages() {
    let folder = tempfile::tempdir().unwrap();
    let known = tensors(&dense_config());
    let whole = safetensors_bytes(&known, "BF16");
    let change = (0..whole.len().min(3000), any::<u8>());
    let changes = proptest::collection::vec(change, 1..6);
    let run = runner(1500).run(&changes, |changes| {
        let mut bytes = whole.clone();
        for (place, byte) in changes {
            bytes[place] = byte;
        }
        write_folder(folder.path(), &dense_config(), &bytes);
        let _ = open_and_read_all(folder.path(), &known);
        Ok(())
    });
    run.unwrap();
}

#[test]
fn altered_configurations_end_in_values_or_messages() {
    let folder = tempfile::tempdir().unwrap();
    let known = tensors(&moe_config());
    let tensors = safetensors_bytes(&known, "BF16");
    let text = moe_config().to_string().into_bytes();
    let changes = proptest::collection::vec((0..text.len(), b' '..b'~'), 1..4);
    let run = runner(800).run(&changes, |changes| {
        let mut bytes = text.clone();
        for (place, byte) in changes {
            bytes[place] = byte;
        }
        std::fs::write(folder.path().join("config.json"), &bytes).unwrap();
        std::fs::write(folder.path().join("model.safetensors"), &tensors).unwrap();
        let _ = open_and_read_all(folder.path(), &known);
        Ok(())
    });
    run.unwrap();
}

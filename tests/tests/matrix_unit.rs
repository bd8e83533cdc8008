//! Programs for `x86-64-amx`: where the machine lacks the unit, its instructions are computed.

use std::path::{Path, PathBuf};

use qwen2c_request::{Element, Quantization};
use qwen2c_tests::{Build, Program, Widths, has_target, relative_l2};
use serde_json::Value;

use crate::quantized::{interpreted, rounding};

const TARGET: &str = "x86-64-amx";

/// A dense model whose heads of 32 fill a row of a register.
fn model(folder: &Path) -> PathBuf {
    let model = Widths { hidden: 128, intermediate: 224, shared: 0 }.write_folder(folder);
    let path = model.join("config.json");
    let text = std::fs::read_to_string(&path).expect("readable");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    config["num_attention_heads"] = 4.into();
    config["num_key_value_heads"] = 2.into();
    config["max_position_embeddings"] = 512.into();
    std::fs::write(&path, config.to_string()).expect("writable");
    model
}

fn program(model: &Path, quant: &str) -> Program {
    Build::new(model).with(["--target", TARGET, "--dtype", "bf16", "--quant", quant]).finish()
}

#[test]
fn a_program_agrees_with_the_interpreter() {
    if !has_target(TARGET) {
        return eprintln!("this machine cannot run {TARGET}");
    }
    let folder = tempfile::tempdir().expect("a temporary directory");
    let model = model(folder.path());
    let tokens: Vec<u32> = (0..61).map(|index| (index * 37 + 11) % 97).collect();
    let signed = |bits, group| Some(Quantization::signed(bits, group));
    for (quant, format) in [("int8", signed(8, 32)), ("int4:64", signed(4, 64))] {
        let program = program(&model, quant);
        let expected = interpreted(&model, &tokens, Element::Bf16, format, rounding(&program));
        let found = program.logits(&tokens, &[]).values;
        let error = relative_l2(&found, &expected);
        assert!(error <= 2e-2, "{quant}: off by {error:.3e}");
    }
}

#[test]
fn a_text_of_two_blocks_gives_the_same_bits_by_ones_and_at_once() {
    if !has_target(TARGET) {
        return eprintln!("this machine cannot run {TARGET}");
    }
    let folder = tempfile::tempdir().expect("a temporary directory");
    let model = model(folder.path());
    let tokens: Vec<u32> = (0..300).map(|index| index * 7 % 97).collect();
    for quant in ["none", "int8"] {
        let program = program(&model, quant);
        let logits = |rows| program.logits(&tokens, &["--prompt-rows", rows]).values;
        assert!(logits("1") == logits("256"), "{quant}");
    }
}

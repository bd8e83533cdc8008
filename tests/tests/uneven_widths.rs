//! Widths that neither vectors nor groups divide, of dense layers and of experts, from both kinds of
//! checkpoints.

use std::path::Path;

use qwen2c_request::{Element, Quantization};
use qwen2c_tests::{Blocks, Build, Widths, host_targets, relative_l2};

use crate::quantized::{interpreted, rounding};

/// Builds a model for each target and compares its logits with the interpreter's.
#[track_caller]
fn assert_agrees(model: &Path, (quant, format): (&str, Option<Quantization>), targets: &[&str]) {
    let tokens: Vec<u32> = (0..21).map(|index| (index * 37 + 11) % 97).collect();
    for target in targets {
        let program = Build::new(model).with(["--quant", quant, "--target", target]).finish();
        let expected = interpreted(model, &tokens, Element::F32, format, rounding(&program));
        for rows in ["256", "1"] {
            let found = program.logits(&tokens, &["--prompt-rows", rows]).values;
            let error = relative_l2(&found, &expected);
            assert!(error <= 1e-4, "{model:?} {quant} {target}, by {rows} rows: off by {error:.3e}");
        }
    }
}

fn signed(bits: u32, group: u32) -> Option<Quantization> {
    Some(Quantization::signed(bits, group))
}

#[test]
fn dense_layers_of_groups_and_a_part_agree_with_the_interpreter() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    // 1.75 and 1.8125 groups of 128; 224 is 3.5 groups of 64, as 0.5B's 896 is 3.5 blocks of 256.
    let model = Widths { hidden: 224, intermediate: 232, shared: 0 }.write_folder(folder.path());
    assert_agrees(&model, ("int4:128", signed(4, 128)), &["native", "x86-64-v3"]);
    assert_agrees(&model, ("int8:64", signed(8, 64)), &["native"]);
}

#[test]
fn experts_of_groups_and_a_part_agree_with_the_interpreter() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    // 1.375 groups of 128, and no multiple of a vector: 2.8 groups of 64.
    let model = Widths { hidden: 96, intermediate: 176, shared: 180 }.write_folder(folder.path());
    assert_agrees(&model, ("int4:128", signed(4, 128)), &["native", "x86-64-v3"]);
    assert_agrees(&model, ("int8:64", signed(8, 64)), &["native"]);
}

#[test]
fn stacked_experts_of_no_whole_vector_are_padded_one_by_one() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let widths = Widths { hidden: 96, intermediate: 148, shared: 20 };
    let model = widths.write_gguf(folder.path(), Blocks::F16);
    assert_agrees(&model, ("int4:128", signed(4, 128)), &["native", "x86-64-v3"]);
    assert_agrees(&model, ("int8", signed(8, 32)), &["native"]);
    let emitted = folder.path().join("emitted");
    let emit = ["--target", "x86-64-v3", "--emit", "fused", "--emit-dir", emitted.to_str().expect("UTF-8")];
    let unfused = Build::new(&model).with(["--no-pass", "merge_gate_and_up"]).with(emit).finish();
    let text = std::fs::read_to_string(emitted.join("fused.txt")).expect("the fused graph");
    for part in ["[148 padded 152]", "intermediate=152", "[20 padded 24]", "columns 148", "columns 20"] {
        assert!(text.contains(part), "`{part}` is not in\n{text}");
    }
    drop(unfused);
}

#[test]
fn stacked_blocks_keep_their_groups_where_wider_ones_end_uneven() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let widths = Widths { hidden: 96, intermediate: 160, shared: 224 };
    let model = widths.write_gguf(folder.path(), Blocks::Q8);
    assert_agrees(&model, ("keep", None), &host_targets());
    assert_agrees(&model, ("int4:128", signed(4, 128)), &["native"]);
}

//! Quantized programs: against the interpreter on the dequantized weights, and against what was lost.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use qwen2c_checkpoint::Checkpoint;
use qwen2c_graph::passes::{PASSES, PassContext, ROUNDING_PASSES, run_passes};
use qwen2c_graph::{GraphOptions, Interpreter, WeightStorage, build_graph, settle_minima};
use qwen2c_request::{Element, Quantization, TargetDescription};
use qwen2c_tests::{Build, Device, Golden, Program, compiler, host_targets, relative_l2, run};

/// Prompt of the comparisons.
const LENGTH: usize = 33;

/// What a program rounds besides weights.
#[derive(Clone, Copy)]
pub(crate) struct Rounding {
    /// Inputs of products with quantized weights.
    multiplies_integers: bool,
    /// What attention multiplies.
    multiplies_bf16_pairs: bool,
}

/// What the program of a processor rounds, which it tells by the name of its target.
pub(crate) fn rounding(program: &Program) -> Rounding {
    let info = program.run(["info", "--json"]).success().json();
    let target = info["target"].as_str().expect("the target's name");
    let multiplies_bf16_pairs = target.contains("avx512bf16") || target == "x86-64-amx";
    Rounding { multiplies_integers: true, multiplies_bf16_pairs }
}

/// The interpreter's logits on the dequantized weights, the checkpoint's own where `quant` is none, with
/// activations rounded as programs round them and nothing fused.
pub(crate) fn interpreted(
    model: &Path,
    tokens: &[u32],
    dtype: Element,
    quant: Option<Quantization>,
    Rounding { multiplies_integers, multiplies_bf16_pairs }: Rounding,
) -> Vec<f32> {
    let checkpoint = Checkpoint::open(model).expect("a checkpoint");
    let config = &checkpoint.description.config;
    let kept = || WeightStorage::ByTensor(checkpoint.description.quantized_tensors.clone());
    let storage = quant.map_or_else(kept, WeightStorage::Quantized);
    let storage = settle_minima(config, storage, &checkpoint).expect("readable tensors");
    let options = GraphOptions { dtype, storage, context: 64, slots: 1, layers: None };
    let mut graph = build_graph(config, &options);
    let optional = PASSES.iter().filter(|pass| pass.optional).map(|pass| pass.name);
    let fusions: BTreeSet<&str> = optional.filter(|name| !ROUNDING_PASSES.contains(name)).collect();
    let target = TargetDescription {
        vector_lanes: 8,
        multiplies_integers,
        multiplies_bf16_pairs,
        ..TargetDescription::default()
    };
    let context = PassContext { config, target: &target, max_rows: 64 };
    run_passes(&mut graph, &context, &fusions, &mut |_, _, _| {}).expect("a valid graph");
    let mut interpreter = Interpreter::new(&graph, &checkpoint).expect("a valid graph");
    let rows: Vec<u32> = (0..tokens.len() as u32).collect();
    interpreter.step(tokens, &rows, &vec![0; rows.len()], &rows).expect("a step")
}

fn build(golden: &Golden, quant: &str, dtype: &str, target: &str) -> Program {
    Build::new(golden.model()).with(["--quant", quant, "--dtype", dtype, "--target", target]).finish()
}

/// Compares a program with the interpreter that rounds activations as it does.
#[track_caller]
fn assert_agrees(
    golden: &Golden,
    (quant, format): (&str, Option<Quantization>),
    dtype: Element,
    target: &str,
) {
    let tokens = &golden.prompts[&LENGTH].tokens;
    let program = build(golden, quant, dtype.name(), target);
    let expected = interpreted(&golden.model(), tokens, dtype, format, rounding(&program));
    let tolerance = if dtype == Element::F32 { 1e-4 } else { 2e-2 };
    for rows in ["256", "1"] {
        let error = relative_l2(&program.logits(tokens, &["--prompt-rows", rows]).values, &expected);
        let name = &golden.name;
        assert!(error <= tolerance, "{name} {quant} {dtype} {target}, by {rows} rows: off by {error:.3e}");
    }
}

/// Devices widen weights and do not round activations to integers.
#[test]
fn programs_on_a_device_agree_with_the_interpreter_on_the_dequantized_weights() {
    let formats = [
        ("dense-gqa", "int4", Some(Quantization::signed(4, 32)), Element::F32),
        ("dense-gqa", "int8:64", Some(Quantization::signed(8, 64)), Element::Bf16),
        ("moe-sparse-step", "int4:128", Some(Quantization::signed(4, 128)), Element::F32),
        ("moe-sparse-step", "int8", Some(Quantization::signed(8, 32)), Element::F16),
        ("gguf-qwen2", "keep", None, Element::F32),
    ];
    let rounding = Rounding { multiplies_integers: false, multiplies_bf16_pairs: false };
    for (name, quant, format, dtype) in formats {
        let golden = Golden::load(name);
        let tokens = &golden.prompts[&LENGTH].tokens;
        let expected = interpreted(&golden.model(), tokens, dtype, format, rounding);
        let program = build(&golden, quant, dtype.name(), "sm_80");
        let tolerance = if dtype == Element::F32 { 1e-4 } else { 2e-2 };
        let found = Device::new(80, 3).logits(&program, tokens);
        let error = relative_l2(&found.values, &expected);
        assert!(error <= tolerance, "{name} {quant} {dtype}: off by {error:.3e}");
    }
}

#[test]
fn programs_agree_with_the_interpreter_on_the_dequantized_weights() {
    for name in ["dense-gqa", "dense-head80", "moe-normalized", "moe-sparse-step", "gguf-llama"] {
        let golden = Golden::load(name);
        assert_agrees(&golden, ("int8", Some(Quantization::signed(8, 32))), Element::F32, "native");
        assert_agrees(&golden, ("int4", Some(Quantization::signed(4, 32))), Element::F32, "native");
    }
}

#[test]
fn the_same_on_every_target_in_other_types_and_groups() {
    let golden = Golden::load("moe-sparse-step");
    for target in host_targets() {
        assert_agrees(&golden, ("int4:64", Some(Quantization::signed(4, 64))), Element::F32, target);
        assert_agrees(&golden, ("int8:128", Some(Quantization::signed(8, 128))), Element::Bf16, target);
        assert_agrees(&golden, ("int4", Some(Quantization::signed(4, 32))), Element::F16, target);
    }
}

/// Files whose tensors have all types of blocks, mixed within a layer.
const QUANTIZED: [&str; 3] = ["gguf-llama", "gguf-qwen2", "gguf-qwen2moe"];

#[test]
fn blocks_stand_for_the_numbers_that_the_reader_makes_of_them() {
    for name in QUANTIZED {
        let checkpoint = Checkpoint::open(&Golden::load(name).model()).expect("a golden checkpoint");
        let storage = WeightStorage::ByTensor(checkpoint.description.quantized_tensors.clone());
        let options = GraphOptions { dtype: Element::F32, storage, context: 64, slots: 1, layers: None };
        let graph = build_graph(&checkpoint.description.config, &options);
        let quantized = graph.weights.iter().filter(|weight| weight.ty.quantization.is_some());
        assert!(quantized.clone().count() >= 6, "{name}");
        for weight in quantized {
            let rows = weight.rows() - 1;
            let mut read = vec![0.0; (rows * weight.ty.columns()) as usize];
            let mut taken = read.clone();
            weight.read_rows(&checkpoint, 1, &mut read).expect("rows");
            weight.read_rounded_rows(&checkpoint, 1, &mut taken).expect("rows");
            assert_eq!(read, taken, "{name}, {}", weight.name);
        }
    }
}

#[test]
fn scales_that_are_not_numbers_are_refused() {
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let model = scratch.path().join("model.gguf");
    let mut bytes = std::fs::read(Golden::load("gguf-llama").model()).expect("readable");
    let data = bytes.len() / 4;
    // An f16 of these bytes is not a number; an f32 is.
    bytes[data..].fill(0x7e);
    std::fs::write(&model, bytes).expect("writable");
    let build = Build::new(&model).with(["--quant", "keep", "--quiet"]);
    run(&mut build.command(&scratch.path().join("program")))
        .refused(1, &["not a number", "group", "model.gguf"]);
}

#[test]
fn kept_weights_are_those_of_the_checkpoint() {
    for name in QUANTIZED {
        let golden = Golden::load(name);
        for target in host_targets() {
            let program = build(&golden, "keep", "f32", target);
            for (length, prompt) in &golden.prompts {
                let found = program.logits(&prompt.tokens, &[]);
                let kept: Vec<f32> =
                    prompt.positions.iter().flat_map(|&row| found.row(row)).copied().collect();
                let error = relative_l2(&kept, &prompt.logits.values);
                assert!(error <= 1e-4, "{name} {target}, {length} tokens: off by {error:.3e}");
            }
        }
    }
}

#[test]
fn programs_on_kept_weights_agree_with_the_interpreter() {
    for name in QUANTIZED {
        for target in host_targets() {
            assert_agrees(&Golden::load(name), ("keep", None), Element::Bf16, target);
        }
    }
    assert_agrees(&Golden::load("gguf-qwen2moe"), ("keep", None), Element::F16, "native");
}

#[test]
fn what_is_quantized_already_is_kept_by_default() {
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let output = scratch.path().join("program");
    let mut command = Command::new(compiler());
    command.arg("build").arg("--model").arg(Golden::load("gguf-llama").model()).arg("-o").arg(&output);
    let report = run(&mut command).success().text();
    for format in [" int8:16 with scales in f32 ", " int4:32 with scales in f32 and minima "] {
        let is_kept = |line: &str| line.contains(format) && line.ends_with("as in the checkpoint");
        assert!(report.lines().any(is_kept), "`{format}` is not kept:\n{report}");
    }
    run(Command::new(&output).arg("self-test")).success();
    let info = run(Command::new(&output).args(["info", "--json"])).success().json();
    assert_eq!(info["quant"], "keep");
    let model = Golden::load("dense-gqa").model();
    let mut command = Command::new(compiler());
    command.arg("build").arg("--model").arg(model).args(["--quant", "keep", "-o"]).arg(&output);
    run(&mut command).refused(1, &["no quantized weights to keep", "--quant none"]);
}

#[test]
fn what_is_lost_is_small_at_8_bits_and_bounded_at_4() {
    let golden = Golden::load("dense-gqa");
    let prompt = &golden.prompts[&LENGTH];
    let error = |quant: &str| {
        let found = build(&golden, quant, "f32", "native").logits(&prompt.tokens, &[]);
        relative_l2(&found.values, &prompt.logits.values)
    };
    let (int8, int4) = (error("int8"), error("int4"));
    assert!(int8 > 0.0 && int8 < 0.03, "int8: {int8:.3e}");
    assert!(int4 > int8 && int4 < 0.35, "int4: {int4:.3e}");
}

#[test]
fn the_self_test_and_the_facts_know_the_quantization() {
    let program = build(&Golden::load("moe-sparse-step"), "int4:128", "bf16", "native");
    program.run(["self-test"]).success();
    let info = program.run(["info", "--json"]).success().json();
    assert_eq!(info["quant"], "int4:128");
    let whole =
        Build::new(Golden::load("moe-sparse-step").model()).finish().run(["info", "--json"]).success().json();
    let bytes = |info: &serde_json::Value| info["weight_bytes"].as_u64().expect("a number");
    assert!(bytes(&info) < bytes(&whole));
}

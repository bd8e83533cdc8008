//! `--pass persistent_decode`: a token in one launch, on the emulated device, against the same program with a
//! launch for every kernel.

use qwen2c_tests::{Build, Device, Golden, Program};
use serde_json::Value;

/// Ids behind a prompt: enough to come back to every kernel with other positions.
const ANSWER_TOKENS: usize = 16;

fn build(golden: &Golden, more: &[&str]) -> Program {
    Build::new(golden.model()).with(["--target", "sm_80"]).with(more.iter().copied()).finish()
}

fn number(report: &Value, name: &str) -> u64 {
    report[name].as_u64().unwrap_or_else(|| panic!("no number `{name}` in {report}"))
}

/// Answers of a program with the pass and of one without it, under several orders of blocks and warps.
fn assert_same_answers(name: &str, more: &[&str]) {
    let golden = Golden::load(name);
    let launched = build(&golden, more);
    let persistent = build(&golden, &[more, &["--pass", "persistent_decode"]].concat());
    for seed in [0, 1, 2] {
        let device = Device::new(80, seed);
        for length in [1, 33] {
            let prompt = &golden.prompts[&length].tokens;
            let expected = device.greedy(&launched, prompt, ANSWER_TOKENS);
            let found = device.greedy(&persistent, prompt, ANSWER_TOKENS);
            assert_eq!(found, expected, "{name} {more:?}, {length} tokens, seed {seed}");
            let faults = device.report()["faults"].clone();
            assert!(faults.as_array().is_none_or(Vec::is_empty), "{faults}");
        }
    }
}

#[test]
fn a_dense_model_answers_alike() {
    assert_same_answers("dense-gqa", &["--dtype", "bf16"]);
    assert_same_answers("dense-gqa", &["--quant", "int4"]);
}

#[test]
fn a_mixture_of_experts_answers_alike() {
    assert_same_answers("moe-sparse-step", &["--quant", "none"]);
    assert_same_answers("moe-normalized", &["--quant", "int8"]);
}

/// No pass but this one: every operation is a body of its own.
#[test]
fn an_unfused_program_answers_alike() {
    let fusions = ["--no-pass", "fuse_attention", "--no-pass", "merge_qkv_projections"];
    assert_same_answers("dense-gqa", &fusions);
}

#[test]
fn a_token_is_one_launch() {
    let golden = Golden::load("dense-gqa");
    let program = build(&golden, &["--pass", "persistent_decode"]);
    let device = Device::new(80, 0);
    let launches_of = |tokens: usize| {
        device.greedy(&program, &golden.prompts[&5].tokens, tokens);
        let report = device.report();
        assert_eq!(number(&report, "graph_launches"), 0);
        let kernel = &report["kernels"]["persistent_decode"];
        (number(&report, "launches"), kernel["calls"].as_u64().unwrap_or(0))
    };
    let (few, many) = (launches_of(2), launches_of(6));
    assert_eq!((many.0 - few.0, many.1 - few.1), (4, 4));
}

/// Kernels are measured by themselves.
#[test]
fn the_program_is_measured_kernel_by_kernel_all_the_same() {
    let golden = Golden::load("dense-gqa");
    let program = build(&golden, &["--pass", "persistent_decode"]);
    let device = Device::new(80, 0);
    let profile = device.run(&program, ["profile", "--json"]).success().text();
    let profile: Value = serde_json::from_str(&profile).expect("JSON");
    let kernels = profile["kernels"].as_array().expect("a list");
    assert!(kernels.iter().any(|kernel| kernel["name"].as_str().is_some_and(|name| name.contains("matmul"))));
}

/// What was generated before the device was lost was shown, and nothing but that: the beginning of the answer.
#[test]
fn a_device_that_is_lost_leaves_the_beginning_of_the_answer() {
    let program = build(&Golden::load("dense-gqa"), &["--pass", "persistent_decode"]);
    let ask = ["run", "--tokens", "1,2,3", "-n", "20", "--print-tokens", "--quiet", "--ignore-eos"];
    let ids = |text: String| text.trim_end().split(',').map(str::to_owned).collect::<Vec<_>>();
    let device = Device::new(80, 0);
    let answer = ids(device.run(&program, ask).success().text());
    assert_eq!(answer.len(), 20);
    // A token is one launch: those of the last nine tokens are missing.
    let launches = number(&device.report(), "launches");
    let lost = device.with("QWEN2C_EMULATOR_LOSE_DEVICE_AFTER", launches - 9);
    let ended = lost.run(&program, ask);
    assert_eq!(ended.code(), Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("CUDA_ERROR_DEVICE_UNAVAILABLE"), "{}", ended.stderr);
    assert!(ended.stderr.contains("of `decode`"), "{}", ended.stderr);
    assert_eq!(ids(ended.text()), answer[..20 - 9]);
}

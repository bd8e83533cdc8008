//! CUDA programs, unchanged, on the emulated device: against HF transformers' numbers, under several orders of
//! blocks and warps, and what they say where a device does not suit them.

use qwen2c_tests::{Build, Device, Golden, Program, assert_same_greedy, relative_l2};

/// Relative L2 error of the logits that `--dtype f32` may have: exponentials are the device's.
const F32_TOLERANCE: f64 = 1e-4;
/// The same for 16-bit types.
const HALF_TOLERANCE: f64 = 2e-2;

/// Seeds of the emulator's orders.
const SEEDS: [u64; 3] = [0, 1, 2];

fn build(golden: &Golden, more: &[&str]) -> Program {
    Build::new(golden.model()).with(["--target", "sm_80"]).with(more.iter().copied()).finish()
}

/// Logits of every prompt and greedy answers, under every seed.
#[track_caller]
fn assert_reference(name: &str, more: &[&str], tolerance: f64) {
    let golden = Golden::load(name);
    let program = build(&golden, more);
    for seed in SEEDS {
        let device = Device::new(80, seed);
        for (length, prompt) in &golden.prompts {
            let found = device.logits(&program, &prompt.tokens);
            let kept: Vec<f32> =
                prompt.positions.iter().flat_map(|&row| found.row(row)).copied().collect();
            let error = relative_l2(&kept, &prompt.logits.values);
            eprintln!("{name} {more:?}, {length} tokens, seed {seed}: {error:.2e}");
            assert!(error <= tolerance, "{name} {more:?}: {length} tokens are off by {error:.3e}");
        }
        let answers = golden.prompts.iter().filter(|(_, prompt)| !prompt.greedy.is_empty());
        for (length, prompt) in answers {
            if tolerance == F32_TOLERANCE {
                let found = device.greedy(&program, &prompt.tokens, prompt.greedy.len());
                let what = format!("{name} {more:?}, {length} tokens, seed {seed}");
                assert_same_greedy(&what, &found, &prompt.greedy, &prompt.gaps);
            }
        }
        let faults = device.report()["faults"].clone();
        assert!(faults.as_array().is_none_or(Vec::is_empty), "{faults}");
    }
}

#[test]
fn a_dense_model_in_f32() {
    assert_reference("dense-gqa", &[], F32_TOLERANCE);
}

#[test]
fn a_dense_model_in_bf16() {
    assert_reference("dense-gqa", &["--dtype", "bf16"], HALF_TOLERANCE);
}

#[test]
fn heads_that_are_no_power_of_two_in_f16() {
    assert_reference("dense-head80", &["--dtype", "f16"], HALF_TOLERANCE);
}

#[test]
fn a_mixture_of_experts_in_f32() {
    assert_reference("moe-sparse-step", &[], F32_TOLERANCE);
}

#[test]
fn a_mixture_of_experts_in_bf16() {
    assert_reference("moe-normalized", &["--dtype", "bf16"], HALF_TOLERANCE);
}

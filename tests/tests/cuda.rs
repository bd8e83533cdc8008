//! CUDA programs, unchanged, on the emulated device: against HF transformers' numbers, under several orders of
//! blocks and warps, and what they say where a device does not suit them.

use std::process::Command;
use std::time::{Duration, Instant};

use qwen2c_tests::{Build, Device, Golden, Program, assert_same_greedy, compiler, relative_l2, run};

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
        // The longest takes the steps for long prompts; one order of blocks shows that as well as three.
        for (length, prompt) in golden.prompts.iter().filter(|(length, _)| seed == 0 || **length < 256) {
            let found = device.logits(&program, &prompt.tokens);
            let kept: Vec<f32> = prompt.positions.iter().flat_map(|&row| found.row(row)).copied().collect();
            let error = relative_l2(&kept, &prompt.logits.values);
            eprintln!("{name} {more:?}, {length} tokens, seed {seed}: {error:.2e}");
            assert!(error <= tolerance, "{name} {more:?}: {length} tokens are off by {error:.3e}");
        }
        let answers = golden
            .prompts
            .iter()
            .filter(|(length, prompt)| !prompt.greedy.is_empty() && (seed == 0 || **length < 256));
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

/// Chunks take the steps for fewer rows and cross from one to the next; the bits are the same.
#[test]
fn a_prompt_in_chunks_and_at_once_gives_the_same_bits() {
    for (name, more) in [
        ("dense-gqa", &["--dtype", "bf16"][..]),
        ("dense-gqa", &["--dtype", "bf16", "--quant", "int4"]),
        ("dense-head80", &["--dtype", "f32"]),
        ("moe-normalized", &["--dtype", "bf16"]),
    ] {
        let golden = Golden::load(name);
        let program = build(&golden, more);
        let (length, prompt) = golden.prompts.last_key_value().expect("there are prompts");
        assert!(*length > 256, "{name}: {length} tokens fit the steps for few rows");
        let device = Device::new(80, 0);
        let at_once = device.logits(&program, &prompt.tokens);
        let in_chunks = device.logits_with(&program, &prompt.tokens, &["--prompt-rows", "99"]);
        assert_eq!(in_chunks.values, at_once.values, "{name} {more:?}");
    }
}

/// Without any optional pass every operation is a kernel of its own, and the program the same function.
#[test]
fn an_unfused_program() {
    let listing = run(Command::new(compiler()).arg("passes")).success().text();
    let passes: Vec<&str> = listing
        .lines()
        .filter(|line| line.contains("optional"))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(passes.len() >= 5, "{listing}");
    for name in ["dense-gqa", "moe-normalized"] {
        let golden = Golden::load(name);
        let switches = passes.iter().flat_map(|pass| ["--no-pass", pass]);
        let program = Build::new(golden.model()).with(["--target", "sm_80"]).with(switches).finish();
        let prompt = &golden.prompts[&33];
        let found = Device::new(80, 5).logits(&program, &prompt.tokens);
        let kept: Vec<f32> = prompt.positions.iter().flat_map(|&row| found.row(row)).copied().collect();
        let error = relative_l2(&kept, &prompt.logits.values);
        assert!(error <= F32_TOLERANCE, "{name}: off by {error:.3e}");
    }
}

/// One file for two architectures: each device takes what it can run, and both compute the same bits.
#[test]
fn a_program_for_two_architectures_runs_on_both_and_on_later_ones() {
    let golden = Golden::load("dense-gqa");
    let program = Build::new(golden.model()).with(["--target", "sm_80,sm_90"]).finish();
    let prompt = &golden.prompts[&33];
    let on = |architecture| Device::new(architecture, 0).logits(&program, &prompt.tokens);
    let expected = on(80);
    for architecture in [86, 90] {
        assert_eq!(on(architecture).values, expected.values, "sm_{architecture}");
    }
}

#[test]
fn the_self_test_bench_and_profile_run_on_a_device() {
    let program = build(&Golden::load("dense-gqa"), &["--dtype", "bf16"]);
    let device = Device::new(80, 0);
    device.run(&program, ["self-test"]).success();
    let bench = device.run(&program, ["bench", "-p", "16", "-n", "4", "-r", "1", "--json"]).success().json();
    assert_eq!(bench["results"].as_array().map(Vec::len), Some(2), "{bench}");
    assert_eq!(bench["allocations_per_token"].as_f64(), Some(0.0), "{bench}");
    let profile = device.run(&program, ["profile", "--json"]).success().json();
    let kernels = profile["kernels"].as_array().expect("kernels");
    assert!(kernels.iter().any(|kernel| kernel["name"].as_str().is_some_and(|n| n.starts_with("attention"))));
}

/// What a token costs a device: one graph, and as many kernels in it as the plan says.
#[test]
fn a_token_is_one_graph() {
    let program = build(&Golden::load("dense-gqa"), &["--dtype", "bf16"]);
    let device = Device::new(80, 0);
    let launches = |count: usize| {
        device.greedy(&program, &[1, 2, 3], count);
        let report = device.report();
        let number = |name: &str| report[name].as_u64().expect("a number");
        (number("launches"), number("graph_launches"), number("graph_kernels"))
    };
    let (few, many) = (launches(2), launches(6));
    assert_eq!(few.0, many.0, "the prompt alone is launched kernel by kernel");
    assert_eq!(many.1 - few.1, 4, "a graph for each token");
    // Embedding, two layers of six launches, gather, head with its norm and the choice of its largest logits.
    assert_eq!(many.2 - few.2, 4 * 16);
}

#[test]
fn what_does_not_suit_a_program_is_named_with_both_sides() {
    let program = build(&Golden::load("dense-gqa"), &["--dtype", "bf16"]);
    let ask = ["run", "--tokens", "1,2", "-n", "1", "--quiet"];
    let on = |device: Device| device.run(&program, ask);
    run(&mut program.command(ask)).refused(1, &["libcuda.so.1"]);
    on(Device::new(75, 0)).refused(1, &["sm_75", "sm_80"]);
    on(Device::new(80, 0).with("QWEN2C_EMULATOR_DEVICES", 0)).refused(1, &["device"]);
    on(Device::new(80, 0).with("QWEN2C_EMULATOR_DRIVER_VERSION", 10_020)).refused(1, &["10.2"]);
    on(Device::new(80, 0).with("QWEN2C_EMULATOR_MEMORY_BYTES", 840_000)).refused(1, &["memory", "--context"]);
    on(Device::new(80, 0).with("QWEN2C_EMULATOR_LOSE_DEVICE_AFTER", 7)).refused(1, &["CUDA_ERROR"]);
    let second = ["run", "--tokens", "1,2", "-n", "1", "--quiet", "--device", "1"];
    Device::new(80, 0).run(&program, second).refused(1, &["--device"]);
    let unknown = Build::new(Golden::load("dense-gqa").model()).with(["--target", "sm_81"]);
    let scratch = tempfile::tempdir().expect("a temporary directory");
    run(&mut unknown.command(&scratch.path().join("program"))).refused(2, &["sm_81", "did you mean `sm_8"]);
}

/// What was copied before the device is lost: nothing, or all weights, so that the next copy is that of an id.
#[test]
fn a_device_lost_before_the_first_step_ends_with_where_the_program_was() {
    for more in [&["--dtype", "bf16"][..], &["--pass", "persistent_decode"]] {
        let program = build(&Golden::load("dense-gqa"), more);
        let info = program.run(["info", "--json"]).success().json();
        let weight_bytes = info["weight_bytes"].as_u64().expect("a number");
        let ask = ["run", "--tokens", "1,2", "-n", "1", "--quiet"];
        let lost_after = |bytes: u64| {
            let device = Device::new(80, 0).with("QWEN2C_EMULATOR_LOSE_DEVICE_AFTER_BYTES", bytes);
            let start = Instant::now();
            let outcome = device.run(&program, ask);
            assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
            outcome
        };
        let name = "CUDA_ERROR_DEVICE_UNAVAILABLE";
        lost_after(0).refused(1, &[name, "--> start: weights to the device", "nvidia-smi"]);
        let next =
            if more.contains(&"--pass") { "start: the steps of `decode`" } else { "step 0 of `prefill" };
        lost_after(weight_bytes).refused(1, &[name, &format!("--> {next}"), "nvidia-smi"]);
    }
}

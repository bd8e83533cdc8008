//! Programs against HF transformers: logits and greedy answers of the tiny checkpoints and of SmolLM2.

use std::process::Command;

use qwen2c_tests::{
    Build, Golden, Program, assert_same_greedy, compiler, has_target, relative_l2, run, smollm2_gguf,
    smollm2_golden,
};

/// Relative L2 error of the logits that `--dtype f32` may have.
const F32_TOLERANCE: f64 = 1e-4;
/// The same for `--dtype bf16` and `--dtype f16`.
const BF16_TOLERANCE: f64 = 2e-2;

/// Compares the logits of every prompt.
#[track_caller]
fn assert_logits(golden: &Golden, program: &Program, arguments: &[&str], tolerance: f64, what: &str) {
    for (length, prompt) in &golden.prompts {
        let found = program.logits(&prompt.tokens, arguments);
        assert_eq!(found.shape, [*length, prompt.logits.shape[1]], "{}: shape of the logits", golden.name);
        let kept: Vec<f32> = prompt.positions.iter().flat_map(|&row| found.row(row)).copied().collect();
        let error = relative_l2(&kept, &prompt.logits.values);
        let worst = (0..prompt.positions.len())
            .map(|row| {
                (relative_l2(found.row(prompt.positions[row]), prompt.logits.row(row)), prompt.positions[row])
            })
            .fold((0.0, 0), |worst, row| if row.0 > worst.0 { row } else { worst });
        eprintln!(
            "{} {what}, {length} tokens: {error:.2e}, worst {:.2e} at {}",
            golden.name, worst.0, worst.1
        );
        assert!(
            error <= tolerance,
            "{} {what}: a prompt of {length} tokens is off by {error:.3e}, worst at position {} ({:.3e})",
            golden.name,
            worst.1,
            worst.0,
        );
    }
}

/// Compares the greedy answers.
#[track_caller]
fn assert_greedy(golden: &Golden, program: &Program, arguments: &[&str], what: &str) {
    for (length, prompt) in golden.prompts.iter().filter(|(_, prompt)| !prompt.greedy.is_empty()) {
        let found = program.greedy(&prompt.tokens, prompt.greedy.len(), arguments);
        let what = format!("{} {what}, {length} tokens", golden.name);
        assert_same_greedy(&what, &found, &prompt.greedy, &prompt.gaps);
    }
}

/// Names of the passes that can be switched off, as `qwen2c passes` lists them.
fn optional_passes() -> Vec<String> {
    let listing = run(Command::new(compiler()).arg("passes")).success().text();
    let passes: Vec<String> = listing
        .lines()
        .filter(|line| line.contains("optional"))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.contains('_'))
        .map(str::to_owned)
        .collect();
    assert!(passes.len() >= 5, "the fusions can be switched off:\n{listing}");
    passes
}

fn f32(name: &str) {
    let golden = Golden::load(name);
    let program = Build::new(golden.model()).finish();
    assert_logits(&golden, &program, &[], F32_TOLERANCE, "f32");
    assert_greedy(&golden, &program, &[], "f32");
}

fn bf16(name: &str) {
    check_half(name, "bf16");
}

fn f16(name: &str) {
    check_half(name, "f16");
}

fn check_half(name: &str, dtype: &str) {
    let golden = Golden::load(name);
    let program = Build::new(golden.model()).with(["--dtype", dtype]).finish();
    assert_logits(&golden, &program, &[], BF16_TOLERANCE, dtype);
}

/// Chunks that leave a remainder, and chunks of one row, which take the decode steps.
fn chunks(name: &str) {
    let golden = Golden::load(name);
    let program = Build::new(golden.model()).finish();
    for rows in ["7", "1"] {
        let chunked = ["--prompt-rows", rows];
        assert_logits(&golden, &program, &chunked, F32_TOLERANCE, &format!("in chunks of {rows}"));
        assert_greedy(&golden, &program, &chunked, &format!("in chunks of {rows}"));
    }
}

/// Without any optional pass the program is the same function.
fn unfused(name: &str) {
    let golden = Golden::load(name);
    let passes = optional_passes();
    let switches = passes.iter().flat_map(|pass| ["--no-pass", pass]);
    let program = Build::new(golden.model()).with(switches).finish();
    assert_logits(&golden, &program, &[], F32_TOLERANCE, "unfused");
    assert_greedy(&golden, &program, &[], "unfused");
}

/// The other targets whose programs this machine can run.
fn targets(name: &str) {
    let golden = Golden::load(name);
    for target in ["x86-64-v3", "x86-64-v4", "x86-64-amx"] {
        if !has_target(target) {
            eprintln!("{name}: this machine cannot run {target}");
            continue;
        }
        // The matrix unit multiplies no f32: that program is one for AVX-512.
        if target != "x86-64-amx" {
            let program = Build::new(golden.model()).with(["--target", target]).finish();
            assert_logits(&golden, &program, &[], F32_TOLERANCE, target);
        }
        let program = Build::new(golden.model()).with(["--target", target, "--dtype", "bf16"]).finish();
        assert_logits(&golden, &program, &[], BF16_TOLERANCE, target);
    }
}

macro_rules! parity {
    ($($module:ident: $name:literal [$($check:ident),*];)*) => {
        $(mod $module {
            $(#[test]
            fn $check() {
                super::$check($name);
            })*
        })*
    };
}

parity! {
    dense_gqa: "dense-gqa" [f32, bf16, f16, chunks, unfused, targets];
    dense_head80: "dense-head80" [f32, bf16, f16, targets];
    dense_mha: "dense-mha" [f32, bf16, chunks, unfused, targets];
    dense_yarn: "dense-yarn" [f32, bf16, unfused];
    gguf_llama: "gguf-llama" [f32, bf16];
    gguf_qwen2: "gguf-qwen2" [f32, bf16];
    gguf_qwen2moe: "gguf-qwen2moe" [f32, bf16];
    llama: "llama" [f32, bf16, unfused];
    moe_normalized: "moe-normalized" [f32, bf16, chunks, unfused, targets];
    moe_sparse_step: "moe-sparse-step" [f32, bf16, chunks, unfused];
    talking: "talking" [f32, bf16];
}

/// Behind 256 positions a token's attention comes in parts, which a prompt's does not.
#[test]
fn a_long_text_gives_the_same_bits_by_ones_and_at_once() {
    let tokens: Vec<u32> = (0..300).map(|index| index * 7 % 251).collect();
    for (target, dtype) in [("native", "f32"), ("native", "bf16"), ("x86-64-amx", "bf16")] {
        if !has_target(target) {
            eprintln!("this machine cannot run {target}");
            continue;
        }
        let build = Build::new(Golden::load("dense-gqa").model());
        let program = build.with(["--target", target, "--dtype", dtype]).finish();
        let logits = |rows| program.logits(&tokens, &["--prompt-rows", rows]).values;
        assert!(logits("1") == logits("256"), "{target} {dtype}");
    }
}

/// The quickstart's model on real weights: 60 greedy ids of several prompts.
#[test]
fn smollm2_answers_as_the_reference() {
    let Some(model) = smollm2_gguf() else { return };
    let program = Build::new(model).with(["--context", "512"]).finish();
    for answer in smollm2_golden() {
        let found = program.greedy(&answer.tokens, answer.greedy.len(), &[]);
        assert_same_greedy(
            &format!("SmolLM2, prompt `{}`", answer.name),
            &found,
            &answer.greedy,
            &answer.gaps,
        );
    }
}

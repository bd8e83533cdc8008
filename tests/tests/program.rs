//! The command line of emitted programs: arguments, exit codes, what is printed where.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use qwen2c_tests::{Build, Golden, Program, compiler, run, run_with_input};
use serde_json::Value;

/// A program with a tokenizer and a chat template.
fn talking() -> &'static Program {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    PROGRAM.get_or_init(|| Build::new(Golden::load("talking").model()).finish())
}

/// A program without a tokenizer.
fn bare() -> &'static Program {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    PROGRAM.get_or_init(|| Build::new(Golden::load("dense-gqa").model()).finish())
}

/// Fails unless the object has each of these keys.
#[track_caller]
fn assert_keys(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some(), "no `{key}` in {value}");
    }
}

#[test]
fn run_prints_text_or_ids() {
    let text = talking().run(["run", "-p", "the sky", "-n", "8", "--temperature", "0", "--quiet"]).success();
    assert!(std::str::from_utf8(&text.stdout).is_ok(), "text is UTF-8");
    let seeded = |seed| {
        talking().run(["run", "-p", "the sky", "-n", "12", "--seed", seed, "--print-tokens"]).success().text()
    };
    assert_eq!(seeded("1"), seeded("1"));
    assert_ne!(seeded("1"), seeded("2"), "another seed, another answer");
    let line = seeded("3");
    assert_eq!(line.lines().count(), 1, "one line of ids: {line}");
    assert!(line.trim_end().split(',').all(|id| id.parse::<u32>().is_ok_and(|id| id < 360)), "{line}");
}

#[test]
fn prompts_come_from_an_argument_a_file_or_standard_input() {
    let fixed = ["-n", "6", "--temperature", "0", "--print-tokens", "--quiet", "--ignore-eos"];
    let with = |more: &[&'static str]| [more, &fixed[..]].concat();
    let expected = talking().run(with(&["run", "-p", "the light of the sun"])).success().text();
    let file = talking().directory().join("prompt.txt");
    std::fs::write(&file, "the light of the sun").expect("writable");
    let file = file.to_str().expect("UTF-8").to_owned();
    let mut command = talking().command(["run", "-f", &file]);
    assert_eq!(run(command.args(fixed)).success().text(), expected);
    let raw = talking().run(with(&["run", "--raw", "-p", "the light of the sun"])).success().text();
    assert_ne!(raw, expected, "the chat template makes a difference");
    let system =
        talking().run(with(&["run", "--system", "air", "-p", "the light of the sun"])).success().text();
    assert_ne!(system, expected, "the system prompt makes a difference");
}

#[test]
fn standard_input_is_completed_where_no_terminal_is() {
    let mut command = talking().command(["--quiet"]);
    let outcome = run_with_input(&mut command, b"the sky is blue because the").success();
    assert!(std::str::from_utf8(&outcome.stdout).is_ok());
}

#[test]
fn generation_stops_where_it_should() {
    let ids = |arguments: &[&str]| {
        let fixed =
            ["run", "--tokens", "1,2,3", "--temperature", "0", "--repetition-penalty", "1", "--print-tokens"];
        let text = talking().run(fixed.into_iter().chain(arguments.iter().copied())).success().text();
        let ids = text.trim_end().split(',').filter(|id| !id.is_empty());
        ids.map(|id| id.parse::<u32>().expect("an id")).collect::<Vec<_>>()
    };
    assert_eq!(ids(&["-n", "5", "--ignore-eos"]).len(), 5);
    let full = ids(&["--ignore-eos"]);
    // The last id needs no position: nothing comes after it.
    assert_eq!(full.len(), 512 - 3 + 1, "without `-n` until the context of 512 positions is full");
}

#[test]
fn logits_are_a_safetensors_file() {
    let logits = bare().logits(&[3, 1, 4, 1, 5], &[]);
    assert_eq!(logits.shape, [5, 257]);
    assert!(logits.values.iter().all(|value| value.is_finite()));
}

#[test]
fn bench_keeps_its_contract() {
    let json =
        talking().run(["bench", "-p", "16", "-n", "4", "-d", "8", "-r", "2", "--json"]).success().json();
    assert_keys(&json, &["model", "target", "quant", "threads", "allocations_per_token", "results"]);
    let results = json["results"].as_array().expect("results");
    let tests: Vec<&str> = results.iter().filter_map(|result| result["test"].as_str()).collect();
    assert_eq!(tests, ["pp16@d8", "tg4@d8"]);
    for result in results {
        assert_keys(result, &["test", "tokens_per_s", "stddev", "runs"]);
        assert_eq!(result["runs"].as_array().map(Vec::len), Some(2));
        assert!(result["tokens_per_s"].as_f64().is_some_and(|rate| rate > 0.0), "{result}");
    }
    let only = talking().run(["bench", "-p", "0", "-n", "4", "-r", "1", "--json"]).success().json();
    assert_eq!(only["results"].as_array().map(Vec::len), Some(1), "0 leaves a test out: {only}");
    assert_eq!(only["results"][0]["test"], "tg4");
    assert!(talking().run(["bench", "-p", "8", "-n", "2", "-r", "1"]).success().text().contains("tg2"));
}

#[test]
fn profile_keeps_its_contract() {
    let json = talking().run(["profile", "--json"]).success().json();
    let kernels = json["kernels"].as_array().expect("kernels");
    assert!(kernels.len() > 4, "{json}");
    for kernel in kernels {
        assert_keys(kernel, &["name", "calls", "us", "bytes", "operations"]);
    }
    let peak = talking().run(["profile", "--peak", "--json"]).success().json();
    assert_keys(&peak, &["peak", "kernels"]);
    assert_keys(&peak["kernels"][0], &["share_of_peak"]);
}

#[test]
fn perplexity_keeps_its_contract() {
    let file = talking().directory().join("text.txt");
    std::fs::write(&file, "the sky is blue because the air scatters the light of the sun ".repeat(9))
        .expect("writable");
    let file = file.to_str().expect("UTF-8");
    let json = talking().run(["perplexity", file, "--window", "64", "--json"]).success().json();
    assert_keys(&json, &["tokens", "nll", "perplexity"]);
    let (nll, perplexity) =
        (json["nll"].as_f64().expect("nll"), json["perplexity"].as_f64().expect("perplexity"));
    let tokens = json["tokens"].as_f64().expect("tokens");
    let of_mean = nll.exp();
    let of_sum = (nll / tokens).exp();
    let near = |value: f64| (value / perplexity - 1.0).abs() < 1e-3;
    assert!(near(of_mean) || near(of_sum), "perplexity is the exponential of the mean: {json}");
    // Random weights know nothing: about as bad as guessing among 499 ids, or worse.
    assert!(perplexity > 100.0, "{json}");
}

#[test]
fn info_keeps_its_contract() {
    let json = talking().run(["info", "--json"]).success().json();
    let keys = [
        "model",
        "target",
        "quant",
        "context",
        "weight_bytes",
        "kv_cache_bytes",
        "arena_bytes",
        "program_bytes",
    ];
    assert_keys(&json, &keys);
    assert_keys(&json, &["build"]);
    let bytes = std::fs::metadata(talking().path()).expect("the program").len();
    assert_eq!(json["program_bytes"].as_u64(), Some(bytes));
    assert_eq!(json["context"].as_u64(), Some(512));
    talking().run(["info", "--verify"]).success();
    assert!(!talking().run(["info", "--licenses"]).success().text().is_empty());
}

#[test]
fn self_test_passes_on_every_kind_of_model() {
    for name in ["talking", "moe-sparse-step", "dense-yarn"] {
        for dtype in ["f32", "bf16"] {
            let program = Build::new(Golden::load(name).model()).with(["--dtype", dtype]).finish();
            program.run(["self-test"]).success();
        }
    }
}

#[test]
fn wrong_usage_of_a_program_ends_with_2() {
    for arguments in [
        &["rnu"][..],
        &["run", "--temprature", "0"],
        &["run", "--tokens", "1,x"],
        &["run", "-n", "many", "-p", "x"],
        &["run", "-p", "a", "--tokens", "1"],
        &["run", "--top-p", "1.5", "-p", "x"],
        &["run", "--temperature", "-1", "-p", "x"],
        &["logits", "--tokens", "1"],
        &["run", "-p", "x", "--threads", "0"],
    ] {
        talking().run(arguments.iter().copied()).refused(2, &[]);
    }
}

/// Reads one byte of the output, closes the pipe, and expects quiet success.
#[track_caller]
fn assert_quiet_when_closed(mut command: Command) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut stdout = child.stdout.take().expect("piped");
    stdout.read_exact(&mut [0]).expect("something is printed");
    drop(stdout);
    let output = child.wait_with_output().expect("ends");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{command:?}: {message}");
    assert!(!message.contains("error") && !message.contains("panicked"), "{command:?}: {message}");
}

#[test]
fn a_closed_pipe_is_quiet_success() {
    let mut passes = Command::new(compiler());
    passes.arg("passes");
    assert_quiet_when_closed(passes);
    assert_quiet_when_closed(talking().command(["info", "--json"]));
    let endless = ["run", "--tokens", "1,2", "--ignore-eos", "--temperature", "0"];
    assert_quiet_when_closed(talking().command(endless));
}

#[test]
fn an_interrupt_ends_run_with_130() {
    let mut child = talking()
        .command(["run", "--tokens", "1,2", "--ignore-eos", "--temperature", "0", "--threads", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut first = [0];
    child.stdout.as_mut().expect("piped").read_exact(&mut first).expect("something is printed");
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(killed.success());
    let status = child.wait_with_output().expect("ends").status;
    // Too late is possible: a tiny model fills its context in an instant.
    assert!(matches!(status.code(), Some(130 | 0)), "{status:?}");
}

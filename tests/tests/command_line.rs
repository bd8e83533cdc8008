//! The compiler's command line: arguments, exit codes, what is printed where.

use std::process::Command;
use std::sync::OnceLock;

use qwen2c_tests::{Build, Golden, Outcome, Program, compiler, run};
use tempfile::TempDir;

/// The compiler with these arguments, and no checkpoints but those that they name.
#[track_caller]
fn qwen2c(arguments: &[&str]) -> Outcome {
    run(Command::new(compiler()).args(arguments).env("HF_HUB_CACHE", "/nonexistent"))
}

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

#[test]
fn the_compiler_lists_what_can_be_named() {
    let models = qwen2c(&["models"]).success().text().to_lowercase();
    for name in ["0.5b", "1.5b", "7b", "72b", "57b-a14b", "qwen2.5-7b", "qwen1.5-moe-a2.7b"] {
        assert!(models.contains(name), "`{name}` is not in\n{models}");
    }
    let targets = qwen2c(&["targets"]).success().text();
    for name in ["native", "x86-64-v3", "x86-64-v4", "x86-64-amx"] {
        assert!(targets.contains(name), "`{name}` is not in\n{targets}");
    }
    let passes = qwen2c(&["passes"]).success().text();
    for name in ["fuse_attention", "merge_qkv_projections", "merge_gate_and_up", "remove_dead_values"] {
        assert!(passes.contains(name), "`{name}` is not in\n{passes}");
    }
    assert!(passes.contains("optional") && passes.contains("mandatory"), "{passes}");
}

#[test]
fn help_and_version_are_answers() {
    for arguments in [&["--help"][..], &["build", "--help"], &["plan", "--help"]] {
        assert!(qwen2c(arguments).success().text().contains("Usage"), "{arguments:?}");
    }
    assert!(qwen2c(&["--version"]).success().text().starts_with("qwen2c 0."));
    for arguments in [&["--help"][..], &["run", "--help"], &["bench", "--help"]] {
        let text = talking().run(arguments.iter().copied()).success().text();
        assert!(text.contains("--threads"), "{arguments:?}\n{text}");
    }
    talking().run(["--version"]).success();
}

#[test]
fn wrong_usage_of_the_compiler_ends_with_2() {
    let model = Golden::load("dense-gqa").model();
    let model = model.to_str().expect("UTF-8");
    let build = |more: &[&'static str]| [&["build", "--model", model, "-o", "/nonexistent/p"], more].concat();
    qwen2c(&[]).code().filter(|&code| code == 2).expect("no command is wrong usage");
    qwen2c(&["biuld"]).refused(2, &["build"]);
    qwen2c(&["build"]).refused(2, &["--model"]);
    qwen2c(&build(&["--no-pass", "place_buffers"])).refused(2, &["place_buffers"]);
    qwen2c(&build(&["--no-pass", "fuse_atention"])).refused(2, &["fuse_attention"]);
    qwen2c(&build(&["--dtype", "f8"])).refused(2, &["f8", "bf16"]);
    qwen2c(&build(&["--quant", "int4:48"])).refused(2, &["32, 64 or 128", "int4:32"]);
    qwen2c(&build(&["--emit", "fussed"])).refused(2, &["fused"]);
    qwen2c(&build(&["--context", "0"])).refused(2, &["context"]);
}

#[test]
fn targets_that_cannot_share_a_program_are_refused_by_name() {
    let model = Golden::load("dense-gqa").model();
    let model = model.to_str().expect("UTF-8");
    let build = |more: &[&str]| qwen2c(&[&["build", "--model", model], more].concat());
    build(&["--target", "sm_80,x86-64-v3"]).refused(2, &["sm_80", "x86-64-v3", "one program for each"]);
    build(&["--target", "sm_80", "--ptxas", "/bin/true"]).refused(1, &["/bin/true", "--ptxas none"]);
    qwen2c(&["plan", "--model", "7B", "--target", "sm_90", "--device", "a10"]).refused(1, &["a10", "sm_86"]);
    qwen2c(&["plan", "--model", "7B", "--target", "sm_80", "--device", "a100"]).refused(2, &["a100-80g"]);
}

#[test]
fn a_name_that_is_a_checkpoint_s_directory_too_is_refused_with_both_ways_out() {
    let folder = TempDir::with_prefix("qwen2c-test-").expect("a temporary directory");
    let plan = |model: &str| {
        let arguments = ["plan", "--target", "x86-64-v3", "--bandwidth", "50", "--json", "--model", model];
        run(Command::new(compiler()).args(arguments).current_dir(folder.path()))
    };
    // Neither a program nor a directory with something else is what `--model` could mean.
    std::fs::create_dir(folder.path().join("7b")).expect("a writable directory");
    std::fs::write(folder.path().join("0.5B"), "a program").expect("a writable directory");
    assert_eq!(plan("7b").success().json()["model"], "qwen2-7b");
    assert_eq!(plan("0.5B").success().json()["model"], "qwen2-0.5b");
    let config = Golden::load("dense-gqa").model().join("config.json");
    std::fs::copy(config, folder.path().join("7b/config.json")).expect("a copy");
    plan("7b").refused(1, &["`./7b` names the directory", "`Qwen/Qwen2-7B` the published model"]);
    // Where the weights are named, the name only says what they should be.
    let build = ["build", "--target", "x86-64-v3", "--weights", "./7b", "--model", "7b"];
    let built = run(Command::new(compiler()).args(build).current_dir(folder.path()));
    built.refused(1, &["model.safetensors"]);
    assert_eq!(plan("./7b").success().json()["model"], "qwen2-93k");
    assert_eq!(plan("Qwen/Qwen2-7B").success().json()["model"], "qwen2-7b");
}

#[test]
fn near_misses_get_a_suggestion() {
    let refused = |arguments: &[&str], suggestion: &str| {
        let outcome = qwen2c(arguments);
        assert!(matches!(outcome.code(), Some(1 | 2)), "{outcome:?}");
        assert!(outcome.stderr.contains(suggestion), "`{suggestion}` is not suggested\n{}", outcome.stderr);
    };
    refused(&["plan", "--model", "7b", "--target", "x86-64-v33"], "x86-64-v3");
    refused(&["plan", "--model", "qwen2-7", "--target", "x86-64-v3"], "qwen2-7b");
}

#[test]
fn a_device_s_plan_foretells_prompts_in_long_chunks() {
    let plan = |arguments: &[&str]| {
        let all = ["plan", "--model", "7B", "--target", "sm_80", "--quant", "none", "--json"];
        qwen2c(&[&all, arguments].concat()).success().json()
    };
    let long = plan(&[]);
    let chunks: Vec<_> =
        long["prompts"].as_array().expect("prompts").iter().map(|p| &p["chunk_tokens"]).collect();
    assert_eq!(chunks, [512, 2048]);
    let fill = |number: usize| long["prompts"][number]["wave_fill"].as_f64().expect("a share");
    // 108 multiprocessors: 36, 28, 296 and 28 blocks of a product's columns for each 128 rows.
    assert!((0.70..0.80).contains(&fill(0)) && (0.90..0.95).contains(&fill(1)), "{long}");
    let rate = |number: usize| long["prompts"][number]["tokens_per_s"].as_f64().expect("a rate");
    // 13 GFLOP a token at 312 TFLOP/s.
    assert!(rate(0) < rate(1) && rate(1) < 0.7 * 24_000.0, "{long}");
    let bytes = |plan: &serde_json::Value| plan["memory"]["activation_bytes"].as_u64().expect("bytes");
    let short = plan(&["--context", "256"]);
    assert_eq!(short["prompts"].as_array().map(Vec::len), Some(0), "{short}");
    assert!(bytes(&long) > 4 * bytes(&short), "activations are as many as the longest chunk's");
}

/// What an A100 is to reach: at 85 % of its bandwidth, 1.5 µs a launch and 1.4 µs a barrier.
#[test]
fn the_plan_of_an_a100_reaches_its_rates_and_says_what_limits_them() {
    let plan = |model: &str, more: &[&str]| {
        let all = ["plan", "--model", model, "--target", "sm_80", "--device", "a100-80g", "--dtype", "bf16"];
        qwen2c(&[&all, more].concat()).success()
    };
    let persistent = ["--quant", "none", "--pass", "persistent_decode"];
    for (model, more, least) in [
        ("7b", &["--quant", "none"][..], 115.0),
        ("7b", &["--quant", "int4"], 330.0),
        ("0.5b", &["--quant", "none"], 600.0),
        ("0.5b", &persistent, 1200.0),
    ] {
        let json = plan(model, &[more, &["--json"]].concat()).json();
        let prediction = &json["prediction"];
        let number = |name: &str| prediction[name].as_f64().expect("a number");
        let (rate, machine) = (number("tokens_per_s"), &prediction["machine"]);
        assert!(rate >= least, "{model} {more:?}: {rate} tokens/s, {least} at least");
        // The bound is what the memory alone would allow.
        let bandwidth = machine["bandwidth_bytes_per_s"].as_f64().expect("a rate");
        assert!((bandwidth / (0.85 * 2039e9) - 1.0).abs() < 1e-9, "{machine}");
        assert!(rate < bandwidth / number("bytes_per_token"), "{prediction}");
        assert_eq!(prediction["limit"], "memory_bandwidth", "{prediction}");
        let text = plan(model, more).text();
        assert!(text.contains("limited by memory bandwidth"), "{text}");
    }
    // Memory without a limit leaves the other two.
    for (model, quant, limit, words) in [
        ("0.5b", "none", "launches", "limited by the time of launches"),
        ("7b", "int4", "arithmetic", "limited by arithmetic"),
    ] {
        let more = ["--quant", quant, "--bandwidth", "1000000"];
        let prediction = plan(model, &[&more[..], &["--json"]].concat()).json()["prediction"].clone();
        assert_eq!(prediction["limit"], limit, "{prediction}");
        let number = |name: &str| prediction[name].as_f64().expect("a number");
        let operations_per_s = prediction["machine"]["operations_per_s"].as_f64().expect("a rate");
        let operations_s = number("operations_per_token") / operations_per_s;
        let launches_s = number("launches_in_a_row") * 1.5e-6;
        let token_s = 1.0 / number("tokens_per_s");
        assert!((token_s / (operations_s + launches_s) - 1.0).abs() < 1e-6, "{prediction}");
        let text = plan(model, &more).text();
        assert!(text.contains(words), "{text}");
    }
}

/// The shared expert of a block runs beside the choice of the others.
#[test]
fn launches_side_by_side_count_once() {
    for (model, more, has_branches) in [
        ("qwen1.5-moe-a2.7b", &[][..], true),
        ("qwen1.5-moe-a2.7b", &["--no-pass", "interleave_independent_operations"], true),
        ("0.5b", &[], false),
        ("qwen1.5-moe-a2.7b", &["--pass", "persistent_decode"], false),
    ] {
        let all = ["plan", "--model", model, "--target", "sm_80", "--device", "a100-80g", "--json"];
        let prediction = qwen2c(&[&all, more].concat()).success().json()["prediction"].clone();
        let number = |name: &str| prediction[name].as_f64().expect("a number");
        let (all, in_a_row) = (number("launches_per_token"), number("launches_in_a_row"));
        assert_eq!(in_a_row < all, has_branches, "{model} {more:?}: {prediction}");
    }
}

#[test]
fn a_plan_is_told_without_a_checkpoint() {
    let plan =
        qwen2c(&["plan", "--model", "7B", "--target", "x86-64-v4", "--bandwidth", "100"]).success().text();
    assert!(plan.contains("tokens/s") && plan.contains("int4"), "{plan}");
    let json = qwen2c(&["plan", "--model", "0.5b", "--target", "x86-64-v3", "--bandwidth", "50", "--json"])
        .success()
        .json();
    assert!(json.is_object(), "{json}");
    // Half a billion parameters of 8.5 bits: the plan counts them without reading one.
    assert_eq!(json["quant"], "int8");
    let bytes = json["memory"]["weight_bytes"].as_u64().expect("weight_bytes");
    assert!((520_000_000..540_000_000).contains(&bytes), "{bytes}");
}

#[test]
fn a_build_reports_and_a_quiet_one_does_not() {
    let report = &talking().report;
    let text = format!("{}{}", report.text(), report.stderr);
    for part in ["fuse_attention", "tokens/s", "program"] {
        assert!(text.contains(part), "`{part}` is not in the report\n{text}");
    }
    assert!(!text.contains("relative error"), "nothing was quantized\n{text}");
    let quiet = Build::new(Golden::load("dense-gqa").model()).with(["--quiet"]).finish();
    assert_eq!((quiet.report.text(), quiet.report.stderr.clone()), (String::new(), String::new()));
    let entries: Vec<_> = std::fs::read_dir(quiet.directory()).expect("readable").collect();
    assert_eq!(entries.len(), 1, "a build leaves its output alone: {entries:?}");
}

#[test]
fn a_model_is_quantized_by_default_and_told_what_it_lost() {
    let scratch = TempDir::with_prefix("qwen2c-test-").expect("a temporary directory");
    let output = scratch.path().join("program");
    let mut command = Command::new(compiler());
    command.arg("build").arg("--model").arg(Golden::load("moe-sparse-step").model());
    let report = run(command.args(["--target", "native", "-o"]).arg(&output)).success().text();
    assert!(report.contains("`--quant none`"), "{report}");
    for class in ["embedding", "attention qkv", "attention output", "experts", "gate and up", "down"] {
        let line = report.lines().find(|line| line.trim_start().starts_with(class));
        let line = line.unwrap_or_else(|| panic!("`{class}` is not in the report\n{report}"));
        let words: Vec<&str> = line.rsplit(' ').collect();
        let percent: f64 = words[3].parse().unwrap_or_else(|_| panic!("no number: {line}"));
        assert!(line.contains("int8") && (0.2..0.8).contains(&percent), "{line}");
    }
    let info = run(Command::new(&output).args(["info", "--json"])).success().json();
    assert_eq!(info["quant"], "int8");
}

#[test]
fn a_checkpoint_without_tokenizer_says_so() {
    let report = &bare().report;
    let text = format!("{}{}", report.text(), report.stderr);
    assert!(text.contains("tokenizer"), "{text}");
    bare().run(["run", "-p", "hello"]).refused(1, &["tokenizer", "--tokens"]);
}

#[test]
fn the_account_of_time_names_the_stages() {
    let timed = Build::new(Golden::load("dense-gqa").model()).with(["--time-passes"]).finish();
    let text = format!("{}{}", timed.report.text(), timed.report.stderr);
    for part in ["mlir", "llvm", "fuse_attention"] {
        assert!(text.contains(part), "`{part}` is not in\n{text}");
    }
}

#[test]
fn inspect_shows_programs_and_checkpoints() {
    let program = talking().path();
    let program = program.to_str().expect("UTF-8");
    let text = qwen2c(&["inspect", program]).success().text();
    assert!(text.contains("qwen2") && text.contains("f32"), "{text}");
    assert!(qwen2c(&["inspect", program, "--json"]).success().json().is_object());
    for name in ["dense-mha", "gguf-llama"] {
        let model = Golden::load(name).model();
        let text = qwen2c(&["inspect", model.to_str().expect("UTF-8")]).success().text();
        assert!(text.contains("hidden"), "{text}");
    }
}

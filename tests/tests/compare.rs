//! `qwen2c compare` with emitted programs and a peer that pretends to be `llama-bench`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use qwen2c_tests::{Build, Golden, Outcome, Program, compiler, run};

fn program() -> &'static Program {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    PROGRAM.get_or_init(|| Build::new(Golden::load("dense-gqa").model()).finish())
}

fn compare(arguments: &[&str]) -> Outcome {
    run(Command::new(compiler()).arg("compare").args(arguments))
}

/// An executable script beside the program.
fn script(name: &str, text: &str) -> PathBuf {
    let path = program().directory().join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("writable");
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("our file");
    path
}

/// A file that begins as a GGUF file does.
fn model(name: &str) -> PathBuf {
    let path = program().directory().join(name);
    fs::write(&path, b"GGUF and more").expect("writable");
    path
}

fn peer(program: &Path, model: &Path) -> String {
    format!("{}:{}", program.display(), model.display())
}

#[test]
fn a_program_and_a_peer_are_measured_side_by_side() {
    // Answers what it was asked: -m MODEL -p P -n N -d D -r 1 -o json -t T.
    let bench = script(
        "llama-bench",
        r#"echo "[{\"n_prompt\": $4, \"n_gen\": $6, \"n_depth\": $8, \"n_threads\": ${14}, \"avg_ts\": 12.5}]""#,
    );
    let peer = peer(&bench, &model("small-Q4_0.gguf"));
    let page = program().directory().join("page.html");
    let path = program().path();
    let common = ["-r", "1", "-p", "8", "-n", "4", "-d", "6", "--threads", "1", "--llama-bench", &peer];
    let with = |more: &[&'static str]| [&[path.to_str().expect("UTF-8")], &common[..], more].concat();
    let json = compare(&with(&["--json"])).success().json();
    let entrants = json["entrants"].as_array().expect("entrants");
    let tests = |entrant: usize| {
        let results = entrants[entrant]["results"].as_array().expect("results").iter();
        results.map(|result| result["test"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(tests(0), ["pp8", "tg4@d6"]);
    assert_eq!(tests(1), ["pp8", "tg4@d6"]);
    assert_eq!(entrants[1]["name"], "llama.cpp small-Q4_0.gguf");
    assert_eq!(entrants[1]["quant"], "Q4_0");
    assert_eq!(entrants[1]["threads"], 1);
    assert_eq!(entrants[1]["results"][1]["tokens_per_s"]["median"], 12.5);
    assert!(json["kernels"].as_array().is_some_and(|kernels| kernels.len() > 4), "{json}");
    assert!(json["peak"]["read_bytes_per_s"]["median"].as_f64().is_some_and(|rate| rate > 1e6), "{json}");
    let page_argument = page.to_str().expect("UTF-8");
    let arguments = [&with(&[])[..], &["--html", page_argument]].concat();
    let text = compare(&arguments).success().text();
    assert!(text.contains("pp8") && text.contains("llama.cpp small-Q4_0.gguf"), "{text}");
    let page = fs::read_to_string(page).expect("it was written");
    assert!(page.contains("</html>") && page.contains("tg4@d6"), "{} bytes", page.len());
}

#[test]
fn what_cannot_be_compared_is_named_before_anything_is_measured() {
    let path = program().path();
    let path = path.to_str().expect("UTF-8");
    compare(&[]).refused(2, &["PROGRAM"]);
    compare(&["/nonexistent/program"]).refused(1, &["/nonexistent/program"]);
    let model = model("other-Q8_0.gguf");
    compare(&[model.to_str().expect("UTF-8")]).refused(1, &["other-Q8_0.gguf", "qwen2c build"]);
    compare(&["/bin/true"]).refused(1, &["info --json", "not understood"]);
    compare(&[path, "-p", "0", "-n", "0"]).refused(2, &["nothing is left"]);
    compare(&[path, "-d", "1000000"]).refused(1, &["does not fit"]);
    compare(&[path, "--html", "/nonexistent/page.html"]).refused(1, &["/nonexistent/page.html"]);
    compare(&[path, "--llama-bench", "no-colon"]).refused(2, &["PATH:MODEL.gguf"]);
    compare(&[path, "--llama-bench", &peer(Path::new("/nonexistent/bench"), &model)])
        .refused(1, &["/nonexistent/bench"]);
    compare(&[path, "--llama-bench", &peer(Path::new("/bin/true"), Path::new("/nonexistent.gguf"))])
        .refused(1, &["/nonexistent.gguf"]);
    compare(&[path, "--llama-bench", &peer(Path::new("/bin/true"), Path::new("/bin/true"))])
        .refused(1, &["not a GGUF file"]);
}

#[test]
fn a_peer_that_fails_or_says_something_else_is_quoted() {
    let path = program().path();
    let refused = |bench: &Path, parts: &[&str]| {
        let peer = peer(bench, &model("third-Q8_0.gguf"));
        let path = path.to_str().expect("UTF-8");
        compare(&[path, "-r", "1", "-p", "4", "-n", "0", "--llama-bench", &peer]).refused(1, parts);
    };
    refused(&script("failing", "echo 'error: unknown model' >&2; exit 7"), &["unknown model", "7"]);
    refused(&script("talking", "echo '| model | size |'"), &["not understood", "| model | size |"]);
    refused(&script("idle", "echo '[]'"), &["did not measure", "prompt of 4 tokens"]);
}

//! Memory of emitted programs and of the compiler, read from the system.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use qwen2c_tests::{Build, Golden, Program, compiler, smollm2_gguf};
use serde_json::Value;
use tempfile::TempDir;

const MEBIBYTE: u64 = 1 << 20;
/// What a program may use beyond its plan: stacks, tokenizer, prompt, the allocator's own.
const UNPLANNED_BYTES: u64 = 16 * MEBIBYTE;

/// Sizes in `/proc/<pid>/status`, in bytes; empty once the process has ended.
fn sizes(child: &Child) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.strip_suffix(" kB")?.split_once(':'));
    lines
        .filter_map(|(name, kilobytes)| Some((name.to_owned(), kilobytes.trim().parse::<u64>().ok()? << 10)))
        .collect()
}

/// Runs to the end; the largest value of each size that was seen.
#[track_caller]
fn largest_sizes(command: &mut Command) -> BTreeMap<String, u64> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut largest = BTreeMap::new();
    loop {
        for (name, bytes) in sizes(&child) {
            let entry = largest.entry(name).or_insert(0);
            *entry = bytes.max(*entry);
        }
        if let Some(status) = child.try_wait().expect("ours") {
            let output = child.wait_with_output().expect("ended");
            assert!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
            return largest;
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// Fills the context and compares with the plan.
#[track_caller]
fn assert_planned(program: &Program, prompt: &[u32]) {
    let info: Value = program.run(["info", "--json"]).success().json();
    let planned = info["arena_bytes"].as_u64().expect("arena_bytes");
    let file = info["program_bytes"].as_u64().expect("program_bytes");
    let prompt = qwen2c_tests::id_list(prompt);
    let mut command = program.command([
        "run",
        "--tokens",
        &prompt,
        "--ignore-eos",
        "--temperature",
        "0",
        "--print-tokens",
        "--quiet",
    ]);
    let largest = largest_sizes(&mut command);
    let (anonymous, mapped) = (largest["RssAnon"], largest["RssFile"]);
    eprintln!("anonymous {anonymous} of {planned} planned, file-backed {mapped} of {file} bytes");
    assert!(anonymous <= planned + UNPLANNED_BYTES, "{anonymous} anonymous bytes, {planned} planned");
    // libc and the loader are files too.
    assert!(mapped <= file + 4 * MEBIBYTE, "{mapped} file-backed bytes of a program of {file}");
}

#[test]
fn a_full_context_needs_what_was_planned() {
    for name in ["talking", "moe-normalized"] {
        let golden = Golden::load(name);
        let program = Build::new(golden.model()).finish();
        assert_planned(&program, &golden.prompts[&300].tokens);
    }
    let Some(model) = smollm2_gguf() else { return };
    let program = Build::new(model).with(["--context", "1024", "--dtype", "bf16"]).finish();
    let prompt: Vec<u32> = (0..960).map(|position| 100 + position * 7 % 4000).collect();
    assert_planned(&program, &prompt);
}

#[test]
fn generation_allocates_nothing() {
    for name in ["talking", "moe-sparse-step"] {
        let program = Build::new(Golden::load(name).model()).finish();
        let json = program.run(["bench", "-p", "32", "-n", "16", "-r", "2", "--json"]).success().json();
        assert_eq!(json["allocations_per_token"].as_f64(), Some(0.0), "{name}: {json}");
    }
}

#[test]
fn a_build_streams() {
    if std::env::var_os("QWEN2C_TEST_FULL").is_none() {
        eprintln!("skipped: a build of 3 GB runs where QWEN2C_TEST_FULL is set");
        return;
    }
    let directory = TempDir::with_prefix("qwen2c-test-").expect("a temporary directory");
    let mut command = Command::new(compiler());
    command.args([
        "build",
        "--model",
        "1.5B",
        "--weights",
        "random",
        "--dtype",
        "bf16",
        "--quant",
        "none",
        "--target",
        "x86-64-v3",
    ]);
    let largest = largest_sizes(command.args(["--quiet", "-o"]).arg(directory.path().join("program")));
    let peak = largest["VmHWM"];
    eprintln!("the compiler's peak for 1.5B at bf16: {peak} bytes");
    assert!(peak < 1536 * MEBIBYTE, "{peak} bytes");
}

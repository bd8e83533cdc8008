//! Emitted programs that were altered, and prompts that cannot be served.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use qwen2c_format::ProgramFile;
use qwen2c_tests::{Build, Golden, Program, compiler, run, run_with_input};
use tempfile::TempDir;

fn talking() -> &'static Program {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    PROGRAM.get_or_init(|| Build::new(Golden::load("talking").model()).finish())
}

/// Where the head and the weights of the program lie.
fn parts() -> ProgramFile {
    ProgramFile::read(&fs::File::open(talking().path()).expect("readable")).expect("a program")
}

/// Runs an altered copy of the program: `run`, and `qwen2c inspect` on it.
#[track_caller]
fn refused(alter: impl FnOnce(&mut Vec<u8>), parts: &[&str]) {
    let directory = TempDir::with_prefix("qwen2c-test-").expect("a temporary directory");
    let path = directory.path().join("altered");
    let mut bytes = fs::read(talking().path()).expect("readable");
    alter(&mut bytes);
    write_executable(&path, &bytes);
    run(Command::new(&path).args(["run", "--tokens", "1,2", "-n", "2", "--quiet"])).refused(1, parts);
    run(Command::new(compiler()).arg("inspect").arg(&path)).refused(1, parts);
}

fn write_executable(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("writable");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("ours");
}

#[test]
fn every_section_of_the_head_is_guarded() {
    let locator = parts().locator;
    let (first, weights) = (locator.header_offset as usize, locator.weights_offset as usize);
    // Somewhere in the header and in every 256 bytes of the sections behind it.
    let content = fs::read(talking().path()).expect("readable");
    let end = (first..weights).rev().find(|&offset| content[offset] != 0).expect("a head");
    let stride = ((end - first) / 24).max(1);
    for offset in (first..end).step_by(stride).filter(|&offset| content[offset] != 0) {
        refused(|bytes| bytes[offset] ^= 0x10, &["program"]);
    }
}

#[test]
fn cut_and_stripped_are_told_apart() {
    let locator = parts().locator;
    for bytes in [locator.file_bytes - 1, locator.weights_offset + 5, locator.header_offset + 300] {
        refused(|program| program.truncate(bytes as usize), &["cut short", &locator.file_bytes.to_string()]);
    }
    let directory = TempDir::with_prefix("qwen2c-test-").expect("a temporary directory");
    let path: PathBuf = directory.path().join("stripped");
    run(Command::new("strip").arg("-o").arg(&path).arg(talking().path())).success();
    run(Command::new(&path).args(["run", "--tokens", "1"])).refused(1, &["stripped"]);
    run(Command::new(compiler()).arg("inspect").arg(&path)).refused(1, &["stripped"]);
}

#[test]
fn an_altered_weight_is_found_by_verifying() {
    let locator = parts().locator;
    let directory = TempDir::with_prefix("qwen2c-test-").expect("a temporary directory");
    let path = directory.path().join("altered");
    let mut bytes = fs::read(talking().path()).expect("readable");
    bytes[locator.weights_offset as usize + 1000] ^= 1;
    write_executable(&path, &bytes);
    run(Command::new(&path).args(["info", "--verify"])).refused(1, &["weight"]);
}

#[test]
fn a_self_test_on_altered_weights_fails() {
    let file = parts();
    let directory = TempDir::with_prefix("qwen2c-test-").expect("a temporary directory");
    let path = directory.path().join("altered");
    let mut bytes = fs::read(talking().path()).expect("readable");
    let norm = file.weights.entries.iter().find(|weight| weight.name.contains("norm")).expect("a norm");
    let start = (file.locator.weights_offset + norm.offset) as usize;
    bytes[start..start + norm.bytes as usize].fill(0x41);
    write_executable(&path, &bytes);
    let outcome = run(Command::new(&path).arg("self-test"));
    assert_eq!(outcome.code(), Some(1), "{}{}", outcome.text(), outcome.stderr);
}

#[test]
fn prompts_that_cannot_be_served_are_refused() {
    let ids = |ids: &str| talking().run(["run", "--tokens", ids, "--quiet"]);
    ids("499").refused(1, &["499"]);
    ids("1,2,4000000000").refused(1, &["4000000000", "498"]);
    let long = (0..513).map(|id| (id % 300).to_string()).collect::<Vec<_>>().join(",");
    ids(&long).refused(1, &["513", "512"]);
    talking().run(["run", "--raw", "-p", ""]).refused(1, &["empty"]);
    talking().run(["run", "-f", "/nonexistent/prompt"]).refused(1, &["/nonexistent/prompt"]);
    talking()
        .run(["logits", "--tokens", "1", "-o", "/nonexistent/logits"])
        .refused(1, &["/nonexistent/logits"]);
    talking().run(["perplexity", "/nonexistent/text"]).refused(1, &["/nonexistent/text"]);
}

#[test]
fn invalid_utf8_on_standard_input_is_said() {
    let outcome = run_with_input(&mut talking().command(["--quiet"]), b"the \xff\xfe sky");
    outcome.refused(1, &["UTF-8"]);
    let file = talking().directory().join("invalid.txt");
    fs::write(&file, b"\xc3\x28").expect("writable");
    talking().run(["run", "-f", file.to_str().expect("UTF-8")]).refused(1, &["UTF-8"]);
    run_with_input(&mut talking().command(["--quiet"]), b"").refused(1, &["empty"]);
}

#[test]
fn a_full_context_is_said() {
    let prompt = (0..512).map(|id| (id % 300).to_string()).collect::<Vec<_>>().join(",");
    let outcome = talking().run(["run", "--tokens", &prompt, "-n", "4", "--ignore-eos", "--print-tokens"]);
    assert!(outcome.stderr.contains("context"), "{}{}", outcome.text(), outcome.stderr);
}

#[test]
fn a_processor_without_the_features_is_named() {
    if qwen2c_tests::has_matrix_unit() {
        eprintln!("this machine has every feature a target can ask for");
        return;
    }
    let model = Golden::load("dense-gqa").model();
    let program = Build::new(model).with(["--target", "x86-64-amx"]).finish();
    // As it is, without what the tests lend it.
    run(Command::new(program.path()).args(["run", "--tokens", "1", "-n", "1"])).refused(1, &["amx"]);
}

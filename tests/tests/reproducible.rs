//! The same inputs give the same bytes, wherever they lie.

use std::fs;
use std::path::Path;
use std::process::Command;

use qwen2c_tests::{Golden, compiler, copy_directory, goldens_directory, repository, run};
use tempfile::TempDir;

/// What the programs are built for where a test says nothing else.
const PROCESSOR: &[&str] = &["--target", "x86-64-v3"];

/// Builds in `working_directory` and returns the program.
fn built(working_directory: &Path, model: &Path, output: &Path, arguments: &[&str]) -> Vec<u8> {
    let mut command = Command::new(compiler());
    command
        .current_dir(working_directory)
        .args(["build", "--quiet"])
        .args(arguments)
        .arg("--model")
        .arg(model);
    run(command.arg("-o").arg(output)).success();
    fs::read(working_directory.join(output)).expect("a program")
}

/// Whether `needle` occurs in the file.
fn contains(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

/// Builds twice, from and to other directories by other ways of naming them.
#[track_caller]
fn assert_same_bytes(name: &str, arguments: &[&str]) {
    let first = TempDir::with_prefix("qwen2c-test-").expect("a temporary directory");
    let second = TempDir::with_prefix("qwen2c-another-name-").expect("a temporary directory");
    let model = goldens_directory().join(name);
    let expected = built(first.path(), &model, &first.path().join("program"), arguments);
    copy_directory(&model, &second.path().join("deeper").join(name));
    fs::create_dir(second.path().join("output")).expect("a directory");
    let copy = Path::new("deeper").join(name);
    let found = built(second.path(), &copy, Path::new("output/another-name"), arguments);
    let difference = expected.iter().zip(&found).position(|(a, b)| a != b);
    assert!(
        expected == found,
        "{name} {arguments:?}: {} and {} bytes, first difference at {difference:?}",
        expected.len(),
        found.len()
    );
}

#[test]
fn programs_do_not_depend_on_directories() {
    for name in ["dense-mha", "moe-sparse-step", "talking"] {
        assert_same_bytes(name, PROCESSOR);
    }
}

#[test]
fn programs_for_devices_do_not_depend_on_directories() {
    let assembler = std::env::var("QWEN2C_TEST_PTXAS").unwrap_or_else(|_| "none".to_owned());
    assert_same_bytes("dense-gqa", &["--target", "sm_80", "--quant", "int4", "--ptxas", &assembler]);
    assert_same_bytes("dense-gqa", &["--target", "sm_80,sm_90", "--ptxas", "none"]);
}

#[test]
fn programs_name_no_directory_of_this_machine() {
    let directory = TempDir::with_prefix("qwen2c-test-").expect("a temporary directory");
    let program = built(directory.path(), &Golden::load("talking").model(), Path::new("program"), PROCESSOR);
    let repository = repository().to_string_lossy().into_owned();
    assert!(!contains(&program, &repository), "the clone's directory is in the program");
    assert!(
        !contains(&program, &directory.path().to_string_lossy()),
        "the output's directory is in the program"
    );
    if let Ok(home) = std::env::var("HOME") {
        assert!(!contains(&program, &format!("{home}/")), "the home directory is in the program");
    }
}

/// The first processor that this process may run on.
fn first_processor() -> String {
    let status = fs::read_to_string("/proc/self/status").expect("Linux tells");
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("the list");
    line.trim().split([',', '-']).next().expect("one processor").to_owned()
}

#[test]
fn programs_do_not_depend_on_the_number_of_threads_that_pack() {
    let directory = TempDir::with_prefix("qwen2c-test-").expect("a temporary directory");
    let model = Golden::load("moe-sparse-step").model();
    let build = |mut command: Command, name: &str| {
        let output = directory.path().join(name);
        command.args(["build", "--quiet", "--target", "x86-64-v3", "--quant", "int4", "--model"]);
        run(command.arg(&model).arg("-o").arg(&output)).success();
        fs::read(output).expect("a program")
    };
    let mut alone = Command::new("taskset");
    alone.args(["--cpu-list", &first_processor()]).arg(compiler());
    assert!(build(alone, "one") == build(Command::new(compiler()), "all"), "one thread packs other bytes");
}

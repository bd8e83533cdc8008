//! What NVIDIA's assembler says of the emitted PTX: it is legal on every architecture, nothing is spilled, and
//! registers and shared memory stay what was last looked at.
//!
//! All architectures are asked about kernels of 4-bit weights, and about all others where
//! `QWEN2C_TEST_ALL_ARCHITECTURES` is set, which takes minutes; otherwise these are for the first one.
//!
//! Kernels have the shapes of Qwen2-7B, of one layer, or of a small mixture of experts; weights are random. The
//! kernel that runs a token in one launch is among them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use qwen2c_tests::{Build, Golden, Program, one_layer_of_7b, one_layer_of_experts, run, skip};
use tempfile::TempDir;

const ARCHITECTURES: [&str; 6] = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"];

/// Registers of a thread that leave a multiprocessor a block of 256.
const MOST_REGISTERS: u64 = 255;

/// The assembler: `QWEN2C_TEST_PTXAS`.
fn assembler() -> Option<PathBuf> {
    let found = std::env::var_os("QWEN2C_TEST_PTXAS").map(PathBuf::from);
    if found.is_none() {
        skip("QWEN2C_TEST_PTXAS does not name NVIDIA's assembler");
    }
    found
}

/// What the assembler reports of one entry point.
struct Usage {
    entry: String,
    registers: u64,
    shared_bytes: u64,
    spilled_bytes: u64,
}

/// The number in front of `unit` in a line, 0 where it is not there.
fn number_before(line: &str, unit: &str) -> u64 {
    let words: Vec<&str> = line[..line.find(unit).unwrap_or(0)].split_whitespace().collect();
    words.last().and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn usages(assembler: &Path, architecture: &str, ptx: &Path) -> Vec<Usage> {
    let mut command = Command::new(assembler);
    command.args(["-v", &format!("-arch={architecture}"), "-o", "/dev/null"]).arg(ptx);
    let outcome = run(&mut command).success();
    let mut usages: Vec<Usage> = Vec::new();
    for line in outcome.stderr.lines().chain(outcome.text().lines()) {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let entry = rest.split('\'').next().unwrap_or_default().to_owned();
            usages.push(Usage { entry, registers: 0, shared_bytes: 0, spilled_bytes: 0 });
        } else if let Some(usage) = usages.last_mut() {
            usage.spilled_bytes += number_before(line, "bytes spill stores");
            usage.registers += number_before(line, "registers");
            usage.shared_bytes += number_before(line, "bytes smem");
        }
    }
    assert!(!usages.is_empty(), "{}: no entry points\n{}", ptx.display(), outcome.stderr);
    usages
}

/// Dynamic shared memory of each entry point, from what `inspect` prints.
fn dynamic_shared_bytes(program: &Program, entry: &str) -> u64 {
    let text =
        run(Command::new(qwen2c_tests::compiler()).arg("inspect").arg(program.path())).success().text();
    let line = text.lines().find(|line| line.trim_start().starts_with(&format!("{entry}: ")));
    number_before(line.expect("every launch is listed"), "bytes of shared memory")
}

/// Builds in bf16, unless said otherwise, for an architecture and lists what its kernels use; nothing may be
/// spilled.
fn table(model: &Path, architecture: &str, more: &[&str]) -> Option<String> {
    let assembler = assembler()?;
    let arguments = ["--target", architecture, "--emit", "ptx", "--pass", "persistent_decode"];
    let dtype = if more.contains(&"--dtype") { &[][..] } else { &["--dtype", "bf16"] };
    // Only a checkpoint has quantized weights to keep.
    let weights = if more.contains(&"keep") { &[][..] } else { &["--weights", "random"] };
    let arguments = arguments.iter().chain(dtype).chain(weights).chain(more).copied();
    let program = Build::new(model).with(arguments).finish();
    let folder = program.directory().join("program.emit/ptx");
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("readable").path()).collect();
    files.sort();
    let mut lines = Vec::new();
    for usage in files.iter().flat_map(|file| usages(&assembler, architecture, file)) {
        let Usage { entry, registers, shared_bytes, spilled_bytes } = usage;
        assert!(spilled_bytes == 0, "{architecture} {more:?}: {entry} spills {spilled_bytes} bytes");
        assert!(registers <= MOST_REGISTERS);
        let shared_bytes = shared_bytes + dynamic_shared_bytes(&program, &entry);
        assert!(shared_bytes <= 99 << 10, "{architecture} {more:?}: {entry} takes {shared_bytes} bytes");
        lines.push(format!("{entry}: {registers} registers, {shared_bytes} bytes of shared memory"));
    }
    Some(lines.join("\n"))
}

/// Nothing is spilled, and the first architecture's budget is what was last looked at.
fn assert_budget(name: &str, model: &Path, more: &[&str]) {
    let asks_all = name == "7b-int4" || std::env::var_os("QWEN2C_TEST_ALL_ARCHITECTURES").is_some();
    for architecture in &ARCHITECTURES[..if asks_all { ARCHITECTURES.len() } else { 1 }] {
        let Some(table) = table(model, architecture, more) else { return };
        if *architecture == ARCHITECTURES[0] {
            insta::assert_snapshot!(format!("{name}.resources"), table);
        }
    }
}

fn assert_budget_of_7b(name: &str, more: &[&str]) {
    let scratch = TempDir::with_prefix("qwen2c-test-").expect("a temporary directory");
    assert_budget(name, &one_layer_of_7b(scratch.path()), more);
}

#[test]
fn weights_of_4_bits_stay_in_their_budget() {
    assert_budget_of_7b("7b-int4", &["--quant", "int4"]);
}

#[test]
fn weights_of_8_bits_stay_in_their_budget() {
    assert_budget_of_7b("7b-int8", &["--quant", "int8"]);
}

#[test]
fn weights_of_16_bits_stay_in_their_budget() {
    assert_budget_of_7b("7b-none", &["--quant", "none"]);
}

#[test]
fn weights_of_the_other_16_bits_stay_in_their_budget() {
    assert_budget_of_7b("7b-f16", &["--quant", "none", "--dtype", "f16"]);
}

#[test]
fn experts_stay_in_their_budget() {
    let model = Golden::load("moe-sparse-step").model();
    assert_budget("moe", &model, &["--quant", "none"]);
    assert_budget("moe-int8", &model, &["--quant", "int8"]);
}

#[test]
fn quantized_experts_stay_in_their_budget() {
    let scratch = TempDir::with_prefix("qwen2c-test-").expect("a temporary directory");
    assert_budget("moe-int4", &one_layer_of_experts(scratch.path()), &["--quant", "int4"]);
}

/// Blocks as GGUF has them: groups of 16 and 32, with scales and minima in f32.
#[test]
fn kept_formats_stay_in_their_budget() {
    for (name, golden) in [("dense-keep", "gguf-qwen2"), ("moe-keep", "gguf-qwen2moe")] {
        assert_budget(name, &Golden::load(golden).model(), &["--quant", "keep"]);
    }
}

/// Operations that fusions leave nothing of are kernels of their own here.
#[test]
fn unfused_kernels_stay_in_their_budget() {
    let listing = run(Command::new(qwen2c_tests::compiler()).arg("passes")).success().text();
    let optional = listing.lines().filter(|line| line.contains("optional"));
    let names = optional.filter_map(|line| line.split_whitespace().next());
    let mut switches = vec!["--quant", "none"];
    let fusions = names.filter(|name| *name != "persistent_decode");
    switches.extend(fusions.flat_map(|name| ["--no-pass", name]));
    assert!(switches.len() > 2 * 5, "{listing}");
    assert_budget_of_7b("7b-unfused", &switches);
}

/// All architectures in one program, with machine code of each beside the PTX.
#[test]
fn one_program_holds_code_for_all_architectures() {
    let Some(assembler) = assembler() else { return };
    let golden = Golden::load("dense-gqa");
    let targets = ARCHITECTURES.join(",");
    let assembler = assembler.to_str().expect("UTF-8");
    let program = Build::new(golden.model()).with(["--target", &targets, "--ptxas", assembler]).finish();
    let text =
        run(Command::new(qwen2c_tests::compiler()).arg("inspect").arg(program.path())).success().text();
    for architecture in ARCHITECTURES {
        assert!(text.contains(&format!("PTX for {architecture},")), "{text}");
        assert!(text.contains(&format!("cubin for {architecture},")), "{text}");
    }
}

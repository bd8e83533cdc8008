//! What the file of a CUDA program holds: weights once for any number of architectures, and PTX behind machine
//! code, which a user can choose.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use qwen2c_format::WEIGHTS_ALIGNMENT;
use qwen2c_tests::{Build, Device, Golden, Program, run};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Bytes of weights that are looked for in a file; a run so long occurs once by itself.
const SAMPLE_BYTES: usize = 256;

/// How often `needle` occurs in the file.
fn occurrences(haystack: &[u8], needle: &[u8]) -> usize {
    haystack.windows(needle.len()).filter(|window| *window == needle).count()
}

/// Bytes of each of a program's images, as `info` lists them.
fn image_bytes(program: &Program) -> Vec<u64> {
    let info = program.run(["info", "--json"]).success().json();
    let images = info["images"].as_array().expect("a list").iter();
    images.map(|image| image["bytes"].as_u64().expect("a number")).collect()
}

#[test]
fn several_architectures_share_one_copy_of_the_weights() {
    let model = Golden::load("dense-gqa").model();
    let build = |targets| Build::new(&model).with(["--target", targets, "--quant", "int4"]).finish();
    let (both, alone) = (build("sm_80,sm_90"), [build("sm_80"), build("sm_90")]);
    let file = |program: &Program| fs::read(program.path()).expect("a program");
    let info = both.run(["info", "--json"]).success().json();
    let weight_bytes = info["weight_bytes"].as_u64().expect("a number") as usize;
    let both_bytes = file(&both);
    let weights = &both_bytes[both_bytes.len() - weight_bytes..];
    for start in (0..weight_bytes - SAMPLE_BYTES).step_by(weight_bytes / 7) {
        let sample = &weights[start..start + SAMPLE_BYTES];
        assert_eq!(occurrences(&both_bytes, sample), 1, "weights from {start} on");
    }
    let images = image_bytes(&both);
    assert_eq!(images.len(), 2);
    for (program, own) in alone.iter().zip(&images) {
        let bytes = file(program);
        assert_eq!(image_bytes(program), [*own], "an architecture's code is the same in both files");
        assert!(bytes[bytes.len() - weight_bytes..] == *weights, "the weights are the same bytes");
        // Weights begin at the same alignment: what comes before them is larger by the other's code.
        let more = (both_bytes.len() - bytes.len()) as u64;
        let other = images.iter().sum::<u64>() - own;
        assert!(more.is_multiple_of(WEIGHTS_ALIGNMENT), "{more} bytes");
        assert!(more <= other.next_multiple_of(WEIGHTS_ALIGNMENT), "{more} bytes for {other} of code");
    }
}

/// Something that takes an assembler's arguments and makes what only looks like machine code.
fn assembler_of_nothing(folder: &Path) -> PathBuf {
    let path = folder.join("ptxas");
    // A shell writes it: what this process has open for writing, another test's child may hold open.
    let script = "printf '%s\\n' '#!/bin/sh' 'printf \"\\177ELF no code\\000\" > kernels.cubin' > \"$1\"; chmod +x \"$1\"";
    run(Command::new("/bin/sh").args(["-c", script, "sh"]).arg(&path)).success();
    path
}

/// The emulator refuses machine code and takes PTX, and its report tells both.
#[test]
fn ptx_is_loaded_where_machine_code_is_refused_and_at_once_where_it_is_asked_for() {
    let folder = TempDir::with_prefix("qwen2c-test-").expect("a temporary directory");
    let assembler = assembler_of_nothing(folder.path());
    let assembler = assembler.to_str().expect("UTF-8");
    let golden = Golden::load("dense-gqa");
    let program = Build::new(golden.model()).with(["--target", "sm_80", "--ptxas", assembler]).finish();
    let info = program.run(["info", "--json"]).success().json();
    assert_eq!(info["images"][1]["kind"], "cubin", "{info}");
    let ptx_bytes = info["images"][0]["bytes"].clone();
    let ask = ["bench", "-p", "2", "-n", "1", "-r", "1", "--json"];
    let device = Device::new(80, 0);
    for (value, refused) in [(None, 1), (Some("0"), 1), (Some("1"), 0)] {
        let mut command = device.command(&program, ask);
        command.envs(value.map(|value| ("QWEN2C_CUDA_USE_PTX", value)));
        let bench = run(&mut command).success().json();
        let name = bench["device"].as_str().expect("a name");
        assert!(name.ends_with(", PTX for sm_80"), "{name}");
        let report = device.report();
        assert_eq!(report["modules"], json!([{ "kind": "PTX", "bytes": ptx_bytes }]), "{value:?}");
        let refusals = report["refusals"].as_array().expect("a list");
        let of_machine_code = |refusal: &&Value| refusal["error"] == "CUDA_ERROR_NO_BINARY_FOR_GPU";
        assert_eq!(refusals.iter().filter(of_machine_code).count(), refused, "{value:?}: {report}");
        assert_eq!(refusals.len(), refused, "{value:?}: {report}");
    }
}

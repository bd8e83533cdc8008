//! A C program that opens the built library as `libcuda.so.1`, as programs open the driver.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::kernels::KERNELS;

/// The shared library, which cargo builds beside the tests of its crate.
fn library() -> PathBuf {
    let tests = std::env::current_exe().expect("the test's own path");
    let folder = tests.parent().expect("a folder");
    let library = folder.join("libqwen2c_emulator.so");
    assert!(library.is_file(), "{} was not built", library.display());
    library
}

#[test]
fn a_c_program_finds_a_driver() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::os::unix::fs::symlink(library(), folder.path().join("libcuda.so.1")).unwrap();
    let program = folder.path().join("program");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/driver/program.c");
    let compiled = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&program)
        .arg(source)
        .arg("-ldl")
        .output()
        .expect("a C compiler");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let ptx = folder.path().join("kernels.ptx");
    std::fs::write(&ptx, KERNELS).unwrap();
    let report = folder.path().join("report.json");
    let output = Command::new(program)
        .arg(ptx)
        .env("LD_LIBRARY_PATH", folder.path())
        .env("QWEN2C_EMULATOR_REPORT", &report)
        .output()
        .expect("a process");
    let told = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}\n{said}");
    assert_eq!(told, "NVIDIA A100-SXM4-80GB (emulated): 12080, 1001 1002 1003 1004\n");
    let report = std::fs::read_to_string(report).expect("a report, written at exit");
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!(report["kernels"]["add"]["calls"], 1);
    assert_eq!(report["faults"], serde_json::json!([]));
    // It ends without giving anything back.
    assert_eq!(report["leaks"]["contexts"], 1);
}

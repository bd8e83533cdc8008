//! Builds the runtime that every emitted program carries, and hands its archive to `include_bytes!`.
//!
//! The archive is made by a second cargo in the same workspace, because cargo has no stable way to
//! depend on a static library. That cargo must not see what was meant for the first one (wrappers,
//! flags, profiles), and the archive must not hold a path of this machine: programs built by two clones
//! of the repository have to be equal.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Settings of the outer cargo that would change the runtime or make the inner cargo fail.
const FOREIGN_VARIABLES: [&str; 9] = [
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_INCREMENTAL",
];

/// The runtime's profile: an abort is enough, because a panic hook has already reported.
const PROFILE: [&str; 5] = [
    "profile.release.panic='abort'",
    "profile.release.debug=0",
    "profile.release.opt-level=3",
    "profile.release.codegen-units=1",
    "profile.release.lto='fat'",
];

fn main() {
    let manifest_directory = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let workspace = manifest_directory.parent().expect("`compiler` lies inside the workspace").to_path_buf();
    for watched in ["runtime", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(watched).display());
    }

    let triple = variable("TARGET").into_string().expect("target triples are ASCII");
    let target_directory = shared_directory(&PathBuf::from(variable("OUT_DIR"))).join("runtime");
    build_runtime(&workspace, &target_directory, &triple);

    let archive = target_directory.join(&triple).join("release/libqwen2c_entry.a");
    println!("cargo::rustc-env=QWEN2C_RUNTIME_ARCHIVE={}", archive.display());
}

/// The outer cargo's target directory, of which `<profile>/build/<package>-<hash>/out` is the output
/// directory: the runtime is the same for every profile and for clippy, and takes a minute to build.
fn shared_directory(output_directory: &Path) -> &Path {
    let build =
        output_directory.ancestors().find(|path| path.file_name().is_some_and(|name| name == "build"));
    build.and_then(Path::parent).and_then(Path::parent).unwrap_or(output_directory)
}

/// Runs the inner cargo; ends the build script with its messages if it fails.
fn build_runtime(workspace: &Path, target_directory: &Path, triple: &str) {
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .current_dir(workspace)
        .args(["build", "--release", "--locked", "--package", "qwen2c-entry", "--lib", "--target", triple])
        .arg("--target-dir")
        .arg(target_directory);
    for setting in PROFILE {
        cargo.args(["--config", setting]);
    }
    for name in FOREIGN_VARIABLES {
        cargo.env_remove(name);
    }
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PROFILE_") {
            cargo.env_remove(name);
        }
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", path_remapping(workspace, target_directory));
    let status = cargo.status().unwrap_or_else(|error| panic!("cannot start cargo for the runtime: {error}"));
    assert!(status.success(), "the runtime of emitted programs did not build: its messages stand above");
}

/// Flags that replace the paths of this machine in the runtime's strings, in cargo's encoding.
fn path_remapping(workspace: &Path, target_directory: &Path) -> OsString {
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")))
        .unwrap_or_else(|| PathBuf::from("/nonexistent"));
    let mut flags = OsString::new();
    // The last matching prefix wins, so the innermost directory comes last.
    for (from, to) in [(cargo_home.as_path(), "cargo"), (workspace, "qwen2c"), (target_directory, "target")] {
        if !flags.is_empty() {
            flags.push("\u{1f}");
        }
        flags.push("--remap-path-prefix=");
        flags.push(from);
        flags.push("=");
        flags.push(to);
    }
    flags
}

/// A variable that cargo always sets for build scripts.
fn variable(name: &str) -> OsString {
    env::var_os(name).unwrap_or_else(|| panic!("cargo did not set {name}"))
}

//! The rooms of the repository: who may know whom, names, and how large everything is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use qwen2c_tests::{repository, run};
use serde_json::Value;

/// Lines of the longest file that is accepted.
const MOST_LINES_OF_A_FILE: usize = 440;
/// Names that say nothing about what a file is for.
const EMPTY_NAMES: [&str; 8] = ["util", "utils", "helper", "helpers", "common", "manager", "misc", "stuff"];

/// Where the runtime speaks to the system and to kernels.
const UNSAFE_FILES_OF_THE_RUNTIME: [&str; 23] = [
    "allocation.rs",
    "cuda/driver/context.rs",
    "cuda/driver/errors.rs",
    "cuda/driver/functions.rs",
    "cuda/driver/graph.rs",
    "cuda/driver/mod.rs",
    "cuda/driver/module.rs",
    "cuda/exchange.rs",
    "cuda/fake_driver/functions.rs",
    "cuda/fake_driver/mod.rs",
    "cuda/fake_driver/together.rs",
    "cuda/memory.rs",
    "cuda/persistent.rs",
    "execute/on_processor.rs",
    "interrupt.rs",
    "kernel.rs",
    "memory.rs",
    "peak/multiply.rs",
    "peak/read.rs",
    "peak/tiles.rs",
    "processor.rs",
    "safetensors.rs",
    "testing.rs",
];

/// For each crate of the workspace the crates of this workspace that it may use outside its tests.
const MAY_KNOW: [(&str, &[&str]); 12] = [
    ("qwen2c-request", &[]),
    ("qwen2c-format", &[]),
    ("qwen2c-graph", &["qwen2c-request"]),
    ("qwen2c-targets", &["qwen2c-request"]),
    ("qwen2c-runtime", &["qwen2c-format"]),
    ("qwen2c-entry", &["qwen2c-format", "qwen2c-runtime"]),
    // A compiled tokenizer is proven with the very encoder that programs carry.
    ("qwen2c-checkpoint", &["qwen2c-format", "qwen2c-graph", "qwen2c-request", "qwen2c-runtime"]),
    ("qwen2c", &["qwen2c-checkpoint", "qwen2c-format", "qwen2c-graph", "qwen2c-request", "qwen2c-targets"]),
    ("qwen2c-tests", &[]),
    // It must not share what it is to prove.
    ("qwen2c-emulator", &[]),
    ("qwen2c-matrix-unit", &[]),
    ("qwen2c-matrix-unit-preload", &["qwen2c-matrix-unit"]),
];

/// Names of the dependencies of every crate, without those of its tests.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let metadata = run(Command::new(cargo).current_dir(repository()).args([
        "metadata",
        "--no-deps",
        "--offline",
        "--locked",
        "--format-version",
        "1",
    ]))
    .success()
    .json();
    let name = |value: &Value| value["name"].as_str().expect("a name").to_owned();
    let packages = metadata["packages"].as_array().expect("packages");
    packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().expect("dependencies");
            let used =
                dependencies.iter().filter(|dependency| dependency["kind"] != "dev").map(name).collect();
            (name(package), used)
        })
        .collect()
}

#[test]
fn knowledge_has_one_direction() {
    let found = dependencies();
    let expected: BTreeSet<&str> = MAY_KNOW.iter().map(|(room, _)| *room).collect();
    assert_eq!(found.keys().map(String::as_str).collect::<BTreeSet<_>>(), expected, "the rooms");
    for (room, allowed) in MAY_KNOW {
        for used in found[room].iter().filter(|used| found.contains_key(*used)) {
            assert!(allowed.contains(&used.as_str()), "`{room}` must not know `{used}`");
        }
    }
}

#[test]
fn only_targets_know_llvm() {
    for (room, used) in dependencies() {
        for llvm in ["inkwell", "melior", "mlir-sys", "llvm-sys"] {
            assert!(room == "qwen2c-targets" || !used.contains(llvm), "`{room}` must not know `{llvm}`");
        }
    }
}

/// All Rust files under `directory`, without build outputs.
fn rust_files(directory: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a readable directory") {
        let path = entry.expect("a readable entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            rust_files(&path, into);
        } else if name.ends_with(".rs") {
            into.push(path);
        }
    }
}

/// Whether a file or folder inside a crate's sources holds unit tests.
fn is_tests(name: &std::ffi::OsStr) -> bool {
    name == "tests" || name == "tests.rs"
}

fn all_files() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    rust_files(&repository(), &mut files);
    files.sort();
    files
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("UTF-8");
            (path.strip_prefix(repository()).expect("in the repository").to_path_buf(), text)
        })
        .collect()
}

#[test]
fn files_are_short_and_say_what_they_are() {
    let mut lines_of_room: BTreeMap<PathBuf, usize> = BTreeMap::new();
    for (path, text) in all_files() {
        let lines = text.lines().count();
        assert!(lines <= MOST_LINES_OF_A_FILE, "{} has {lines} lines", path.display());
        // Tests inside a crate are introduced by what they test.
        let is_introduced =
            text.starts_with("//!") || path.iter().skip_while(|part| *part != "src").any(is_tests);
        assert!(is_introduced, "{} does not begin with what it is for", path.display());
        for part in &path {
            let stem = part.to_string_lossy();
            let stem = stem.trim_end_matches(".rs");
            assert!(!EMPTY_NAMES.contains(&stem), "the name of {} says nothing", path.display());
        }
        let room: PathBuf = path.iter().take_while(|part| *part != "src" && *part != "tests").collect();
        *lines_of_room.entry(room).or_default() += lines;
    }
    let total: usize = lines_of_room.values().sum();
    for (room, lines) in &lines_of_room {
        eprintln!("{lines:6} {}", room.display());
    }
    eprintln!("{total:6} lines of Rust");
}

#[test]
fn unsafe_code_stays_in_its_rooms() {
    let allowed = |path: &Path| {
        path.starts_with("targets")
            || path.starts_with("runtime/entry")
            || UNSAFE_FILES_OF_THE_RUNTIME.iter().any(|file| path == Path::new("runtime/src").join(file))
            || path.starts_with("tests/emulator/src/driver")
            || path.starts_with("tests/emulator/tests/driver")
            || path.starts_with("tests/matrix_unit")
            || path.ends_with("tests/rooms.rs")
    };
    for (path, text) in all_files() {
        let code = text.lines().map(str::trim_start).filter(|line| !line.starts_with("//"));
        let unsafe_line =
            code.into_iter().find(|line| line.contains("unsafe {") || line.contains("unsafe fn"));
        if let Some(line) = unsafe_line {
            assert!(allowed(&path), "{}: `{line}`", path.display());
        }
    }
}

/// Cargo looks for no tests where a crate has one executable of them: a file that is no module of it would be
/// left out in silence.
#[test]
fn every_file_of_tests_is_a_module() {
    for folder in ["tests/tests", "tests/emulator/tests"] {
        let folder = repository().join(folder);
        let main = std::fs::read_to_string(folder.join("main.rs")).expect("UTF-8");
        for entry in std::fs::read_dir(&folder).expect("a readable directory") {
            let path = entry.expect("a readable entry").path();
            let is_file = path.extension().is_some_and(|extension| extension == "rs");
            let module = path.file_stem().expect("a name").to_string_lossy().into_owned();
            let is_module = module == "main" || main.contains(&format!("\nmod {module};\n"));
            assert!(!is_file || is_module, "{} is no module of its executable", path.display());
        }
    }
}

//! The compiler's binary, and programs built with it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::{Outcome, repository, run, without_cargo_variables};

/// The `qwen2c` binary: `QWEN2C` where it is set, else built once from this clone.
pub fn compiler() -> &'static Path {
    static COMPILER: OnceLock<PathBuf> = OnceLock::new();
    COMPILER.get_or_init(|| built_file("QWEN2C", "qwen2c", "qwen2c"))
}

/// What the package `package` is built to: the file that the variable names where it is set, else `file` of a
/// build of this clone.
pub(crate) fn built_file(variable: &str, package: &str, file: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "{variable} names `{}`, which is not a file", path.display());
        return path.canonicalize().expect("it is a file");
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--quiet", "-p", package]).current_dir(repository());
    run(without_cargo_variables(&mut build)).success();
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
    repository().join(target).join("release").join(file)
}

/// The level whose programs use the matrix unit.
const MATRIX_LEVEL: &str = "x86-64-amx";

/// What a processor with a matrix unit has besides; the unit itself can be computed.
const AROUND_MATRIX_UNIT: [&str; 7] =
    ["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd", "avx512_vnni", "avx512_bf16"];

fn has_features(needed: &[&str]) -> bool {
    let features = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    needed.iter().all(|feature| features.split_whitespace().any(|found| found == *feature))
}

/// Whether this machine has a matrix unit.
pub fn has_matrix_unit() -> bool {
    has_features(&["amx_tile", "amx_bf16", "amx_int8"])
}

/// The library that makes up for a missing matrix unit: `QWEN2C_MATRIX_UNIT` where it is set, else built once
/// from this clone.
fn matrix_unit() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let package = "qwen2c-matrix-unit-preload";
        built_file("QWEN2C_MATRIX_UNIT", package, "libqwen2c_matrix_unit_preload.so")
    })
}

/// Whether programs for `target` run here: [`Program::command`] lends them a matrix unit.
pub fn has_target(target: &str) -> bool {
    match target {
        "native" => true,
        "x86-64-v3" => has_features(&["avx2", "fma", "f16c", "bmi2"]),
        "x86-64-v4" => has_features(&AROUND_MATRIX_UNIT[..5]),
        MATRIX_LEVEL => has_features(&AROUND_MATRIX_UNIT),
        _ => false,
    }
}

/// The targets whose programs run here.
pub fn host_targets() -> Vec<&'static str> {
    ["native", "x86-64-v3", "x86-64-v4", MATRIX_LEVEL]
        .into_iter()
        .filter(|target| has_target(target))
        .collect()
}

/// A run of `qwen2c build`.
#[derive(Clone, Debug)]
pub struct Build {
    arguments: Vec<String>,
}

/// An emitted program in a directory of its own, which goes away with it.
#[derive(Debug)]
pub struct Program {
    directory: TempDir,
    uses_matrix_unit: bool,
    /// What the build printed.
    pub report: Outcome,
}

impl Build {
    /// Builds `model` at f32, unquantized, for this machine, unless said otherwise.
    pub fn new(model: impl AsRef<Path>) -> Self {
        let model = model.as_ref().to_str().expect("paths of the tests are UTF-8").to_owned();
        Self { arguments: vec!["build".into(), "--model".into(), model] }
    }

    /// Adds arguments.
    #[must_use]
    pub fn with<'a>(mut self, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        self.arguments.extend(arguments.into_iter().map(str::to_owned));
        self
    }

    /// The command, writing to `output`.
    pub fn command(&self, output: &Path) -> Command {
        let mut command = Command::new(compiler());
        command.args(&self.arguments);
        for (option, value) in [("--target", "native"), ("--dtype", "f32"), ("--quant", "none")] {
            if !self.arguments.iter().any(|argument| argument == option) {
                command.args([option, value]);
            }
        }
        command.arg("-o").arg(output);
        command
    }

    /// Runs the build, which must succeed.
    #[track_caller]
    pub fn finish(&self) -> Program {
        let directory = TempDir::with_prefix("qwen2c-test-").expect("a temporary directory");
        let report = run(&mut self.command(&directory.path().join("program"))).success();
        let uses_matrix_unit = self.arguments.iter().any(|argument| argument == MATRIX_LEVEL);
        Program { directory, uses_matrix_unit, report }
    }
}

impl Program {
    /// A program beside it whose file holds these bytes.
    #[must_use]
    pub fn with_file(&self, bytes: &[u8]) -> Self {
        let directory = TempDir::with_prefix("qwen2c-test-").expect("a temporary directory");
        let program =
            Self { directory, uses_matrix_unit: self.uses_matrix_unit, report: self.report.clone() };
        std::fs::write(program.path(), bytes).expect("writable");
        std::fs::set_permissions(program.path(), std::fs::Permissions::from_mode(0o755)).expect("ours");
        program
    }

    /// The executable.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("program")
    }

    /// The directory it lies in, for files beside it.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A command that starts it, with a computed matrix unit where it needs one that the machine lacks.
    pub fn command<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(self.path());
        command.args(arguments);
        if self.uses_matrix_unit && !has_matrix_unit() {
            command.env("LD_PRELOAD", matrix_unit());
        }
        command
    }

    /// Runs it to the end.
    #[track_caller]
    pub fn run<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Outcome {
        run(&mut self.command(arguments))
    }

    /// Greedy ids after a prompt of ids, with these further arguments.
    #[track_caller]
    pub fn greedy(&self, prompt: &[u32], count: usize, more: &[&str]) -> Vec<u32> {
        let (prompt, count) = (crate::id_list(prompt), count.to_string());
        let fixed =
            ["run", "--tokens", &prompt, "-n", &count, "--temperature", "0", "--repetition-penalty", "1"];
        let outcome = self
            .run(
                fixed
                    .into_iter()
                    .chain(["--print-tokens", "--ignore-eos", "--quiet"])
                    .chain(more.iter().copied()),
            )
            .success();
        let text = outcome.text();
        text.trim_end()
            .split(',')
            .map(|id| id.parse().unwrap_or_else(|_| panic!("no list of ids: {text}")))
            .collect()
    }

    /// The logits of every position, `[tokens, vocabulary]`, with these further arguments.
    #[track_caller]
    pub fn logits(&self, prompt: &[u32], more: &[&str]) -> crate::Tensor {
        let file = TempDir::with_prefix("qwen2c-test-").expect("a temporary directory");
        let path = file.path().join("logits.safetensors");
        let prompt = crate::id_list(prompt);
        let fixed = ["logits", "--tokens", &prompt, "--quiet", "-o", path.to_str().expect("UTF-8")];
        self.run(fixed.into_iter().chain(more.iter().copied())).success();
        crate::read_tensors(&path).remove("logits").expect("a tensor `logits`")
    }
}

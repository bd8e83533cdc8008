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
    COMPILER.get_or_init(|| {
        if let Some(path) = std::env::var_os("QWEN2C") {
            let path = PathBuf::from(path);
            assert!(path.is_file(), "QWEN2C names `{}`, which is not a file", path.display());
            return path.canonicalize().expect("it is a file");
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--release", "--quiet", "-p", "qwen2c"]).current_dir(repository());
        run(without_cargo_variables(&mut build)).success();
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
        repository().join(target).join("release/qwen2c")
    })
}

/// Whether this machine can run programs for `target`.
pub fn has_target(target: &str) -> bool {
    let features = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let needed: &[&str] = match target {
        "native" => &[],
        "x86-64-v3" => &["avx2", "fma", "f16c", "bmi2"],
        "x86-64-v4" => &["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"],
        "x86-64-amx" => &["avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"],
        _ => return false,
    };
    needed.iter().all(|feature| features.split_whitespace().any(|found| found == *feature))
}

/// The targets whose programs this machine can run.
pub fn host_targets() -> Vec<&'static str> {
    ["native", "x86-64-v3", "x86-64-v4", "x86-64-amx"]
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
        Program { directory, report }
    }
}

impl Program {
    /// A program beside it whose file holds these bytes.
    #[must_use]
    pub fn with_file(&self, bytes: &[u8]) -> Self {
        let directory = TempDir::with_prefix("qwen2c-test-").expect("a temporary directory");
        let program = Self { directory, report: self.report.clone() };
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

    /// A command that starts it.
    pub fn command<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(self.path());
        command.args(arguments);
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

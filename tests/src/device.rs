//! CUDA programs without a device: a folder with the emulator as `libcuda.so.1`, for a program's library path.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;

use crate::compiler::built_file;
use crate::{Outcome, Program, Tensor, run};

/// The emulator's library: `QWEN2C_EMULATOR` where it is set, else built once from this clone.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| built_file("QWEN2C_EMULATOR", "qwen2c-emulator", "libqwen2c_emulator.so"))
}

/// An emulated device.
#[derive(Debug)]
pub struct Device {
    folder: TempDir,
    settings: Vec<(&'static str, String)>,
}

impl Device {
    /// One of `architecture` (80 for `sm_80`) whose blocks and warps run in the order of `seed`.
    pub fn new(architecture: u32, seed: u64) -> Self {
        let folder = TempDir::with_prefix("qwen2c-device-").expect("a temporary directory");
        std::os::unix::fs::symlink(library(), folder.path().join("libcuda.so.1")).expect("a link");
        let settings = vec![
            ("QWEN2C_EMULATOR_ARCHITECTURE", architecture.to_string()),
            ("QWEN2C_EMULATOR_SEED", seed.to_string()),
        ];
        Self { folder, settings }
    }

    /// The device with another of the emulator's settings.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.settings.push((name, value.to_string()));
        self
    }

    /// Where the emulator writes its report.
    fn report_path(&self) -> PathBuf {
        self.folder.path().join("report.json")
    }

    /// A command that runs `program` on this device.
    pub fn command<'a>(&self, program: &Program, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = program.command(arguments);
        command.env("LD_LIBRARY_PATH", self.folder.path());
        command.env("QWEN2C_EMULATOR_REPORT", self.report_path());
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs `program` to the end.
    #[track_caller]
    pub fn run<'a>(&self, program: &Program, arguments: impl IntoIterator<Item = &'a str>) -> Outcome {
        run(&mut self.command(program, arguments))
    }

    /// What the emulator counted in the last run.
    #[track_caller]
    pub fn report(&self) -> Value {
        let text = std::fs::read(self.report_path()).expect("the emulator reports at the end of a run");
        serde_json::from_slice(&text).expect("JSON")
    }

    /// The logits of every position, `[tokens, vocabulary]`.
    #[track_caller]
    pub fn logits(&self, program: &Program, prompt: &[u32]) -> Tensor {
        self.logits_with(program, prompt, &[])
    }

    /// The same, asked for with further arguments.
    #[track_caller]
    pub fn logits_with(&self, program: &Program, prompt: &[u32], more: &[&str]) -> Tensor {
        let path = self.folder.path().join("logits.safetensors");
        let prompt = crate::id_list(prompt);
        let path_text = path.to_str().expect("UTF-8");
        let arguments = ["logits", "--tokens", &prompt, "--quiet", "-o", path_text];
        self.run(program, arguments.into_iter().chain(more.iter().copied())).success();
        crate::read_tensors(&path).remove("logits").expect("a tensor `logits`")
    }

    /// Greedy ids after a prompt of ids.
    #[track_caller]
    pub fn greedy(&self, program: &Program, prompt: &[u32], count: usize) -> Vec<u32> {
        let (prompt, count) = (crate::id_list(prompt), count.to_string());
        let arguments =
            ["run", "--tokens", &prompt, "-n", &count, "--temperature", "0", "--repetition-penalty", "1"];
        let more = ["--print-tokens", "--ignore-eos", "--quiet"];
        let text = self.run(program, arguments.into_iter().chain(more)).success().text();
        text.trim_end()
            .split(',')
            .map(|id| id.parse().unwrap_or_else(|_| panic!("no list of ids: {text}")))
            .collect()
    }
}

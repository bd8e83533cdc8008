//! An emitted program as an entrant: `info`, `bench` and `profile` say all there is to know.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use super::entrant::{PhaseMeasurement, Profile, Turn};
use super::process::Errand;
use super::workload::Workload;
use crate::failure::Failure;

/// What to do about a program that does not answer.
const REMEDY: &str = "name programs that this version of `qwen2c build` has written";

/// An emitted program.
pub(super) struct EmittedProgram {
    /// As the user named it.
    pub(super) path: PathBuf,
    /// The same, such that it is not searched for in PATH.
    executable: PathBuf,
    /// What it is.
    pub(super) info: Info,
}

/// What a program prints for `info --json`, as far as it is shown.
#[derive(Debug, Deserialize)]
pub(super) struct Info {
    /// The model's name.
    pub(super) model: String,
    /// Target with its features.
    pub(super) target: String,
    /// Quantization.
    pub(super) quant: String,
    /// Type of activations.
    pub(super) dtype: String,
    /// Positions it serves.
    pub(super) context: u64,
    /// Bytes of its weights.
    pub(super) weight_bytes: u64,
}

/// What a program prints for `bench --json`, as far as it is compared.
#[derive(Debug, Deserialize)]
struct Bench {
    threads: u64,
    results: Vec<BenchResult>,
}

#[derive(Debug, Deserialize)]
struct BenchResult {
    tokens_per_s: f64,
}

impl EmittedProgram {
    /// Asks the program what it is.
    ///
    /// # Errors
    ///
    /// When it is missing, or no emitted program.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let executable = path
            .canonicalize()
            .map_err(|error| Failure::file("find the program to compare", path, &error))?;
        let mut command = Command::new(&executable);
        command.args(["info", "--json"]);
        let info = Errand { program: path, task: "info --json", remedy: REMEDY }.run(&mut command)?;
        Ok(Self { path: path.to_path_buf(), executable, info })
    }

    /// Measures everything once.
    ///
    /// # Errors
    ///
    /// When the program fails or prints something unknown.
    pub(super) fn take_turn(&self, workload: &Workload, threads: Option<u64>) -> Result<Turn, Failure> {
        let ask = |arguments: &[&str], flags: &[String]| {
            let mut command = Command::new(&self.executable);
            command.args(arguments).args(flags).args(["--json", "--quiet"]);
            if let Some(threads) = threads {
                command.arg("--threads").arg(threads.to_string());
            }
            command
        };
        let errand = |task| Errand { program: &self.path, task, remedy: REMEDY };
        let mut turn = Turn { threads: threads.unwrap_or(1), phases: Vec::new() };
        for phase in workload.phases() {
            let flags = workload.flags(phase);
            let bench: Bench = errand("bench --json").run(&mut ask(&["bench", "-r", "1"], &flags))?;
            let profile: Profile = errand("profile --json").run(&mut ask(&["profile", "--peak"], &flags))?;
            let tokens_per_s = bench.results.first().map_or(0.0, |result| result.tokens_per_s);
            turn.threads = bench.threads;
            turn.phases.push(PhaseMeasurement { phase, tokens_per_s, profile: Some(profile) });
        }
        Ok(turn)
    }
}

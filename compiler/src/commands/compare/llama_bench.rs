//! A peer as an entrant: llama.cpp's `llama-bench` with a model, doing the same tests.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use qwen2c_format::Diagnostic;
use serde::Deserialize;

use super::entrant::{PhaseMeasurement, Turn};
use super::process::Errand;
use super::workload::{Phase, Workload};
use crate::failure::Failure;

/// What to do about a peer that does not answer.
const REMEDY: &str = "name llama.cpp's `llama-bench`, of a version that knows `-d` and `-o json`";

/// `llama-bench` with a model.
pub(super) struct LlamaBench {
    /// The program, as the user named it.
    program: PathBuf,
    executable: PathBuf,
    /// The model's file.
    pub(super) model: PathBuf,
    /// Quantization, as the file's name has it behind the last `.` or `-`: `Q4_0`.
    pub(super) quant: String,
    /// Bytes of the file.
    pub(super) model_bytes: u64,
}

/// One test of `llama-bench -o json`.
#[derive(Debug, Deserialize)]
struct Answer {
    n_prompt: u64,
    n_gen: u64,
    n_threads: u64,
    avg_ts: f64,
}

impl LlamaBench {
    /// Takes `PATH:MODEL.gguf` apart and looks at both files.
    ///
    /// # Errors
    ///
    /// When there is no colon, a file is missing, or the model is no GGUF file.
    pub(super) fn open(argument: &str) -> Result<Self, Failure> {
        let (program, model) = split(argument).ok_or_else(|| {
            Failure::Usage(
                Diagnostic::new(format!("`--llama-bench` does not take `{argument}`"))
                    .needed("`PATH:MODEL.gguf`: llama.cpp's `llama-bench`, a colon, and its model"),
            )
        })?;
        let executable = program
            .canonicalize()
            .map_err(|error| Failure::file("find llama.cpp's `llama-bench`", program, &error))?;
        let mut file =
            File::open(model).map_err(|error| Failure::file("open the peer's model", model, &error))?;
        let model_bytes = file.metadata().map_or(0, |metadata| metadata.len());
        let mut magic = [0; 4];
        if file.read_exact(&mut magic).is_err() || &magic != b"GGUF" {
            return Err(Diagnostic::new("the peer's model is not a GGUF file")
                .at(model.display().to_string())
                .needed("a file that begins with `GGUF`")
                .help("`--llama-bench` takes `PATH:MODEL.gguf`, in this order")
                .into());
        }
        let quant = quantization_in_name(model);
        Ok(Self {
            program: program.to_path_buf(),
            executable,
            model: model.to_path_buf(),
            quant,
            model_bytes,
        })
    }

    /// Measures every test once.
    ///
    /// # Errors
    ///
    /// When `llama-bench` fails or prints something unknown.
    pub(super) fn take_turn(&self, workload: &Workload, threads: Option<u64>) -> Result<Turn, Failure> {
        let errand = Errand { program: &self.program, task: "-o json", remedy: REMEDY };
        let mut turn = Turn { threads: threads.unwrap_or(1), phases: Vec::new() };
        for phase in workload.phases() {
            let mut command = Command::new(&self.executable);
            command.arg("-m").arg(&self.model).args(workload.flags(phase)).args(["-r", "1", "-o", "json"]);
            if let Some(threads) = threads {
                command.arg("-t").arg(threads.to_string());
            }
            let answers: Vec<Answer> = errand.run(&mut command)?;
            let is_asked_for = |answer: &&Answer| match phase {
                Phase::Prompt => (answer.n_prompt, answer.n_gen) == (workload.prompt, 0),
                Phase::Generation => (answer.n_prompt, answer.n_gen) == (0, workload.generate),
            };
            let answer = answers.iter().find(is_asked_for).ok_or_else(|| {
                Diagnostic::new(format!("the peer did not measure {}", workload.sentence(phase)))
                    .at(self.program.display().to_string())
                    .found(format!("{} other tests", answers.len()))
                    .help(REMEDY)
            })?;
            turn.threads = answer.n_threads;
            turn.phases.push(PhaseMeasurement { phase, tokens_per_s: answer.avg_ts, profile: None });
        }
        Ok(turn)
    }
}

/// Splits behind the first path that exists, because both may contain colons; else at the last colon.
fn split(argument: &str) -> Option<(&Path, &Path)> {
    let halves = |(at, _): (usize, &str)| (Path::new(&argument[..at]), Path::new(&argument[at + 1..]));
    let is_whole =
        |(program, model): &(&Path, &Path)| !program.as_os_str().is_empty() && !model.as_os_str().is_empty();
    let mut all: Vec<(&Path, &Path)> = argument.match_indices(':').map(halves).filter(is_whole).collect();
    let last = all.pop();
    all.into_iter().find(|(program, _)| program.is_file()).or(last)
}

/// The last part of a model's name: `Q4_0` of `qwen2-0.5b-Q4_0.gguf`.
fn quantization_in_name(model: &Path) -> String {
    let stem = model.file_stem().unwrap_or_default().to_string_lossy();
    stem.rsplit(['-', '.']).next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{LlamaBench, quantization_in_name, split};

    #[test]
    fn an_argument_is_split_at_the_colon_between_two_files() {
        let expected = |program, model| Some((Path::new(program), Path::new(model)));
        assert_eq!(split("llama-bench:m.gguf"), expected("llama-bench", "m.gguf"));
        assert_eq!(split("no:such:m.gguf"), expected("no:such", "m.gguf"));
        // The manifest of this crate exists wherever its tests run.
        assert_eq!(split("Cargo.toml:a:b.gguf"), expected("Cargo.toml", "a:b.gguf"));
        assert_eq!(split("Cargo.toml:a.gguf"), expected("Cargo.toml", "a.gguf"));
        for wrong in ["m.gguf", ":m.gguf", "llama-bench:", ""] {
            assert_eq!(split(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn names_of_models_end_in_their_quantization() {
        assert_eq!(quantization_in_name(Path::new("a/qwen2-0.5b-Q4_0.gguf")), "Q4_0");
        assert_eq!(quantization_in_name(Path::new("SmolLM2-135M.Q4_K_M.gguf")), "Q4_K_M");
    }

    #[test]
    fn what_is_no_peer_is_said_before_anything_is_measured() {
        let message = |argument: &str| match LlamaBench::open(argument) {
            Ok(_) => panic!("`{argument}` is no peer"),
            Err(failure) => failure.to_string(),
        };
        assert!(message("llama-bench").contains("PATH:MODEL.gguf"));
        assert!(message("/nonexistent/llama-bench:m.gguf").contains("cannot find llama.cpp's"));
        assert!(message("Cargo.toml:/nonexistent.gguf").contains("cannot open the peer's model"));
        assert!(message("Cargo.toml:Cargo.toml").contains("not a GGUF file"));
    }
}

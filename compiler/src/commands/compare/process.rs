//! Starting a program that measures, and taking its answer.

use std::path::Path;
use std::process::{Command, Stdio};

use qwen2c_format::Diagnostic;
use serde::de::DeserializeOwned;

use crate::failure::Failure;

/// Lines of a failed program's message that are worth repeating: the last ones say why it ended.
const MESSAGE_LINES: usize = 8;

/// Who is started and what for, for messages.
pub(super) struct Errand<'a> {
    /// The program, as the user named it.
    pub(super) program: &'a Path,
    /// What it is asked to do: `bench --json`.
    pub(super) task: &'a str,
    /// What to do where it does not answer as it should.
    pub(super) remedy: &'a str,
}

impl Errand<'_> {
    /// Runs the command to its end and reads the JSON it printed.
    ///
    /// # Errors
    ///
    /// When it cannot be started, fails, or prints something else.
    pub(super) fn run<Answer: DeserializeOwned>(&self, command: &mut Command) -> Result<Answer, Failure> {
        let place = self.program.display().to_string();
        let output = command.stdin(Stdio::null()).output().map_err(|error| {
            Diagnostic::new("cannot run the program")
                .at(place.clone())
                .cause(error.to_string())
                .help(self.remedy)
        })?;
        if !output.status.success() {
            let title = format!("the program's `{}` failed ({})", self.task, output.status);
            let mut diagnostic = Diagnostic::new(title).at(place);
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            let lines: Vec<&str> = message.lines().filter(|line| !line.trim().is_empty()).collect();
            for line in &lines[lines.len().saturating_sub(MESSAGE_LINES)..] {
                diagnostic = diagnostic.cause(*line);
            }
            return Err(diagnostic.help(self.remedy).into());
        }
        serde_json::from_slice(&output.stdout).map_err(|error| {
            Diagnostic::new(format!("the answer to `{}` is not understood", self.task))
                .at(place)
                .found(beginning(&output.stdout))
                .cause(error.to_string())
                .help(self.remedy)
                .into()
        })
    }
}

/// The first line of an answer, shortened.
fn beginning(answer: &[u8]) -> String {
    const CHARACTERS: usize = 60;
    let text = String::from_utf8_lossy(answer);
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
    line.chars().filter(|character| !character.is_control()).take(CHARACTERS).collect()
}

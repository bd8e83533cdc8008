//! What a command reads and writes, and how it can end.

use std::io::{self, Read, Write};

use qwen2c_format::Diagnostic;

use crate::session_error::SessionError;

/// Why a command does not end well, or not as usual.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line is wrong: exit code 2.
    Usage(Diagnostic),
    /// What was asked for cannot be done: exit code 1.
    Input(Diagnostic),
    /// Nobody reads the output any more: quiet success.
    ClosedPipe,
    /// Ctrl-C: exit code 130.
    Interrupted,
}

impl From<Diagnostic> for Failure {
    fn from(diagnostic: Diagnostic) -> Self {
        Self::Input(diagnostic)
    }
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Self {
        Self::Input(error.diagnostic())
    }
}

/// Turns usage errors of the argument table into failures.
pub(crate) trait OrUsage<T> {
    /// The value, or [`Failure::Usage`].
    fn or_usage(self) -> Result<T, Failure>;
}

impl<T> OrUsage<T> for Result<T, Diagnostic> {
    fn or_usage(self) -> Result<T, Failure> {
        self.map_err(Failure::Usage)
    }
}

/// Standard input, output and error; in tests, buffers.
pub(crate) struct Console<'a> {
    /// Standard input.
    pub(crate) input: &'a mut dyn Read,
    /// Whether a person types it.
    pub(crate) input_is_terminal: bool,
    /// Standard output.
    pub(crate) output: &'a mut dyn Write,
    /// Standard error.
    pub(crate) errors: &'a mut dyn Write,
    /// No notes.
    pub(crate) quiet: bool,
}

impl Console<'_> {
    /// Writes to standard output at once.
    ///
    /// # Errors
    ///
    /// [`Failure::ClosedPipe`], or what else the system says.
    pub(crate) fn print(&mut self, text: &str) -> Result<(), Failure> {
        let written = self.output.write_all(text.as_bytes()).and_then(|()| self.output.flush());
        written.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::ClosedPipe,
            _ => {
                Failure::Input(Diagnostic::new("standard output cannot be written").cause(error.to_string()))
            }
        })
    }

    /// Writes a line to standard error, unless `--quiet`.
    pub(crate) fn note(&mut self, line: &str) {
        if !self.quiet {
            // Where standard error is closed, a note has no reader.
            let _ = writeln!(self.errors, "{line}");
        }
    }

    /// All of standard input, as text.
    ///
    /// # Errors
    ///
    /// Where it cannot be read or is not UTF-8.
    pub(crate) fn read_input(&mut self) -> Result<String, Failure> {
        let mut bytes = Vec::new();
        self.input
            .read_to_end(&mut bytes)
            .map_err(|error| Diagnostic::new("standard input cannot be read").cause(error.to_string()))?;
        Ok(utf8(bytes, "standard input")?)
    }
}

/// Text of bytes from `place`.
///
/// # Errors
///
/// Names the first byte that is not UTF-8.
pub(crate) fn utf8(bytes: Vec<u8>, place: &str) -> Result<String, Diagnostic> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Diagnostic::new("the text is not UTF-8")
            .at(place)
            .found(format!("byte 0x{:02x} at offset {at}", error.as_bytes()[at]))
            .help("convert it first, with `iconv` for example")
    })
}

//! How a command ends other than well, and with which exit code.

use std::fmt;
use std::io;

use qwen2c_format::Diagnostic;

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub(crate) enum Failure {
    /// An argument is wrong whatever the input: exit code 2.
    Usage(Diagnostic),
    /// The user's input cannot be served: exit code 1.
    Input(Diagnostic),
    /// A promise between our own parts was broken: exit code 3.
    Bug(Diagnostic),
    /// The reader of our output went away, as `head` does: exit code 0, silently.
    ClosedPipe,
}

impl Failure {
    /// The process's exit code.
    pub(crate) const fn exit_code(&self) -> u8 {
        match self {
            Self::ClosedPipe => 0,
            Self::Input(_) => 1,
            Self::Usage(_) => 2,
            Self::Bug(_) => 3,
        }
    }

    /// A failed operation on a file: `doing` completes "cannot …".
    pub(crate) fn file(doing: &str, path: &std::path::Path, error: &io::Error) -> Self {
        Self::Input(
            Diagnostic::new(format!("cannot {doing}"))
                .at(path.display().to_string())
                .cause(error.to_string()),
        )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(diagnostic) => {
                write!(formatter, "error: {diagnostic}\n\nFor more information, try `--help`.")
            }
            Self::Input(diagnostic) => write!(formatter, "error: {diagnostic}"),
            Self::Bug(diagnostic) => write!(
                formatter,
                "error: {diagnostic}\n  help: this is a bug of qwen2c: please report it, with the command and the files that \
                 `--emit graph,fused,plan` writes"
            ),
            Self::ClosedPipe => Ok(()),
        }
    }
}

impl From<Diagnostic> for Failure {
    fn from(diagnostic: Diagnostic) -> Self {
        Self::Input(diagnostic)
    }
}

/// Errors of writing to standard output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::ClosedPipe
        } else {
            Self::Input(Diagnostic::new("cannot write to standard output").cause(error.to_string()))
        }
    }
}

//! Why a file is not a program that can be run.

use crate::{Diagnostic, FORMAT_VERSION};

/// Why a file is not a program that can be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProgramError {
    /// Not an ELF executable, or one that `qwen2c` did not write.
    NotAProgram {
        /// What is missing.
        reason: String,
    },
    /// The runtime was linked, but no weights were ever attached.
    Unpatched,
    /// A tool that rewrites executables dropped what lies behind the ELF image.
    Stripped {
        /// Bytes the program had.
        file_bytes: u64,
        /// Bytes it has.
        found_bytes: u64,
    },
    /// The file ends early.
    Truncated {
        /// Bytes the program had.
        file_bytes: u64,
        /// Bytes it has.
        found_bytes: u64,
    },
    /// A part does not have the hash that was recorded at build.
    Altered {
        /// Name of the part.
        section: &'static str,
    },
    /// Written by another version of the format.
    Version {
        /// Its version.
        found: u32,
    },
    /// A part has the right hash and yet cannot be right.
    Invalid {
        /// Name of the part.
        section: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The file cannot be read.
    Unreadable {
        /// The system's message.
        reason: String,
    },
}

impl ProgramError {
    /// The error as it is shown; callers add the file's name with [`Diagnostic::at`].
    pub fn diagnostic(&self) -> Diagnostic {
        let copy_again = "copy the program again from where it was built, and compare the sizes";
        match self {
            Self::NotAProgram { reason } => Diagnostic::new("this is not a program written by `qwen2c build`")
                .cause(reason.clone())
                .help("name a file that `qwen2c build` has written"),
            Self::Unpatched => Diagnostic::new("the program has no weights attached")
                .found("a runtime that was linked and never completed")
                .help("build it with `qwen2c build`; the runtime cannot be used alone"),
            Self::Stripped { file_bytes, found_bytes } => {
                Diagnostic::new("the program was stripped: its weights behind the ELF image are gone")
                    .found(format!("{found_bytes} bytes, which end with the ELF image"))
                    .needed(format!("{file_bytes} bytes"))
                    .help("`strip`, `objcopy` and `patchelf` drop what lies behind the image: use the program as it was built")
            }
            Self::Truncated { file_bytes, found_bytes } => Diagnostic::new("the program is cut short")
                .found(format!("{found_bytes} bytes"))
                .needed(format!("{file_bytes} bytes"))
                .help(copy_again),
            Self::Altered { section } => {
                Diagnostic::new(format!("the program was altered: its {section} does not have the recorded hash"))
                    .help(copy_again)
            }
            Self::Version { found } => {
                let age = if *found > FORMAT_VERSION { "newer" } else { "older" };
                Diagnostic::new(format!("the program has a {age} format than this reads"))
                    .found(format!("format version {found}"))
                    .needed(format!("format version {FORMAT_VERSION}"))
                    .help("use the `qwen2c` that built it, or build it again with this one")
            }
            Self::Invalid { section, reason } => {
                Diagnostic::new(format!("the program's {section} cannot be right"))
                    .cause(reason.clone())
                    .help("build the program again; if that gives the same error, it is a bug of `qwen2c`")
            }
            Self::Unreadable { reason } => {
                Diagnostic::new("the program's file cannot be read").cause(reason.clone())
            }
        }
    }
}

impl From<ProgramError> for Diagnostic {
    fn from(error: ProgramError) -> Self {
        error.diagnostic()
    }
}

impl std::fmt::Display for ProgramError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.diagnostic().fmt(formatter)
    }
}

impl std::error::Error for ProgramError {}

impl From<std::io::Error> for ProgramError {
    fn from(error: std::io::Error) -> Self {
        Self::Unreadable { reason: error.to_string() }
    }
}

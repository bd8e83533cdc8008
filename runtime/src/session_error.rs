//! Why a session does not take tokens.

use std::fmt;

use qwen2c_format::Diagnostic;

/// Why tokens are not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionError {
    /// No tokens at all.
    Empty,
    /// More positions than the cache has.
    ContextFull {
        /// Positions the tokens would need.
        needed: u64,
        /// Positions there are.
        context: u64,
    },
    /// An id without a row in the embedding.
    OutsideVocabulary {
        /// The id.
        token: u32,
        /// Ids there are.
        vocabulary: u64,
    },
    /// The device failed.
    Device(Box<Diagnostic>),
}

impl SessionError {
    /// The error as it is shown.
    pub fn diagnostic(&self) -> Diagnostic {
        match self {
            Self::Empty => Diagnostic::new("the prompt is empty").needed("at least one token"),
            Self::ContextFull { needed, context } => Diagnostic::new("the context is full")
                .found(format!("{needed} positions wanted"))
                .needed(format!("at most {context}, for which the program was built"))
                .help("shorten the prompt, or build the program with a larger `--context`"),
            Self::OutsideVocabulary { token, vocabulary } => {
                Diagnostic::new(format!("id {token} lies outside the vocabulary"))
                    .needed(format!("ids from 0 to {}", vocabulary - 1))
            }
            Self::Device(diagnostic) => (**diagnostic).clone(),
        }
    }
}

impl fmt::Display for SessionError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.diagnostic().fmt(formatter)
    }
}

impl std::error::Error for SessionError {}

impl From<Diagnostic> for SessionError {
    fn from(diagnostic: Diagnostic) -> Self {
        Self::Device(Box::new(diagnostic))
    }
}

impl From<SessionError> for Diagnostic {
    fn from(error: SessionError) -> Self {
        error.diagnostic()
    }
}

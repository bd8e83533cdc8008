//! How an error looks to a person, in the compiler and in emitted programs alike.

use std::fmt;

/// An error with its place, its numbers and its remedy.
///
/// Printed as
///
/// ```text
/// error: tensor `model.norm.weight` has the wrong shape
///   --> model.safetensors
///   found: [895]
///   needed: [896]
///   help: the configuration says `hidden_size` 896; is this the checkpoint that belongs to it?
/// ```
///
/// Titles start in lower case and end without a full stop; names stand in backticks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostic {
    /// What is wrong.
    pub title: String,
    /// File, tensor, argument or step it was seen at.
    pub place: Option<String>,
    /// What was found.
    pub found: Option<String>,
    /// What is needed instead.
    pub needed: Option<String>,
    /// Further lines on the cause.
    pub causes: Vec<String>,
    /// What to do, one line each.
    pub help: Vec<String>,
}

impl Diagnostic {
    /// A diagnostic with a title alone.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), ..Self::default() }
    }

    /// Adds where it was seen.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>) -> Self {
        self.place = Some(place.into());
        self
    }

    /// Adds where it was seen, unless a place nearer to it is known already.
    #[must_use]
    pub fn within(mut self, place: impl Into<String>) -> Self {
        self.place.get_or_insert_with(|| place.into());
        self
    }

    /// Adds what was found.
    #[must_use]
    pub fn found(mut self, found: impl Into<String>) -> Self {
        self.found = Some(found.into());
        self
    }

    /// Adds what is needed.
    #[must_use]
    pub fn needed(mut self, needed: impl Into<String>) -> Self {
        self.needed = Some(needed.into());
        self
    }

    /// Adds a line on the cause.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// Adds a line on what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.title)?;
        if let Some(place) = &self.place {
            write!(formatter, "\n  --> {place}")?;
        }
        if let Some(found) = &self.found {
            write!(formatter, "\n  found: {found}")?;
        }
        if let Some(needed) = &self.needed {
            write!(formatter, "\n  needed: {needed}")?;
        }
        for cause in &self.causes {
            write!(formatter, "\n  cause: {cause}")?;
        }
        for help in &self.help {
            write!(formatter, "\n  help: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}

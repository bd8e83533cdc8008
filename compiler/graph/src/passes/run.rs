//! Runs the passes in order, with the verifier after each.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Instant;

use crate::passes::rewrite::moved_bytes;
use crate::passes::{PASSES, Pass, PassContext};
use crate::{Graph, VerifyError, verify};

/// What a pass did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassReport {
    /// The pass.
    pub name: &'static str,
    /// False where it was switched off; the other numbers are then zero.
    pub enabled: bool,
    /// Places rewritten.
    pub rewrites: u64,
    /// Arena bytes that a step of one row at a full context need no longer write or read.
    pub bytes_saved: u64,
    /// Time of the rewrite without the verifier's.
    pub duration_us: u64,
}

/// Why a list of passes to switch off cannot be served: the user's mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelectionError {
    /// No pass has this name.
    Unknown {
        /// Name as given.
        name: String,
        /// The pass whose name is nearest, where one is near.
        suggestion: Option<&'static str>,
    },
    /// The pass cannot be left out.
    Mandatory {
        /// Name of the pass.
        name: &'static str,
    },
}

impl fmt::Display for SelectionError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { name, suggestion } => {
                write!(formatter, "there is no pass `{name}`")?;
                match suggestion {
                    Some(near) => write!(formatter, "; did you mean `{near}`?"),
                    None => formatter.write_str("; `qwen2c passes` lists them"),
                }
            }
            Self::Mandatory { name } => {
                write!(formatter, "pass `{name}` is mandatory and cannot be switched off")
            }
        }
    }
}

impl std::error::Error for SelectionError {}

/// A pass left a graph that the verifier refuses: a bug of the pass.
#[derive(Clone, Debug)]
pub struct PassError {
    /// The pass; none where the graph was refused before the first one.
    pub pass: Option<&'static str>,
    /// What the verifier says.
    pub cause: VerifyError,
}

impl fmt::Display for PassError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pass {
            Some(pass) => write!(formatter, "pass `{pass}` left a graph that the verifier refuses"),
            None => formatter.write_str("the verifier refuses the graph before the first pass"),
        }
    }
}

impl std::error::Error for PassError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

/// The names of the passes to leave out, checked: those that are `switched_off`, and those that run only
/// where they are `switched_on`. Who names a pass in both means the latter.
///
/// # Errors
///
/// [`SelectionError`] for a name that is unknown, or is switched off and belongs to a mandatory pass.
pub fn select_passes<'a>(
    switched_off: impl IntoIterator<Item = &'a str>,
    switched_on: impl IntoIterator<Item = &'a str>,
) -> Result<BTreeSet<&'static str>, SelectionError> {
    let on_request = PASSES.iter().filter(|pass| !pass.by_default).map(|pass| pass.name);
    let mut disabled: BTreeSet<&'static str> = on_request.collect();
    for name in switched_off {
        match find(name)? {
            pass if pass.optional => disabled.insert(pass.name),
            pass => return Err(SelectionError::Mandatory { name: pass.name }),
        };
    }
    for name in switched_on {
        disabled.remove(find(name)?.name);
    }
    Ok(disabled)
}

fn find(name: &str) -> Result<&'static Pass, SelectionError> {
    let lower_case = name.to_ascii_lowercase().replace('-', "_");
    let found = PASSES.iter().find(|pass| pass.name == lower_case);
    found.ok_or_else(|| SelectionError::Unknown { name: name.to_owned(), suggestion: nearest(&lower_case) })
}

/// Runs all passes but the `disabled` ones. `observe` sees the graph after each pass, for dumps; for
/// a disabled pass it is not called.
///
/// # Errors
///
/// [`PassError`] when the graph does not verify, which is a bug of the compiler.
pub fn run_passes(
    graph: &mut Graph,
    context: &PassContext<'_>,
    disabled: &BTreeSet<&str>,
    observe: &mut dyn FnMut(&Pass, &PassReport, &Graph),
) -> Result<Vec<PassReport>, PassError> {
    verify(graph).map_err(|cause| PassError { pass: None, cause })?;
    let mut reports = Vec::with_capacity(PASSES.len());
    for pass in PASSES {
        let mut report =
            PassReport { name: pass.name, enabled: false, rewrites: 0, bytes_saved: 0, duration_us: 0 };
        if !pass.optional || !disabled.contains(pass.name) {
            let bytes_before = moved_bytes(graph);
            let start = Instant::now();
            report.rewrites = (pass.run)(graph, context);
            report.duration_us = start.elapsed().as_micros() as u64;
            report.enabled = true;
            report.bytes_saved = bytes_before.saturating_sub(moved_bytes(graph));
            verify(graph).map_err(|cause| PassError { pass: Some(pass.name), cause })?;
            observe(pass, &report, graph);
        }
        reports.push(report);
    }
    Ok(reports)
}

/// The pass whose name differs least from `name`, if by at most a third of its letters.
fn nearest(name: &str) -> Option<&'static str> {
    PASSES
        .iter()
        .map(|pass| (edit_distance(name, pass.name), pass.name))
        .filter(|(distance, candidate)| distance * 3 <= candidate.len())
        .min()
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions and replacements that turn `from` into `to` (Levenshtein 1966).
fn edit_distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (deleted, letter) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = deleted + 1;
        for (index, other) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[index + 1];
            row[index + 1] = replaced.min(row[index] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_can_be_switched_off_and_on() {
        assert_eq!(select_passes([], []), Ok(BTreeSet::from(["persistent_decode"])));
        assert_eq!(
            select_passes(["fuse_attention", "Merge-Gate-And-Up"], ["persistent-decode", "resolve_rope"]),
            Ok(BTreeSet::from(["fuse_attention", "merge_gate_and_up"]))
        );
        assert_eq!(
            select_passes(["fuse_attention"], ["fuse_attention"]),
            Ok(BTreeSet::from(["persistent_decode"]))
        );
    }

    #[test]
    fn a_near_name_is_suggested() {
        let error = select_passes([], ["fuse_atention"]).expect_err("no such pass");
        assert_eq!(error.to_string(), "there is no pass `fuse_atention`; did you mean `fuse_attention`?");
        let error = select_passes(["vectorize"], []).expect_err("no such pass");
        assert_eq!(error.to_string(), "there is no pass `vectorize`; `qwen2c passes` lists them");
    }

    #[test]
    fn a_mandatory_pass_cannot_be_switched_off() {
        let error = select_passes(["resolve_rope"], []).expect_err("mandatory");
        assert_eq!(error, SelectionError::Mandatory { name: "resolve_rope" });
    }
}

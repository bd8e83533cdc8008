//! Runs the body of a test in a process of its own, with an environment, and reads what it left.

use std::any::type_name_of_val;
use std::process::Command;

use serde_json::Value;

/// Set in the process that runs a body.
const IS_CHILD: &str = "QWEN2C_EMULATOR_TEST_BODY";

/// What a process left.
pub(crate) struct Outcome {
    /// The driver's report.
    pub(crate) report: Value,
    /// Standard error.
    pub(crate) said: String,
}

/// Runs this test's `body` alone. In the process that does it, this returns none and the test is over; in the
/// other, it fails if the body failed, and gives what there is to judge.
///
/// The body must be written where it is given: its test is found by the closure's name.
pub(crate) fn alone<Body: FnOnce()>(environment: &[(&str, &str)], body: Body) -> Option<Outcome> {
    let name = type_name_of_val(&body);
    if std::env::var_os(IS_CHILD).is_some() {
        body();
        return None;
    }
    let name = name.split_once("::").expect("a path").1.trim_end_matches("::{{closure}}");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = folder.path().join("report.json");
    let mut command = Command::new(std::env::current_exe().expect("the test's own path"));
    command.args([name, "--exact", "--nocapture"]).env(IS_CHILD, "1");
    // What the environment of the tests says about the emulator must not change them.
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("QWEN2C_EMULATOR_") {
            command.env_remove(variable);
        }
    }
    command.env(IS_CHILD, "1").env("QWEN2C_EMULATOR_REPORT", &report);
    let output = command.envs(environment.iter().copied()).output().expect("a process");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("1 passed"), "{name}: {told}\n{said}");
    let report = std::fs::read_to_string(&report).unwrap_or_else(|_| "null".to_owned());
    Some(Outcome { report: serde_json::from_str(&report).expect("JSON"), said })
}

impl Outcome {
    /// Fails unless exactly one line of standard error and one refusal of the report are about `call` and say
    /// `why`.
    #[track_caller]
    pub(crate) fn refused(&self, call: &str, error: &str, why: &str) {
        let refusals = self.report["refusals"].as_array().expect("a list");
        let is_it = |refusal: &&Value| {
            refusal["call"] == call
                && refusal["error"] == error
                && refusal["why"].as_str().is_some_and(|text| text.contains(why))
        };
        assert_eq!(refusals.iter().filter(is_it).count(), 1, "{call} {error} `{why}` in {refusals:#?}");
        let line = format!("emulator: {call}: {error}: ");
        let lines = self.said.lines().filter(|said| said.starts_with(&line) && said.contains(why));
        assert_eq!(lines.count(), 1, "`{line}…{why}` in {}", self.said);
    }

    /// Fails unless there is exactly one fault of the program, in `call`, which says `what`.
    #[track_caller]
    pub(crate) fn at_fault(&self, call: &str, what: &str) {
        let faults = self.report["faults"].as_array().expect("a list");
        assert_eq!(faults.len(), 1, "{faults:#?}");
        assert_eq!(faults[0]["call"], call, "{faults:#?}");
        assert!(faults[0]["what"].as_str().is_some_and(|text| text.contains(what)), "{faults:#?}");
        assert!(self.said.contains(&format!("fault of the program in {call}")), "{}", self.said);
    }

    /// Fails if the program did anything wrong, was refused anything, or left anything behind.
    #[track_caller]
    pub(crate) fn clean(&self) {
        for list in ["faults", "refusals"] {
            assert_eq!(self.report[list], Value::Array(Vec::new()), "{list}");
        }
        for (what, count) in self.report["leaks"].as_object().expect("leaks") {
            assert_eq!(*count, 0, "leaked: {what}");
        }
        assert_eq!(self.said.lines().find(|line| line.starts_with("emulator")), None);
    }
}

//! Starting a program and looking at what came out.

use std::io::{ErrorKind, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Longer than any single build or answer of the tests takes on a busy machine.
const TIME_LIMIT: Duration = Duration::from_secs(900);

/// How a program ended and what it wrote.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error, lossily decoded.
    pub stderr: String,
    /// The command, for messages.
    pub command: String,
}

impl Outcome {
    /// The exit code; none after a signal.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        match serde_json::from_slice(&self.stdout) {
            Ok(value) => value,
            Err(error) => panic!("{} printed no JSON ({error}): {}", self.command, self.text()),
        }
    }

    /// Fails the test unless the program ended with 0.
    #[track_caller]
    pub fn success(self) -> Self {
        assert_eq!(
            self.code(),
            Some(0),
            "{}\nstdout: {}\nstderr: {}",
            self.command,
            self.text(),
            self.stderr
        );
        self
    }

    /// Fails the test unless the program ended with `code` and one message that contains each of
    /// `parts`: no panic, no backtrace, nothing on standard output.
    #[track_caller]
    pub fn refused(self, code: i32, parts: &[&str]) -> Self {
        let report = format!("{}\nstdout: {}\nstderr: {}", self.command, self.text(), self.stderr);
        assert_eq!(self.code(), Some(code), "{report}");
        assert!(self.stdout.is_empty(), "a refusal belongs on standard error\n{report}");
        for unwanted in ["panicked", "RUST_BACKTRACE", "stack backtrace", "bug of ours"] {
            assert!(!self.stderr.contains(unwanted), "`{unwanted}` in the message\n{report}");
        }
        let errors = self.stderr.lines().filter(|line| line.starts_with("error")).count();
        assert_eq!(errors, 1, "one message\n{report}");
        for part in parts {
            assert!(self.stderr.contains(part), "`{part}` is not in the message\n{report}");
        }
        self
    }
}

/// Starts a program that a test may just have written. A child that another test's thread has forked
/// meanwhile holds the file open for writing until it executes its own program; the system then calls the
/// file busy.
fn spawn(command: &mut Command) -> std::io::Result<Child> {
    for _ in 0..200 {
        match command.spawn() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => {
                std::thread::sleep(Duration::from_millis(10));
            }
            outcome => return outcome,
        }
    }
    command.spawn()
}

/// Runs to the end, with nothing on standard input.
#[track_caller]
pub fn run(command: &mut Command) -> Outcome {
    run_with_input(command, b"")
}

/// Runs to the end with these bytes on standard input.
#[track_caller]
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Outcome {
    let text = format!("{command:?}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(command).unwrap_or_else(|error| panic!("{text} did not start: {error}"));
    let mut stdin = child.stdin.take().expect("piped");
    let mut stdout = child.stdout.take().expect("piped");
    let mut stderr = child.stderr.take().expect("piped");
    std::thread::scope(|scope| {
        // A program that ends without reading closes the pipe: that is for the test to judge.
        scope.spawn(move || stdin.write_all(input).ok());
        let out = scope.spawn(move || {
            let mut bytes = Vec::new();
            stdout.read_to_end(&mut bytes).map(|_| bytes)
        });
        let err = scope.spawn(move || {
            let mut bytes = Vec::new();
            stderr.read_to_end(&mut bytes).map(|_| bytes)
        });
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("the child is ours") {
                break status;
            }
            if start.elapsed() > TIME_LIMIT {
                child.kill().ok();
                child.wait().ok();
                panic!("{text} ran longer than {} s", TIME_LIMIT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let stdout = out.join().expect("reader").expect("standard output");
        let stderr = err.join().expect("reader").expect("standard error");
        Outcome { status, stdout, stderr: String::from_utf8_lossy(&stderr).into_owned(), command: text }
    })
}

/// Takes away what cargo set for this test, so that a build it starts sees what one started by hand sees:
/// crates that look at these variables would be compiled again, there and back.
pub fn without_cargo_variables(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"]
            .iter()
            .any(|prefix| text.starts_with(prefix))
        {
            command.env_remove(&name);
        }
    }
    command
}

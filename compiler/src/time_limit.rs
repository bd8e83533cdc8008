//! Other programs that are given so much time and no more: who waits for one of them must not wait for ever.

use std::io::{self, Read, Seek};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Longest time between two looks at whether it has ended.
const LONGEST_NAP: Duration = Duration::from_millis(50);

/// Bytes that are taken of each of its outputs.
const MOST_BYTES: u64 = 1 << 20;
/// Bytes that it may write until it is ended as if its time were over: they lie on somebody's disk, or in memory.
const MOST_WRITTEN_BYTES: u64 = 64 << 20;

/// How a program ended, and what it wrote.
pub(crate) struct Ended {
    /// None where its time was over, or what it may write, and it was killed.
    pub(crate) status: Option<ExitStatus>,
    /// The beginning of standard output, and that of standard error behind it, lossily decoded.
    pub(crate) text: String,
}

/// Runs a program to its end, or to the end of its time, with nothing on standard input.
///
/// What it writes goes to files: a pipe that nobody empties would stop it, and one that a child of it holds open
/// would be read longer than it lives.
///
/// # Errors
///
/// Where it cannot be started.
pub(crate) fn run_within(command: &mut Command, limit: Duration) -> io::Result<Ended> {
    let (mut output, mut errors) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(errors.try_clone()?);
    let mut child = command.spawn()?;
    let start = Instant::now();
    let mut nap = Duration::from_millis(1);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        let written_bytes = output.metadata()?.len() + errors.metadata()?.len();
        if start.elapsed() >= limit || written_bytes > MOST_WRITTEN_BYTES {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(nap);
        nap = (2 * nap).min(LONGEST_NAP);
    };
    let mut bytes = Vec::new();
    for file in [&mut output, &mut errors] {
        file.rewind()?;
        file.take(MOST_BYTES).read_to_end(&mut bytes)?;
    }
    Ok(Ended { status, text: String::from_utf8_lossy(&bytes).into_owned() })
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::run_within;

    fn shell(script: &str, limit: Duration) -> super::Ended {
        run_within(Command::new("/bin/sh").args(["-c", script]), limit).unwrap()
    }

    #[test]
    fn what_ends_in_time_is_told_with_what_it_wrote() {
        let ended = shell("echo out; echo err >&2; exit 3", Duration::from_secs(60));
        assert_eq!(ended.status.and_then(|status| status.code()), Some(3));
        assert_eq!(ended.text, "out\nerr\n");
    }

    #[test]
    fn what_writes_without_end_is_killed_and_cut() {
        let ended = shell(
            "while :; do echo 12345678901234567890123456789012345678901234567890; done",
            Duration::from_secs(600),
        );
        assert!(ended.status.is_none());
        assert!(!ended.text.is_empty() && ended.text.len() as u64 <= super::MOST_BYTES);
    }

    /// A child of it that lives on holds nothing up.
    #[test]
    fn what_does_not_end_is_killed_when_its_time_is_over() {
        let start = Instant::now();
        let ended = shell("echo begun; sleep 30; echo done", Duration::from_millis(200));
        assert!(ended.status.is_none());
        assert_eq!(ended.text, "begun\n");
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }
}

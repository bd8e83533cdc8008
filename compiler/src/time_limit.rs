//! Other programs that are given so much time and no more: who waits for one of them must not wait for ever.
//!
//! Each is a process group of its own, because what is named may be a script that starts what works: when its
//! time is over, the group ends. A terminal interrupts a group of its own too, so whoever ends this process
//! before its time ends those groups as well.

use std::io::{self, Read, Seek};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// Longest time between two looks at whether it has ended.
const LONGEST_NAP: Duration = Duration::from_millis(50);

/// Bytes that are taken of each of its outputs.
const MOST_BYTES: u64 = 1 << 20;

/// Bytes that it may write until it is ended as if its time were over: they lie on somebody's disk, or in memory.
const MOST_WRITTEN_BYTES: u64 = 64 << 20;

/// Groups of the programs that run.
static RUNNING: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// How a program ended, and what it wrote.
pub(crate) struct Ended {
    /// None where its time was over, or what it may write, and it was killed with all that it started.
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
    let mut child = command.process_group(0).spawn()?;
    let group = Pid::from_child(&child);
    running(|groups| groups.push(group));
    let start = Instant::now();
    let mut nap = Duration::from_millis(1);
    let status = loop {
        if let Some(status) = look_at(&mut child, group)? {
            break Some(status);
        }
        let written_bytes = output.metadata()?.len() + errors.metadata()?.len();
        if start.elapsed() >= limit || written_bytes > MOST_WRITTEN_BYTES {
            // Nobody has waited for the child yet, so the number is still its own.
            kill_process_group(group, Signal::KILL)?;
            while look_at(&mut child, group)?.is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
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

/// How the child ended, if it has. From then on its number may be another's.
fn look_at(child: &mut Child, group: Pid) -> io::Result<Option<ExitStatus>> {
    running(|groups| {
        let status = child.try_wait()?;
        if status.is_some() {
            groups.retain(|known| *known != group);
        }
        Ok(status)
    })
}

/// Ends the programs that run, for ends of this process that wait for nothing.
pub(crate) fn end_running() {
    running(|groups| {
        for group in groups.drain(..) {
            // It may have ended by itself.
            let _ = kill_process_group(group, Signal::KILL);
        }
    });
}

fn running<T>(change: impl FnOnce(&mut Vec<Pid>) -> T) -> T {
    change(&mut RUNNING.lock().unwrap_or_else(PoisonError::into_inner))
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

    /// Whether a process works: one that has ended may be listed until its parent has looked.
    fn is_alive(process: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    }

    #[test]
    fn what_a_script_has_started_ends_with_it() {
        let ended = shell("sleep 600 & echo $!; wait", Duration::from_millis(300));
        assert!(ended.status.is_none());
        let process = ended.text.trim();
        assert!(process.parse::<u32>().is_ok(), "{process}");
        let start = Instant::now();
        while is_alive(process) {
            assert!(start.elapsed() < Duration::from_secs(20), "{process} works on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A child that has left the group holds nothing up.
    #[test]
    fn what_does_not_end_is_killed_when_its_time_is_over() {
        let start = Instant::now();
        let ended = shell("echo begun; setsid sleep 30; echo done", Duration::from_millis(200));
        assert!(ended.status.is_none());
        assert_eq!(ended.text, "begun\n");
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }
}

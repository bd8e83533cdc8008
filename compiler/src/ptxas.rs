//! NVIDIA's assembler, where there is one: it turns PTX into the machine code of one architecture, so that a
//! driver need not do that at every start.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use qwen2c_format::{DeviceImage, Diagnostic, ImageKind};

use crate::failure::Failure;
use crate::time_limit::run_within;

/// The assembler's name where it is looked for.
const NAME: &str = "ptxas";
/// Time for one image. The largest take seconds.
const TIME_LIMIT: Duration = Duration::from_secs(600);
/// Time to say which version it is.
const TIME_LIMIT_OF_VERSION: Duration = Duration::from_secs(10);
/// What NVIDIA's assembler calls itself.
const SELF_DESCRIPTION: &str = "Ptx optimizing assembler";
/// Lines that are shown of what an assembler says.
const MOST_LINES: usize = 12;
/// Characters that are shown of a line.
const MOST_CHARACTERS: usize = 240;
/// What always helps.
const WITHOUT: &str = "or give `--ptxas none`: the program then holds PTX alone, which a driver compiles";

/// A release of CUDA: `(12, 8)`.
type Release = (u32, u32);

/// The assembler that was named, or the one on `PATH`; none where there is none.
pub(crate) fn find(named: Option<&Path>) -> Option<PathBuf> {
    named.map(Path::to_path_buf).or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join(NAME)).find(|file| file.is_file())
    })
}

/// The machine code of a PTX image.
///
/// # Errors
///
/// When the assembler cannot be started, does not end, is none or too old a one, or refuses the PTX.
pub(crate) fn assemble(assembler: &Path, image: &DeviceImage) -> Result<DeviceImage, Failure> {
    assemble_within(assembler, image, TIME_LIMIT)
}

fn assemble_within(assembler: &Path, image: &DeviceImage, limit: Duration) -> Result<DeviceImage, Failure> {
    let directory = tempfile::Builder::new()
        .prefix("qwen2c-ptxas-")
        .tempdir()
        .map_err(|error| Failure::file("create a directory to assemble in", &std::env::temp_dir(), &error))?;
    let ptx = directory.path().join("kernels.ptx");
    fs::write(&ptx, &image.bytes)
        .map_err(|error| Failure::file("write what is to be assembled", &ptx, &error))?;
    // Names are relative: the output must not depend on where it was made.
    let cannot_start = |error: io::Error| cannot_start(assembler, image, &error);
    let path = fs::canonicalize(assembler).map_err(cannot_start)?;
    let mut command = Command::new(&path);
    command
        .arg(format!("-arch=sm_{}", image.architecture))
        .args(["-o", "kernels.cubin", "kernels.ptx"])
        .current_dir(directory.path())
        .env("LC_ALL", "C");
    let ended = run_within(&mut command, limit).map_err(cannot_start)?;
    let Some(status) = ended.status else { return Err(does_not_end(assembler, image, limit, &ended.text)) };
    let cubin = directory.path().join("kernels.cubin");
    if !status.success() || !cubin.is_file() {
        // Who is ended by the system says nothing itself.
        let said = if status.code().is_none() { format!("{status}\n{}", ended.text) } else { ended.text };
        return Err(refused(assembler, image, &said, &self_description(&path, limit)));
    }
    let bytes = fs::read(&cubin).map_err(|error| Failure::file("read what was assembled", &cubin, &error))?;
    Ok(DeviceImage { architecture: image.architecture, kind: ImageKind::Cubin, bytes })
}

/// What the program answers to `--version`; nothing where it does not answer.
fn self_description(path: &Path, limit: Duration) -> String {
    let mut command = Command::new(path);
    command.arg("--version").env("LC_ALL", "C");
    run_within(&mut command, limit.min(TIME_LIMIT_OF_VERSION))
        .map_or_else(|_| String::new(), |ended| ended.text)
}

/// The release in `Cuda compilation tools, release 13.0, V13.0.88`.
fn release(self_description: &str) -> Option<Release> {
    let (_, rest) = self_description.split_once("release ")?;
    let (major, minor) = rest.split(',').next()?.split_once('.')?;
    Some((major.trim().parse().ok()?, minor.trim().parse().ok()?))
}

/// The release that brought the PTX version of an image, in its `.version 8.7`.
fn needed_release(image: &DeviceImage) -> Option<Release> {
    let text = String::from_utf8_lossy(&image.bytes);
    let (_, rest) = text.split_once(".version")?;
    let (major, minor) = rest.split_whitespace().next()?.split_once('.')?;
    Some(match (major.parse().ok()?, minor.parse().ok()?) {
        (7, minor) => (11, minor),
        (8, minor @ ..=5) => (12, minor),
        (8, minor) => (12, minor + 1),
        (major, minor) => (major + 4, minor),
    })
}

/// ``NVIDIA's `ptxas` of CUDA 12.8 or newer, for sm_120``.
fn needed(image: &DeviceImage) -> String {
    let release = needed_release(image).map(|(major, minor)| format!(" of CUDA {major}.{minor} or newer"));
    format!("NVIDIA's `ptxas`{}, for sm_{}", release.unwrap_or_default(), image.architecture)
}

/// A message about the program that was named or found.
fn about(title: String, image: &DeviceImage) -> Diagnostic {
    Diagnostic::new(title).at("`--ptxas`").needed(needed(image))
}

fn cannot_start(assembler: &Path, image: &DeviceImage, error: &io::Error) -> Failure {
    about(format!("cannot start `{}`", assembler.display()), image)
        .cause(error.to_string())
        .help(format!("name NVIDIA's `ptxas`, {WITHOUT}"))
        .into()
}

fn does_not_end(assembler: &Path, image: &DeviceImage, limit: Duration, said: &str) -> Failure {
    let title = format!("`{}` did not end, and was killed", assembler.display());
    let found = format!("no code for sm_{} after {} s", image.architecture, limit.as_secs_f64());
    with_lines(about(title, image).found(found), said)
        .help(format!("name a `ptxas` that answers `--version`, {WITHOUT}"))
        .into()
}

fn refused(assembler: &Path, image: &DeviceImage, said: &str, self_description: &str) -> Failure {
    let title = format!("`{}` makes no code for sm_{}", assembler.display(), image.architecture);
    let diagnostic = about(title, image);
    if !self_description.contains(SELF_DESCRIPTION) {
        let found = match self_description.lines().find(|line| !line.trim().is_empty()) {
            Some(line) => format!("a program that answers `--version` with `{}`", printable(line)),
            None => "a program that does not answer `--version`".to_owned(),
        };
        let diagnostic = with_lines(diagnostic.found(found), said);
        return diagnostic.help(format!("name NVIDIA's `ptxas`, {WITHOUT}")).into();
    }
    let found = release(self_description);
    let of_release = found.map(|(major, minor)| format!(" of CUDA {major}.{minor}")).unwrap_or_default();
    let diagnostic = with_lines(diagnostic.found(format!("`ptxas`{of_release}")), said);
    let is_old = found.zip(needed_release(image)).is_none_or(|(found, needed)| found < needed);
    if is_old {
        return diagnostic.help(format!("use the `ptxas` of a newer CUDA toolkit, {WITHOUT}")).into();
    }
    diagnostic
        .help(format!("use the `ptxas` of another CUDA toolkit, {WITHOUT}"))
        .help("report this as a bug of `qwen2c`, with these lines")
        .into()
}

/// Adds what the program said.
fn with_lines(diagnostic: Diagnostic, said: &str) -> Diagnostic {
    said.lines().take(MOST_LINES).fold(diagnostic, |diagnostic, line| diagnostic.cause(printable(line)))
}

/// The beginning of a line, without what would control a terminal.
fn printable(line: &str) -> String {
    line.trim_end().chars().filter(|char| !char.is_control()).take(MOST_CHARACTERS).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;
    use std::time::{Duration, Instant};

    use qwen2c_format::{DeviceImage, ImageKind};
    use tempfile::TempDir;

    use super::{assemble, assemble_within, find, needed_release, release};

    fn image(architecture: u32, version: &str) -> DeviceImage {
        let bytes = format!("//\n.version {version}\n.target sm_{architecture}\n").into_bytes();
        DeviceImage { architecture, kind: ImageKind::Ptx, bytes }
    }

    /// What a program with this script answers within a time.
    #[track_caller]
    fn refused(script: &str, limit: Duration, parts: &[&str]) {
        let folder = TempDir::new().unwrap();
        let program = folder.path().join("ptxas");
        // A shell writes it: what this process has open for writing, a child of another test may hold open, and
        // then it cannot be started.
        let write = "printf '%s\\n' '#!/bin/sh' \"$2\" > \"$1\"; chmod +x \"$1\"";
        let mut shell = Command::new("/bin/sh");
        assert!(shell.args(["-c", write, "sh"]).arg(&program).arg(script).status().unwrap().success());
        let failure = assemble_within(&program, &image(120, "8.7"), limit).unwrap_err();
        assert_eq!(failure.exit_code(), 1);
        let message = failure.to_string();
        let everywhere =
            ["--> `--ptxas`", "NVIDIA's `ptxas` of CUDA 12.8 or newer, for sm_120", "`--ptxas none`"];
        for part in parts.iter().chain(&everywhere) {
            assert!(message.contains(part), "`{part}` is not in {message}");
        }
    }

    /// A script that says what assemblers of a release say, and then something else.
    fn of_release(release: &str, rest: &str) -> String {
        let version = format!(
            "ptxas: NVIDIA (R) Ptx optimizing assembler\nCuda compilation tools, release {release}, V1"
        );
        format!("if [ \"$1\" = --version ]; then echo '{version}'; exit 0; fi\n{rest}")
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn what_is_no_assembler_is_named() {
        let missing = assemble(Path::new("/nowhere/ptxas"), &image(80, "7.0")).unwrap_err();
        assert_eq!(missing.exit_code(), 1);
        assert!(missing.to_string().contains("/nowhere/ptxas"), "{missing}");
        assert!(missing.to_string().contains("of CUDA 11.0 or newer, for sm_80"), "{missing}");
        // It starts and succeeds, and makes nothing.
        refused(
            "exit 0",
            LONG,
            &["makes no code for sm_120", "found: a program that does not answer `--version`"],
        );
        refused(
            "echo 'GNU assembler 2.40'; echo 'wrong option' >&2; exit 1",
            LONG,
            &[
                "answers `--version` with `GNU assembler 2.40`",
                "cause: wrong option",
                "name NVIDIA's `ptxas`",
            ],
        );
    }

    #[test]
    fn an_assembler_that_is_too_old_is_named_with_both_releases() {
        let says = "echo \"ptxas fatal   : Value 'sm_120' is not defined for option 'gpu-name'\" >&2; exit 1";
        let parts = ["found: `ptxas` of CUDA 12.4", "'sm_120' is not defined", "of a newer CUDA toolkit"];
        refused(&of_release("12.4", says), LONG, &parts);
        let parts = ["found: `ptxas` of CUDA 13.0", "'sm_120' is not defined", "report this as a bug"];
        refused(&of_release("13.0", says), LONG, &parts);
    }

    #[test]
    fn a_program_that_does_not_end_is_killed() {
        let start = Instant::now();
        let limit = Duration::from_millis(300);
        refused(
            "echo begun; sleep 30",
            limit,
            &["did not end, and was killed", "after 0.3 s", "cause: begun"],
        );
        // What the system ends says nothing; what else is said goes to a terminal.
        let parts = ["found: `ptxas` of CUDA 13.0", "cause: signal: 9", "cause: [1mloud"];
        refused(&of_release("13.0", "printf '\\033[1mloud\\n'; kill -9 $$"), LONG, &parts);
        // Neither does one that only stops for `--version`.
        refused("[ \"$1\" = --version ] && sleep 30; exit 1", limit, &["does not answer `--version`"]);
        assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
    }

    #[test]
    fn releases_are_read_and_follow_from_versions_of_ptx() {
        assert_eq!(release("Cuda compilation tools, release 13.0, V13.0.88\n"), Some((13, 0)));
        assert_eq!(release("GNU assembler"), None);
        let needed = |version| needed_release(&image(80, version));
        let of_ptx = ["7.8", "8.5", "8.6", "8.7", "9.0"].map(needed);
        assert_eq!(of_ptx, [(11, 8), (12, 5), (12, 7), (12, 8), (13, 0)].map(Some));
    }

    #[test]
    fn a_named_assembler_comes_before_the_path() {
        assert_eq!(find(Some(Path::new("/nowhere/ptxas"))).as_deref(), Some(Path::new("/nowhere/ptxas")));
    }
}

//! The file being built: beside its final name until it is complete.
//!
//! A failed build leaves nothing: the file is removed when it is dropped, and on an interrupt too.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use qwen2c_format::Diagnostic;
use tempfile::NamedTempFile;

use crate::failure::Failure;
use crate::time_limit::end_running;
use crate::units;

/// What to remove when the process is interrupted.
static UNFINISHED: Mutex<Option<PathBuf>> = Mutex::new(None);

/// A file that will have a name once it is complete.
pub(crate) struct Output {
    file: NamedTempFile,
    destination: PathBuf,
}

impl Output {
    /// Creates the empty file of a program in the directory of `destination`.
    ///
    /// # Errors
    ///
    /// When the directory is missing or not writable, or `destination` a directory or device.
    pub(crate) fn create(destination: &Path) -> Result<Self, Failure> {
        Self::create_with(destination, Permissions::from_mode(0o777))
    }

    /// The same for a file that is read and not run.
    ///
    /// # Errors
    ///
    /// As for a program.
    pub(crate) fn create_document(destination: &Path) -> Result<Self, Failure> {
        Self::create_with(destination, Permissions::from_mode(0o666))
    }

    /// Creates a file with these permissions, less what the user's mask takes away.
    fn create_with(destination: &Path, permissions: Permissions) -> Result<Self, Failure> {
        let directory = directory_of(destination);
        if destination.exists() && !destination.is_file() {
            let kind = if destination.is_dir() { "directory" } else { "device" };
            return Err(Diagnostic::new(format!("the output is a {kind}"))
                .at(destination.display().to_string())
                .needed("a file that can be replaced, or a name that is free")
                .help("name a file")
                .into());
        }
        let file = tempfile::Builder::new()
            .prefix(".qwen2c-")
            .suffix(".unfinished")
            .permissions(permissions)
            .tempfile_in(directory)
            .map_err(|error| Failure::file("create the output", destination, &error))?;
        remember(Some(file.path().to_path_buf()));
        Ok(Self { file, destination: destination.to_path_buf() })
    }

    /// Looks whether the disk has room for `needed_bytes`.
    ///
    /// # Errors
    ///
    /// When it has not.
    pub(crate) fn require_space(&self, needed_bytes: u64) -> Result<(), Failure> {
        let directory = directory_of(&self.destination);
        let statistics = rustix::fs::statvfs(directory)
            .map_err(|error| Failure::file("look at the output's directory", directory, &error.into()))?;
        let free_bytes = statistics.f_bavail.saturating_mul(statistics.f_frsize);
        if free_bytes >= needed_bytes {
            return Ok(());
        }
        Err(Diagnostic::new("not enough room on the disk")
            .at(directory.display().to_string())
            .found(format!("{} free", units::exact_bytes(free_bytes)))
            .needed(units::exact_bytes(needed_bytes))
            .help("free some space, or name a file on another disk with `-o`")
            .into())
    }

    /// The open file.
    pub(crate) fn file(&self) -> &File {
        self.file.as_file()
    }

    /// An error of writing, with the final name.
    pub(crate) fn failure(&self, error: &io::Error) -> Failure {
        Failure::file("write the output", &self.destination, error)
    }

    /// Gives the file its name, replacing what had it.
    ///
    /// # Errors
    ///
    /// When it cannot be renamed.
    pub(crate) fn complete(self) -> Result<(), Failure> {
        let Self { file, destination } = self;
        file.persist(&destination)
            .map_err(|error| Failure::file("rename the finished output", &destination, &error.error))?;
        remember(None);
        Ok(())
    }
}

/// Removes an unfinished output, and ends the programs that work for it, when the user interrupts the build.
///
/// # Errors
///
/// When the process cannot have a signal handler.
pub(crate) fn remove_on_interrupt() -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(|| {
        remove_unfinished();
        end_running();
        std::process::exit(130);
    })
}

/// Removes an unfinished output, for ends of the process that drop nothing.
pub(crate) fn remove_unfinished() {
    if let Ok(mut unfinished) = UNFINISHED.lock()
        && let Some(path) = unfinished.take()
    {
        // Nothing more can be done about a file that cannot be removed.
        let _ = std::fs::remove_file(path);
    }
}

fn remember(path: Option<PathBuf>) {
    if let Ok(mut unfinished) = UNFINISHED.lock() {
        *unfinished = path;
    }
}

fn directory_of(destination: &Path) -> &Path {
    match destination.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::Output;
    use crate::failure::Failure;

    #[test]
    fn an_output_appears_only_when_complete() {
        let directory = tempfile::tempdir().unwrap();
        let destination = directory.path().join("program");
        let output = Output::create(&destination).unwrap();
        output.file().write_all(b"done").unwrap();
        assert!(!destination.exists());
        output.complete().unwrap();
        assert_eq!(std::fs::read(&destination).unwrap(), b"done");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_output_that_is_not_completed_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        drop(Output::create(&directory.path().join("program")).unwrap());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_disk_without_room_is_seen_before_writing() {
        let directory = tempfile::tempdir().unwrap();
        let output = Output::create(&directory.path().join("program")).unwrap();
        output.require_space(1).unwrap();
        let failure = output.require_space(u64::MAX).unwrap_err();
        drop(output);
        assert!(
            matches!(&failure, Failure::Input(diagnostic) if diagnostic.title.contains("room")),
            "{failure}"
        );
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_not_a_file_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let failure = Output::create(directory.path()).map(|_| ()).unwrap_err();
        assert!(failure.to_string().contains("is a directory"), "{failure}");
        let failure = Output::create("/dev/null".as_ref()).map(|_| ()).unwrap_err();
        assert!(failure.to_string().contains("is a device"), "{failure}");
    }

    #[test]
    fn a_missing_directory_is_named() {
        let failure = Output::create("no/such/directory/program".as_ref()).map(|_| ()).unwrap_err();
        assert!(failure.to_string().contains("no/such/directory"), "{failure}");
    }
}

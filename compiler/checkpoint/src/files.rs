//! Reading the small files of a checkpoint, and reading at a position.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use qwen2c_format::Diagnostic;
use serde_json::{Map, Value};

/// Longest JSON file that is read: several times the largest tokenizer of the family.
const MAX_TEXT_BYTES: u64 = 128 << 20;

/// A file open for positioned reads.
#[derive(Debug)]
pub(crate) struct OpenFile {
    /// Where it was opened, for messages.
    pub(crate) path: PathBuf,
    /// Length when it was opened.
    pub(crate) bytes: u64,
    file: File,
}

impl OpenFile {
    /// Opens a regular file.
    pub(crate) fn open(path: &Path) -> Result<Self, Diagnostic> {
        let file = File::open(path).map_err(|error| cannot_read(path, &error))?;
        let metadata = file.metadata().map_err(|error| cannot_read(path, &error))?;
        if !metadata.is_file() {
            return Err(Diagnostic::new("a regular file is needed").at(path.display().to_string()));
        }
        Ok(Self { path: path.to_owned(), bytes: metadata.len(), file })
    }

    /// Fills `out` from `offset` on.
    pub(crate) fn read_at(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    /// The path as text.
    pub(crate) fn place(&self) -> String {
        self.path.display().to_string()
    }
}

/// The file cannot be opened or read.
pub(crate) fn cannot_read(path: &Path, error: &std::io::Error) -> Diagnostic {
    Diagnostic::new("cannot read the file").at(path.display().to_string()).cause(error.to_string())
}

/// Contents of a file, or none where it does not exist.
pub(crate) fn read_file_if_present(path: &Path) -> Result<Option<Vec<u8>>, Diagnostic> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot_read(path, &error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_TEXT_BYTES + 1).read_to_end(&mut bytes).map_err(|error| cannot_read(path, &error))?;
    if bytes.len() as u64 > MAX_TEXT_BYTES {
        return Err(Diagnostic::new("the file is too long to be what its name says")
            .at(path.display().to_string())
            .needed(format!("at most {} MiB", MAX_TEXT_BYTES >> 20)));
    }
    Ok(Some(bytes))
}

/// A JSON object, or none where the file does not exist.
pub(crate) fn read_json_if_present(path: &Path) -> Result<Option<Map<String, Value>>, Diagnostic> {
    let Some(bytes) = read_file_if_present(path)? else {
        return Ok(None);
    };
    parse_json_object(&bytes, &path.display().to_string()).map(Some)
}

/// Parses a JSON object; `place` is where it was seen.
pub(crate) fn parse_json_object(bytes: &[u8], place: &str) -> Result<Map<String, Value>, Diagnostic> {
    serde_json::from_slice(bytes).map_err(|error| {
        Diagnostic::new("the file is not a JSON object")
            .at(place)
            .cause(error.to_string())
            .help("the file may be cut short, or a Git LFS pointer instead of the file itself")
    })
}

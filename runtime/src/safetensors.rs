//! Writes one tensor as a safetensors file, row by row.
//!
//! The format is 8 bytes of header length, a JSON header, and the data; a reader of it would be longer
//! than this writer, which is why no library is linked in for it.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use qwen2c_format::Diagnostic;

/// A file that gets its name once it is complete, and is removed where that never happens.
pub(crate) struct TensorFile {
    path: PathBuf,
    partial_path: PathBuf,
    writer: BufWriter<File>,
    columns: usize,
    is_complete: bool,
}

impl TensorFile {
    /// Begins a file with the tensor `name`, `f32[rows, columns]`, and takes its room on the disk.
    ///
    /// # Errors
    ///
    /// What the system says: no such folder, no room.
    pub(crate) fn create(path: &Path, name: &str, rows: usize, columns: usize) -> Result<Self, Diagnostic> {
        let data_bytes = rows as u64 * columns as u64 * 4;
        let header = serde_json::json!({
            name: { "dtype": "F32", "shape": [rows, columns], "data_offsets": [0, data_bytes] },
        });
        let mut header = header.to_string().into_bytes();
        // The data begins at a multiple of 8.
        header.resize(header.len().next_multiple_of(8), b' ');
        let file_bytes = 8 + header.len() as u64 + data_bytes;
        let failed = |error: io::Error| cannot_write(path, file_bytes, &error);
        let partial_path = partial_path(path);
        let file = File::create(&partial_path).map_err(failed)?;
        let mut tensor_file = Self {
            path: path.to_owned(),
            partial_path,
            writer: BufWriter::new(file),
            columns,
            is_complete: false,
        };
        reserve(tensor_file.writer.get_ref(), file_bytes).map_err(failed)?;
        let written = tensor_file
            .writer
            .write_all(&(header.len() as u64).to_le_bytes())
            .and_then(|()| tensor_file.writer.write_all(&header));
        written.map_err(failed)?;
        Ok(tensor_file)
    }

    /// Adds a row.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub(crate) fn write_row(&mut self, row: &[f32]) -> Result<(), Diagnostic> {
        debug_assert_eq!(row.len(), self.columns);
        for value in row {
            self.writer
                .write_all(&value.to_le_bytes())
                .map_err(|error| cannot_write(&self.path, row.len() as u64 * 4, &error))?;
        }
        Ok(())
    }

    /// Gives the complete file its name.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub(crate) fn finish(mut self) -> Result<(), Diagnostic> {
        let rename = || match self.partial_path == self.path {
            true => Ok(()),
            false => fs::rename(&self.partial_path, &self.path),
        };
        let renamed = self.writer.flush().and_then(|()| rename());
        renamed.map_err(|error| cannot_write(&self.path, 0, &error))?;
        self.is_complete = true;
        Ok(())
    }
}

impl Drop for TensorFile {
    fn drop(&mut self) {
        if !self.is_complete && self.partial_path != self.path {
            // The error that led here is the one to report.
            let _ = fs::remove_file(&self.partial_path);
        }
    }
}

/// The name of a file that is not complete yet: beside its own, or the same for a device or a pipe, which
/// must not be replaced.
fn partial_path(path: &Path) -> PathBuf {
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return path.to_owned();
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.partial", std::process::id()));
    path.with_file_name(name)
}

/// Takes room on the disk, so that a full one is noticed before hours of work.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    let bytes = libc::off_t::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    // SAFETY: the descriptor is open; the call touches no memory of ours.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, bytes) } {
        0 => Ok(()),
        // File systems and devices that cannot reserve: writing will tell.
        libc::EINVAL | libc::EOPNOTSUPP | libc::ENODEV | libc::ESPIPE => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn cannot_write(path: &Path, bytes: u64, error: &io::Error) -> Diagnostic {
    let diagnostic = Diagnostic::new("the output cannot be written")
        .at(path.display().to_string())
        .cause(error.to_string());
    match error.kind() {
        io::ErrorKind::StorageFull => {
            diagnostic.needed(format!("room for {bytes} bytes")).help("make room, or write to another disk")
        }
        _ => diagnostic,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_header_shape_and_values() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let path = folder.path().join("out.safetensors");
        let mut file = TensorFile::create(&path, "logits", 2, 3).expect("can be created");
        file.write_row(&[1.0, 2.0, 3.0]).expect("can be written");
        assert!(!path.exists());
        file.write_row(&[-1.0, 0.5, f32::INFINITY]).expect("can be written");
        file.finish().expect("can be finished");
        let bytes = fs::read(&path).expect("is there");
        let header_bytes = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        assert_eq!(header_bytes % 8, 0);
        let header: serde_json::Value =
            serde_json::from_slice(&bytes[8..8 + header_bytes]).expect("the header is JSON");
        assert_eq!(header["logits"]["shape"], serde_json::json!([2, 3]));
        assert_eq!(header["logits"]["data_offsets"], serde_json::json!([0, 24]));
        let data = &bytes[8 + header_bytes..];
        assert_eq!(data.len(), 24);
        assert_eq!(data[16..20], 0.5_f32.to_le_bytes());
        assert_eq!(fs::read_dir(folder.path()).expect("can be listed").count(), 1);
    }

    #[test]
    fn an_unfinished_file_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        drop(TensorFile::create(&folder.path().join("out"), "logits", 2, 3).expect("can be created"));
        assert_eq!(fs::read_dir(folder.path()).expect("can be listed").count(), 0);
        let full = TensorFile::create(Path::new("/dev/full"), "logits", 1, 1).expect("can be opened");
        assert!(full.finish().expect_err("is full").to_string().contains("cannot be written"));
        assert!(!fs::metadata("/dev/full").expect("is there").is_file());
        let missing = TensorFile::create(&folder.path().join("no/out"), "logits", 1, 1);
        assert!(missing.err().expect("no such folder").to_string().contains("cannot be written"));
    }
}

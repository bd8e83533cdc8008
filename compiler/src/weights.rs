//! Weights on their way from the checkpoint into the program: read by rows, packed, hashed, written.
//!
//! Nothing is held but a few rows for each thread, so a model of any size builds in little memory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use qwen2c_format::{Diagnostic, WeightEntry};
use qwen2c_graph::plan::PlacedWeight;
use qwen2c_graph::{SourceError, TensorSource};
use qwen2c_targets::pack_weight;
use sha2::{Digest, Sha256};

use crate::failure::Failure;
use crate::program::weight_entry;
use crate::progress::Progress;

/// Packing is limited by the disk and the conversion of numbers; more threads only cost memory.
const MOST_THREADS: usize = 8;

/// Bytes collected before they are written.
const WRITE_BYTES: usize = 1 << 20;

/// Writes all weights to `file`, whose weight region begins at `region_offset`, and returns the weight
/// table in the order of `weights`.
///
/// # Errors
///
/// When a tensor cannot be read or is refused, or the file cannot be written; of several errors that of
/// the first weight.
pub(crate) fn write_weights(
    weights: &[PlacedWeight],
    source: &(dyn TensorSource + Sync),
    file: &File,
    region_offset: u64,
    progress: &Progress,
) -> Result<Vec<WeightEntry>, Failure> {
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<Result<WeightEntry, Failure>>>> =
        weights.iter().map(|_| Mutex::new(None)).collect();
    let threads = thread::available_parallelism().map_or(1, std::num::NonZero::get).min(MOST_THREADS);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(weight) = weights.get(index) else { break };
                    let result = write_weight(weight, source, file, region_offset, progress);
                    if result.is_err() {
                        // The others stop at their next weight.
                        next.store(weights.len(), Ordering::Relaxed);
                    }
                    *results[index].lock().expect("no thread panics while it holds a result") = Some(result);
                }
            });
        }
    });
    // After an error weights behind it may be missing; the error comes before them.
    results
        .into_iter()
        .filter_map(|result| result.into_inner().expect("no thread panics while it holds a result"))
        .collect()
}

fn write_weight(
    placed: &PlacedWeight,
    source: &(dyn TensorSource + Sync),
    file: &File,
    region_offset: u64,
    progress: &Progress,
) -> Result<WeightEntry, Failure> {
    let mut writer = HashingWriter {
        file,
        position: region_offset + placed.offset,
        pending: Vec::with_capacity(WRITE_BYTES),
        hash: Sha256::new(),
        progress,
    };
    let weight = &placed.weight;
    pack_weight(
        &weight.ty,
        placed.layout,
        &mut |first_row, out| {
            weight.read_rows(source, first_row, out).map_err(|error| unreadable(&weight.name, error))
        },
        &mut |bytes| writer.write(bytes),
    )?;
    let written_bytes = writer.finish()?;
    if written_bytes.1 != region_offset + placed.offset + placed.bytes {
        return Err(Failure::Bug(
            Diagnostic::new(format!("weight `{}` does not fill its place", weight.name))
                .found(format!("{} bytes", written_bytes.1 - region_offset - placed.offset))
                .needed(format!("{} bytes", placed.bytes)),
        ));
    }
    Ok(weight_entry(placed, written_bytes.0))
}

/// A tensor that cannot be read; the reader's own diagnostic where it gives one.
pub(crate) fn unreadable(weight: &str, error: SourceError) -> Failure {
    match error.downcast::<Diagnostic>() {
        Ok(diagnostic) => Failure::Input(*diagnostic),
        Err(error) => {
            Failure::Input(Diagnostic::new(format!("cannot read weight `{weight}`")).cause(error.to_string()))
        }
    }
}

/// Collects bytes, writes them in large pieces at their position, and hashes them.
struct HashingWriter<'a> {
    file: &'a File,
    position: u64,
    pending: Vec<u8>,
    hash: Sha256,
    progress: &'a Progress,
}

impl HashingWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        if self.pending.len() + bytes.len() > WRITE_BYTES {
            self.flush()?;
        }
        if bytes.len() >= WRITE_BYTES { self.put(bytes) } else { Ok(self.pending.extend_from_slice(bytes)) }
    }

    fn flush(&mut self) -> Result<(), Failure> {
        let pending = std::mem::take(&mut self.pending);
        self.put(&pending)?;
        self.pending = pending;
        self.pending.clear();
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.hash.update(bytes);
        self.file.write_all_at(bytes, self.position).map_err(|error| {
            Failure::Input(Diagnostic::new("cannot write the weights").cause(error.to_string()))
        })?;
        self.position += bytes.len() as u64;
        self.progress.advance(bytes.len() as u64);
        Ok(())
    }

    /// The hash, and the position behind the last byte.
    fn finish(mut self) -> Result<([u8; 32], u64), Failure> {
        self.flush()?;
        Ok((self.hash.finalize().into(), self.position))
    }
}

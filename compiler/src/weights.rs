//! Weights on their way from the checkpoint into the program: read by rows, packed, hashed, written.
//!
//! Nothing is held but a few rows for each thread, so a model of any size builds in little memory: there are
//! as many threads as cores, and fewer where their rows would be too many bytes.

use std::cmp::Reverse;
use std::fs::File;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use qwen2c_format::{Diagnostic, WeightEntry};
use qwen2c_graph::plan::PlacedWeight;
use qwen2c_graph::{SourceError, TensorSource, Weight};
use qwen2c_request::{QuantizationError, QuantizedRows};
use qwen2c_targets::{ReadWeight, pack_weight};
use sha2::{Digest, Sha256};

use crate::block_file::{BLOCK_BYTES, BlockFile};
use crate::failure::Failure;
use crate::program::weight_entry;
use crate::progress::Progress;

/// Bytes that all threads together may hold. Each takes a weight of its own, so the largest, which is the
/// embedding, is the longest that a build takes however many cores there are: for 7B the time of 14 of them.
const MOST_BYTES: u64 = 1 << 30;

/// Rows that a thread holds at most: those of one panel.
const PANEL_ROWS: u64 = 16;

/// Bytes of each element of these rows: read and without padding 4 each, its integer twice, packed 4, and a
/// scale and a minimum, 8 each (with and without padding), for every 16.
const BYTES_OF_AN_ELEMENT: u64 = 4 + 4 + 2 + 4 + 1;

/// A weight that was written: its entry in the table, and what quantization lost.
pub(crate) type WrittenWeight = (WeightEntry, QuantizationError);

/// Writes all weights to `file`, whose weight region begins at `region_offset`, and tells of each in the
/// order of `weights`.
///
/// # Errors
///
/// When a tensor cannot be read or is refused, or the file cannot be written; of several errors that of
/// the largest weight.
pub(crate) fn write_weights(
    weights: &[PlacedWeight],
    source: &(dyn TensorSource + Sync),
    file: &File,
    region_offset: u64,
    progress: &Progress,
) -> Result<Vec<WrittenWeight>, Failure> {
    // The largest first: what is left at the end is small, and no thread works long alone.
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|index| Reverse(weights[*index].bytes));
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<Result<WrittenWeight, Failure>>>> =
        weights.iter().map(|_| Mutex::new(None)).collect();
    let file = BlockFile::new(file);
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = packing_threads(cores, weights);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&index) = order.get(turn) else { break };
                    let result = write_weight(&weights[index], source, &file, region_offset, progress);
                    if result.is_err() {
                        // The others stop at their next weight.
                        next.store(weights.len(), Ordering::Relaxed);
                    }
                    *results[turn].lock().expect("no thread panics while it holds a result") = Some(result);
                }
            });
        }
    });
    // After an error weights behind it may be missing; the error comes before them.
    let mut written = order
        .into_iter()
        .zip(results)
        .filter_map(|(index, result)| {
            let result = result.into_inner().expect("no thread panics while it holds a result")?;
            Some(result.map(|weight| (index, weight)))
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    written.sort_unstable_by_key(|(index, _)| *index);
    Ok(written.into_iter().map(|(_, weight)| weight).collect())
}

/// One for each core and weight, as far as what they hold together stays below [`MOST_BYTES`].
fn packing_threads(cores: usize, weights: &[PlacedWeight]) -> usize {
    let most_bytes = weights.iter().map(|placed| bytes_of_a_thread(placed.weight.ty.columns())).max();
    let affordable = MOST_BYTES / most_bytes.unwrap_or(MOST_BYTES);
    cores.min(weights.len()).min(affordable as usize).max(1)
}

/// Most bytes that a thread holds of a weight with so many columns: what is collected for a write, as much
/// again of the checkpoint's file (a row of it may be more), and the rows of a panel on their way.
fn bytes_of_a_thread(columns: u64) -> u64 {
    2 * BLOCK_BYTES as u64 + 4 * columns + PANEL_ROWS * columns * BYTES_OF_AN_ELEMENT
}

fn write_weight(
    placed: &PlacedWeight,
    source: &(dyn TensorSource + Sync),
    file: &BlockFile<'_>,
    region_offset: u64,
    progress: &Progress,
) -> Result<WrittenWeight, Failure> {
    let mut writer = HashingWriter {
        file,
        position: region_offset + placed.offset,
        pending: Vec::with_capacity(BLOCK_BYTES),
        hash: Sha256::new(),
        progress,
    };
    let weight = &placed.weight;
    let mut reader = WeightReader { weight, source };
    let error = pack_weight(&weight.ty, placed.layout, &mut reader, &mut |bytes| writer.write(bytes))?;
    let (sha256, end) = writer.finish()?;
    let written_bytes = end - region_offset - placed.offset;
    if written_bytes != placed.bytes {
        return Err(Failure::Bug(
            Diagnostic::new(format!("weight `{}` does not fill its place", weight.name))
                .found(format!("{written_bytes} bytes"))
                .needed(format!("{} bytes", placed.bytes)),
        ));
    }
    Ok((weight_entry(placed, sha256), error))
}

/// Reads a weight's rows for the packer.
struct WeightReader<'a> {
    weight: &'a Weight,
    source: &'a (dyn TensorSource + Sync),
}

impl ReadWeight for WeightReader<'_> {
    type Error = Failure;

    fn rows(&mut self, first_row: u64, out: &mut [f32]) -> Result<(), Failure> {
        let read = self.weight.read_rows(self.source, first_row, out);
        read.map_err(|error| unreadable(&self.weight.name, error))
    }

    fn groups(&mut self, first_row: u64, out: &mut QuantizedRows<'_>) -> Result<QuantizationError, Failure> {
        let read = self.weight.read_groups(self.source, first_row, out);
        read.map_err(|error| unreadable(&self.weight.name, error))
    }
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

/// Collects bytes, writes them block by block of the file, and hashes them.
struct HashingWriter<'a> {
    file: &'a BlockFile<'a>,
    /// Where the pending bytes belong.
    position: u64,
    pending: Vec<u8>,
    hash: Sha256,
    progress: &'a Progress,
}

impl HashingWriter<'_> {
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        while !bytes.is_empty() {
            let room = BlockFile::bytes_to_end_of_block(self.position) - self.pending.len();
            let (of_block, rest) = bytes.split_at(bytes.len().min(room));
            self.pending.extend_from_slice(of_block);
            if of_block.len() == room {
                self.flush()?;
            }
            bytes = rest;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.hash.update(&self.pending);
        self.file.write_in_block(&self.pending, self.position).map_err(|error| {
            Failure::Input(Diagnostic::new("cannot write the weights").cause(error.to_string()))
        })?;
        let written_bytes = self.pending.len() as u64;
        self.position += written_bytes;
        self.progress.advance(written_bytes);
        self.pending.clear();
        Ok(())
    }

    /// The hash, and the position behind the last byte.
    fn finish(mut self) -> Result<([u8; 32], u64), Failure> {
        self.flush()?;
        Ok((self.hash.finalize().into(), self.position))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use qwen2c_graph::plan::PlacedWeight;
    use qwen2c_graph::{SourceError, TensorSource, Weight, WeightPart, WeightSource};
    use qwen2c_request::{Dimension, Element, WeightLayout, WeightType};
    use sha2::{Digest, Sha256};

    use super::{MOST_BYTES, bytes_of_a_thread, packing_threads, write_weights};
    use crate::failure::Failure;
    use crate::progress::Progress;

    /// Element `row · columns + column` everywhere, but for a tensor that is missing.
    struct Counting;

    impl TensorSource for Counting {
        fn read_rows(
            &self,
            tensor: &str,
            columns: u64,
            first: u64,
            out: &mut [f32],
        ) -> Result<(), SourceError> {
            if tensor == "missing" {
                return Err("no such tensor".into());
            }
            for (index, value) in out.iter_mut().enumerate() {
                *value = (first * columns) as f32 + index as f32;
            }
            Ok(())
        }
    }

    fn placed(tensor: &str, rows: u64, columns: u64, offset: u64, bytes: u64) -> PlacedWeight {
        let dimensions = vec![Dimension::constant("output", rows), Dimension::constant("input", columns)];
        PlacedWeight {
            weight: Weight {
                name: format!("{tensor}.weight"),
                ty: WeightType { dimensions, element: Element::F32, quantization: None },
                source_columns: columns,
                source: WeightSource::Tensors(vec![WeightPart {
                    tensor: tensor.to_owned(),
                    rows,
                    padded_rows: rows,
                }]),
                layout: Some(WeightLayout::RowMajor),
            },
            layout: WeightLayout::RowMajor,
            offset,
            bytes,
        }
    }

    fn write(weights: &[PlacedWeight]) -> Result<(Vec<qwen2c_format::WeightEntry>, Vec<u8>), Failure> {
        let mut file = tempfile::tempfile().unwrap();
        let written = write_weights(weights, &Counting, &file, 4096, &Progress::bytes("", 0, true))?;
        let mut bytes = Vec::new();
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        Ok((written.into_iter().map(|(entry, _)| entry).collect(), bytes))
    }

    #[test]
    fn weights_lie_at_their_offsets_with_the_hash_of_their_bytes() {
        // The second is larger than what is collected before a write.
        let weights = [placed("a", 2, 3, 0, 64), placed("b", 700, 1000, 64, 2_800_000)];
        let (entries, bytes) = write(&weights).unwrap();
        let number = |offset: usize| f32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap());
        assert_eq!(number(4096 + 20), 5.0);
        assert_eq!(number(4096 + 64 + 4 * 699_999), 699_999.0);
        let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["a.weight", "b.weight"]);
        for entry in entries {
            let start = 4096 + entry.offset as usize;
            let expected: [u8; 32] = Sha256::digest(&bytes[start..start + entry.bytes as usize]).into();
            assert_eq!(entry.sha256, expected, "{}", entry.name);
        }
    }

    #[test]
    fn threads_are_as_many_as_cores_while_they_hold_little() {
        let weights = |count: u64, columns: u64| -> Vec<PlacedWeight> {
            (0..count).map(|index| placed("a", 64, columns, index, 1)).collect()
        };
        // The widest of 7B and of 72B.
        assert_eq!(packing_threads(64, &weights(300, 18_944)), 64);
        assert_eq!(packing_threads(64, &weights(900, 29_568)), 64);
        assert_eq!(packing_threads(64, &weights(3, 64)), 3);
        assert_eq!(packing_threads(64, &[]), 1);
        for columns in [64, 29_568, 1 << 20, 1 << 24, 1 << 30] {
            let threads = packing_threads(1000, &weights(2000, columns)) as u64;
            assert!(
                threads == 1 || threads * bytes_of_a_thread(columns) <= MOST_BYTES,
                "{columns}: {threads}"
            );
            assert!((threads + 1) * bytes_of_a_thread(columns) > MOST_BYTES || threads == 1000, "{columns}");
        }
    }

    #[test]
    fn a_tensor_that_cannot_be_read_ends_the_build_with_its_weight_s_name() {
        let failure = write(&[placed("a", 2, 3, 0, 64), placed("missing", 2, 3, 64, 64)]).unwrap_err();
        assert_eq!(failure.exit_code(), 1);
        assert!(failure.to_string().contains("missing.weight"), "{failure}");
    }

    #[test]
    fn a_weight_that_does_not_fill_its_place_is_a_bug() {
        assert_eq!(write(&[placed("a", 2, 3, 0, 128)]).unwrap_err().exit_code(), 3);
    }
}

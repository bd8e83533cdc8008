//! All weights on their way from the checkpoint into the program.
//!
//! Nothing is held but a few rows for each thread, so a model of any size builds in little memory: there are
//! as many threads as cores, and fewer where their rows would be too many bytes.

use std::fs::File;
use std::thread;

use qwen2c_format::Diagnostic;
use qwen2c_graph::plan::PlacedWeight;
use qwen2c_graph::{SourceError, TensorSource};

use crate::block_file::{BLOCK_BYTES, BlockFile};
use crate::failure::Failure;
use crate::packing::{PIECE_BYTES, Packing, WrittenWeight};
use crate::pieces::Pieces;
use crate::progress::Progress;

/// Bytes that all threads together may hold.
const MOST_BYTES: u64 = 1 << 30;

/// Rows that a thread holds at most: those of one panel.
const PANEL_ROWS: u64 = 16;

/// Bytes of each element of these rows: read and without padding 4 each, its integer twice, packed 4, and as
/// many in the piece, and a scale and a minimum, 8 each (with and without padding), for every 16.
const BYTES_OF_AN_ELEMENT: u64 = 4 + 4 + 2 + 4 + 4 + 1;

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
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    write_with(packing_threads(cores, weights), weights, source, file, region_offset, progress)
}

fn write_with(
    threads: usize,
    weights: &[PlacedWeight],
    source: &(dyn TensorSource + Sync),
    file: &File,
    region_offset: u64,
    progress: &Progress,
) -> Result<Vec<WrittenWeight>, Failure> {
    let file = BlockFile::new(file);
    let packings: Vec<Packing<'_>> =
        weights.iter().map(|placed| Packing::new(placed, &file, region_offset, progress)).collect();
    let sizes: Vec<(u64, u64)> =
        weights.iter().zip(&packings).map(|(placed, packing)| (placed.bytes, packing.pieces())).collect();
    let pieces = Pieces::new(&sizes);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut own = None;
                while let Some(piece) = pieces.take(&mut own) {
                    if packings[piece.weight].pack(piece.index, source).is_err() {
                        // The others stop at their next piece.
                        pieces.drop_all();
                    }
                }
            });
        }
    });
    // After an error some weights are unfinished, and tell nothing.
    let mut results: Vec<_> = weights
        .iter()
        .zip(packings)
        .filter_map(|(placed, packing)| Some((placed.bytes, packing.result()?)))
        .collect();
    let failed = (0..results.len()).filter(|index| results[*index].1.is_err());
    if let Some(largest) = failed.max_by_key(|index| results[*index].0) {
        results.swap(0, largest);
    }
    results.into_iter().map(|(_, result)| result).collect()
}

/// One for each core, as far as what they hold together stays below [`MOST_BYTES`].
fn packing_threads(cores: usize, weights: &[PlacedWeight]) -> usize {
    let most_bytes = weights.iter().map(|placed| bytes_of_a_thread(placed.weight.ty.columns())).max();
    let affordable = MOST_BYTES / most_bytes.unwrap_or(MOST_BYTES);
    cores.min(affordable as usize).max(1)
}

/// Most bytes that a thread holds of a weight with so many columns: what is collected for a write, as much
/// again of the checkpoint's file (a row of it may be more), a piece, and the rows of a panel on their way.
fn bytes_of_a_thread(columns: u64) -> u64 {
    2 * BLOCK_BYTES as u64 + PIECE_BYTES + 4 * columns + PANEL_ROWS * columns * BYTES_OF_AN_ELEMENT
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

#[cfg(test)]
mod tests {
    use std::io::Read;

    use qwen2c_graph::plan::PlacedWeight;
    use qwen2c_graph::{SourceError, TensorSource, Weight, WeightPart, WeightSource};
    use qwen2c_request::{Dimension, Element, Quantization, WeightLayout, WeightType};
    use sha2::{Digest, Sha256};

    use super::{MOST_BYTES, WrittenWeight, bytes_of_a_thread, packing_threads};
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

    fn write_with(
        threads: usize,
        weights: &[PlacedWeight],
        source: &(dyn TensorSource + Sync),
    ) -> Result<(Vec<WrittenWeight>, Vec<u8>), Failure> {
        let mut file = tempfile::tempfile().unwrap();
        let progress = Progress::bytes("", 0, true);
        let written = super::write_with(threads, weights, source, &file, 4096, &progress)?;
        let mut bytes = Vec::new();
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        for (entry, _) in &written {
            let start = 4096 + entry.offset as usize;
            let expected: [u8; 32] = Sha256::digest(&bytes[start..start + entry.bytes as usize]).into();
            assert_eq!(entry.sha256, expected, "{} by {threads} threads", entry.name);
        }
        Ok((written, bytes))
    }

    fn write(weights: &[PlacedWeight]) -> Result<(Vec<WrittenWeight>, Vec<u8>), Failure> {
        write_with(2, weights, &Counting)
    }

    #[test]
    fn weights_lie_at_their_offsets_with_the_hash_of_their_bytes() {
        // The second is larger than what is collected before a write.
        let weights = [placed("a", 2, 3, 0, 64), placed("b", 700, 1000, 64, 2_800_000)];
        let (written, bytes) = write(&weights).unwrap();
        let number = |offset: usize| f32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap());
        assert_eq!(number(4096 + 20), 5.0);
        assert_eq!(number(4096 + 64 + 4 * 699_999), 699_999.0);
        let names: Vec<&str> = written.iter().map(|(entry, _)| entry.name.as_str()).collect();
        assert_eq!(names, ["a.weight", "b.weight"]);
    }

    /// The middle one is quantized and cut into many pieces.
    fn three_weights() -> [PlacedWeight; 3] {
        let mut wide = placed("b", 3000, 1024, 64, 0);
        wide.weight.ty.quantization = Some(Quantization::signed(8, 32));
        (wide.layout, wide.bytes) =
            (WeightLayout::Panels { lanes: 16, pair: 4, separate_halves: false }, 188 * 17_408);
        let end = 64 + wide.bytes;
        [placed("a", 2, 3, 0, 64), wide, placed("c", 700, 1000, end, 2_800_000)]
    }

    #[test]
    fn any_number_of_threads_writes_the_same() {
        let weights = three_weights();
        let alone = write_with(1, &weights, &Counting).unwrap();
        assert!(alone.0[1].1.differences > 0.0, "what is lost is told");
        for threads in [2, 3, 8, 40] {
            assert!(write_with(threads, &weights, &Counting).unwrap() == alone, "{threads} threads");
        }
    }

    /// Panics at one row of the wide weight: the pieces behind it wait for that row's.
    struct Panicking;

    impl TensorSource for Panicking {
        fn read_rows(
            &self,
            tensor: &str,
            columns: u64,
            first: u64,
            out: &mut [f32],
        ) -> Result<(), SourceError> {
            assert!(tensor != "b" || first != 1504, "a bug");
            Counting.read_rows(tensor, columns, first, out)
        }
    }

    #[test]
    fn a_thread_that_panics_is_waited_for_by_none() {
        let outcome = std::panic::catch_unwind(|| write_with(4, &three_weights(), &Panicking).map(|_| ()));
        assert!(outcome.is_err(), "the panic is seen");
    }

    #[test]
    fn threads_are_as_many_as_cores_while_they_hold_little() {
        let weights = |count: u64, columns: u64| -> Vec<PlacedWeight> {
            (0..count).map(|index| placed("a", 64, columns, index, 1)).collect()
        };
        // The widest of 7B and of 72B.
        assert_eq!(packing_threads(64, &weights(300, 18_944)), 64);
        assert_eq!(packing_threads(64, &weights(900, 29_568)), 64);
        assert_eq!(packing_threads(64, &weights(3, 64)), 64, "threads share a weight");
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

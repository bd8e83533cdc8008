//! A weight on its way from the checkpoint into the program: read by rows, packed, hashed, written.
//!
//! Any number of threads pack pieces of it at the same time. They write in turn, because a weight has one hash.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use qwen2c_format::{Diagnostic, WeightEntry};
use qwen2c_graph::plan::PlacedWeight;
use qwen2c_graph::{TensorSource, Weight};
use qwen2c_request::{QuantizationError, QuantizedRows};
use qwen2c_targets::{ReadWeight, pack_panels, weight_panels};

use crate::block_file::BlockFile;
use crate::failure::Failure;
use crate::hashing_writer::HashingWriter;
use crate::program::weight_entry;
use crate::progress::Progress;
use crate::weights::unreadable;

/// Bytes of a piece, or those of one panel where it has more: long enough to be worth a turn, and so short that
/// pieces are much less than what is collected for a write.
pub(crate) const PIECE_BYTES: u64 = 1 << 19;

/// A weight that was written: its entry in the table, and what quantization lost.
pub(crate) type WrittenWeight = (WeightEntry, QuantizationError);

/// A weight that any number of threads pack, piece by piece. They pack at the same time and write in turn,
/// because a weight has one hash.
pub(crate) struct Packing<'a> {
    placed: &'a PlacedWeight,
    region_offset: u64,
    /// Panels of the weight, and of each piece but the last.
    panels: u64,
    piece_panels: u64,
    turns: Mutex<Turns<'a>>,
    next_turn: Condvar,
}

/// What has become of a weight so far.
struct Turns<'a> {
    /// Pieces that have had their turn; more than there are where a thread has come to grief.
    over: u64,
    /// None behind the last piece, and behind a failure.
    writer: Option<HashingWriter<'a>>,
    loss: QuantizationError,
    result: Option<Result<WrittenWeight, Failure>>,
}

/// A piece of the weight failed, as its result says.
pub(crate) struct Failed;

impl<'a> Packing<'a> {
    /// Nothing of it is written.
    pub(crate) fn new(
        placed: &'a PlacedWeight,
        file: &'a BlockFile<'a>,
        region_offset: u64,
        progress: &'a Progress,
    ) -> Self {
        let panels = weight_panels(&placed.weight.ty, placed.layout);
        let panel_bytes = placed.bytes / panels.max(1);
        let writer = HashingWriter::new(file, region_offset + placed.offset, progress);
        let loss = QuantizationError::default();
        Self {
            placed,
            region_offset,
            panels,
            piece_panels: (PIECE_BYTES / panel_bytes.max(1)).max(1),
            turns: Mutex::new(Turns { over: 0, writer: Some(writer), loss, result: None }),
            next_turn: Condvar::new(),
        }
    }

    /// Pieces of it, at least one.
    pub(crate) fn pieces(&self) -> u64 {
        self.panels.div_ceil(self.piece_panels).max(1)
    }

    /// Packs a piece, and writes it when all before it are written. They have to be packed, or on their way.
    ///
    /// # Errors
    ///
    /// When this piece or one before it cannot be read or written.
    pub(crate) fn pack(&self, piece: u64, source: &(dyn TensorSource + Sync)) -> Result<(), Failed> {
        let on_panic = EndTurnsOnPanic(self);
        let weight = &self.placed.weight;
        let first = piece * self.piece_panels;
        let panels = first..self.panels.min(first + self.piece_panels);
        let mut bytes = Vec::new();
        let mut reader = WeightReader { weight, source };
        let packed = pack_panels(&weight.ty, self.placed.layout, panels, &mut reader, &mut |panel| {
            if bytes.is_empty() {
                // The last panel has padding behind it.
                bytes.reserve_exact(panel.len() * self.piece_panels.min(self.panels) as usize + 64);
            }
            bytes.extend_from_slice(panel);
            Ok(())
        });
        let mut turns = self.lock();
        while turns.over < piece {
            turns = self.next_turn.wait(turns).unwrap_or_else(PoisonError::into_inner);
        }
        let written = self.write(&mut turns, piece, packed.map(|loss| (bytes, loss)));
        if let Err(failure) = written {
            turns.result = Some(Err(failure));
        }
        turns.over = turns.over.max(piece + 1);
        let has_failed = matches!(turns.result, Some(Err(_)));
        drop(turns);
        self.next_turn.notify_all();
        drop(on_panic);
        if has_failed { Err(Failed) } else { Ok(()) }
    }

    /// Writes the piece whose turn it is, unless one before it has failed.
    fn write(
        &self,
        turns: &mut Turns<'_>,
        piece: u64,
        packed: Result<(Vec<u8>, QuantizationError), Failure>,
    ) -> Result<(), Failure> {
        let Some(mut writer) = turns.writer.take() else { return Ok(()) };
        let (bytes, loss) = packed?;
        writer.write(&bytes)?;
        turns.loss += loss;
        if piece + 1 < self.pieces() {
            turns.writer = Some(writer);
            return Ok(());
        }
        let (sha256, end) = writer.finish()?;
        let written_bytes = end - self.region_offset - self.placed.offset;
        if written_bytes != self.placed.bytes {
            return Err(Failure::Bug(
                Diagnostic::new(format!("weight `{}` does not fill its place", self.placed.weight.name))
                    .found(format!("{written_bytes} bytes"))
                    .needed(format!("{} bytes", self.placed.bytes)),
            ));
        }
        turns.result = Some(Ok((weight_entry(self.placed, sha256), turns.loss)));
        Ok(())
    }

    /// What has become of it; none where a piece was never packed.
    pub(crate) fn result(self) -> Option<Result<WrittenWeight, Failure>> {
        self.turns.into_inner().unwrap_or_else(PoisonError::into_inner).result
    }

    fn lock(&self) -> MutexGuard<'_, Turns<'a>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets nobody wait for the piece of a thread that panics: the panic is to be seen.
struct EndTurnsOnPanic<'a, 'b>(&'a Packing<'b>);

impl Drop for EndTurnsOnPanic<'_, '_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let mut turns = self.0.lock();
            (turns.over, turns.writer) = (u64::MAX, None);
            drop(turns);
            self.0.next_turn.notify_all();
        }
    }
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

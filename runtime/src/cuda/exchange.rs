//! What goes between host and device in a step: ids and positions up, the largest logits down, or all of
//! them.
//!
//! The host's side is pinned memory. It mirrors the inputs in the arena, which no step writes to, so that
//! only what has changed goes up: with one sequence, the id and the position.

use std::rc::Rc;

use qwen2c_format::{CandidateOffsets, Diagnostic, Manifest, StepLists};

use super::driver::Context;
use super::memory::{DeviceMemory, PinnedMemory};

/// Values are four bytes, `i32` or `f32`.
const VALUE_BYTES: usize = 4;

/// An array of integers in the arena and where it is mirrored.
struct Input {
    arena_offset: u64,
    offset: usize,
    capacity: usize,
    /// Values from the first on that the device does not have yet.
    changed: usize,
}

/// The host's side of inputs and logits.
///
/// While copies are under way nothing is read or written; [`Exchange::wait`] ends that.
pub(crate) struct Exchange {
    pinned: PinnedMemory,
    inputs: [Input; 4],
    logits_arena_offset: u64,
    logits_offset: usize,
    logits_capacity: usize,
    vocabulary: usize,
    /// Rows of logits that are those of the last run.
    logit_rows: usize,
    candidates: Option<CandidateOffsets>,
    candidates_offset: usize,
    /// Whether the candidates are those of the last run.
    has_candidates: bool,
    is_under_way: bool,
    context: Rc<Context>,
}

impl Exchange {
    /// Pinned memory for the inputs and logits of every list.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub(crate) fn new(
        context: &Rc<Context>,
        manifest: &Manifest,
        lists: &StepLists,
    ) -> Result<Self, Diagnostic> {
        let most = |count: fn(&qwen2c_format::StepList) -> u32| {
            lists.lists.iter().map(count).max().unwrap_or(0) as usize
        };
        let (rows, logit_rows) = (most(|list| list.max_rows), most(|list| list.max_logit_rows));
        let places = &manifest.inputs;
        let mut end = 0;
        let inputs = [
            (places.token, rows),
            (places.position, rows),
            (places.slot, rows),
            (places.logit_rows, logit_rows),
        ]
        .map(|(arena_offset, capacity)| {
            let offset = end;
            end += VALUE_BYTES * capacity;
            Input { arena_offset, offset, capacity, changed: 0 }
        });
        let vocabulary = manifest.model.vocabulary as usize;
        let candidates_offset = end;
        let candidates = places.candidates.map_or(0, |candidates| candidates.count as usize);
        let logits_offset = candidates_offset + 2 * VALUE_BYTES * candidates;
        let logits_capacity = logit_rows * vocabulary;
        let bytes = (logits_offset + VALUE_BYTES * logits_capacity) as u64;
        Ok(Self {
            pinned: PinnedMemory::zeroed(context, bytes)?,
            inputs,
            logits_arena_offset: places.logits,
            logits_offset,
            logits_capacity,
            vocabulary,
            logit_rows: 0,
            candidates: places.candidates,
            candidates_offset,
            has_candidates: false,
            is_under_way: false,
            context: Rc::clone(context),
        })
    }

    /// Writes one of the inputs; [`Exchange::send`] takes along what has changed.
    pub(crate) fn write_integers(&mut self, arena_offset: u64, values: impl ExactSizeIterator<Item = u32>) {
        assert!(!self.is_under_way, "inputs are written between runs");
        let input = self.inputs.iter_mut().find(|input| input.arena_offset == arena_offset);
        let input = input.expect("only inputs are written");
        assert!(values.len() <= input.capacity, "{} values for {}", values.len(), input.capacity);
        // SAFETY: no copy is under way.
        let bytes = unsafe { self.pinned.bytes_mut(input.offset, VALUE_BYTES * values.len()) };
        for (index, (place, value)) in bytes.chunks_exact_mut(VALUE_BYTES).zip(values).enumerate() {
            let value = value.to_ne_bytes();
            if *place != value {
                place.copy_from_slice(&value);
                input.changed = input.changed.max(index + 1);
            }
        }
    }

    /// Puts the copies of what has changed into the stream. What came down before is of another run now.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub(crate) fn send(&mut self, arena: &DeviceMemory) -> Result<(), Diagnostic> {
        (self.logit_rows, self.has_candidates) = (0, false);
        for input in self.inputs.iter_mut().filter(|input| input.changed > 0) {
            self.is_under_way = true;
            self.pinned.send(input.offset, VALUE_BYTES * input.changed, arena, input.arena_offset)?;
            input.changed = 0;
        }
        Ok(())
    }

    /// Puts the copy of so many rows of logits into the stream.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub(crate) fn fetch_logits(&mut self, arena: &DeviceMemory, rows: usize) -> Result<(), Diagnostic> {
        self.is_under_way = true;
        let bytes = VALUE_BYTES * rows * self.vocabulary;
        // SAFETY: logits are not lent out before `wait`.
        unsafe { self.pinned.fetch(self.logits_offset, bytes, arena, self.logits_arena_offset)? };
        self.logit_rows = rows;
        Ok(())
    }

    /// Puts the copy of the candidates into the stream; false where the program leaves none.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub(crate) fn fetch_candidates(&mut self, arena: &DeviceMemory) -> Result<bool, Diagnostic> {
        let Some(CandidateOffsets { count, values, ids }) = self.candidates else { return Ok(false) };
        self.is_under_way = true;
        let bytes = VALUE_BYTES * count as usize;
        let is_one_range = ids == values + bytes as u64;
        // SAFETY: candidates are not lent out before `wait`.
        unsafe {
            if is_one_range {
                self.pinned.fetch(self.candidates_offset, 2 * bytes, arena, values)?;
            } else {
                self.pinned.fetch(self.candidates_offset, bytes, arena, values)?;
                self.pinned.fetch(self.candidates_offset + bytes, bytes, arena, ids)?;
            }
        }
        self.has_candidates = true;
        Ok(true)
    }

    /// Waits for everything in the stream.
    ///
    /// # Errors
    ///
    /// What the driver says; it may be the failure of any step.
    pub(crate) fn wait(&mut self) -> Result<(), Diagnostic> {
        // Behind an error the device does nothing any more.
        let waited = self.context.synchronize();
        self.is_under_way = false;
        waited
    }

    /// Rows of logits that were fetched behind the last run.
    pub(crate) fn logit_rows(&self) -> usize {
        self.logit_rows
    }

    /// Logits that were fetched last, from the first row on.
    pub(crate) fn logits(&self, arena_offset: u64, count: usize) -> &[f32] {
        let is_there = arena_offset == self.logits_arena_offset && count <= self.logits_capacity;
        assert!(is_there, "{count} values at offset {arena_offset} are not logits");
        self.values(self.logits_offset, count)
    }

    /// The largest logits of the last run and their ids; none where they were not fetched.
    pub(crate) fn candidates(&self) -> Option<(&[f32], &[u32])> {
        let count = self.candidates.filter(|_| self.has_candidates)?.count as usize;
        let ids_offset = self.candidates_offset + VALUE_BYTES * count;
        Some((self.values(self.candidates_offset, count), self.values(ids_offset, count)))
    }

    /// Fetched values of four bytes from an offset on.
    fn values<T: FetchedValue>(&self, offset: usize, count: usize) -> &[T] {
        assert!(!self.is_under_way, "what was fetched is read between runs");
        // SAFETY: no copy is under way.
        let bytes = unsafe { self.pinned.bytes(offset, VALUE_BYTES * count) };
        // SAFETY: pinned memory begins at a page, everything in it at a multiple of four bytes; any four
        // bytes are an `f32` or a `u32`.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), count) }
    }
}

/// Four bytes of which any are a value.
trait FetchedValue {}

impl FetchedValue for f32 {}

impl FetchedValue for u32 {}

//! One sequence: which positions of the cache are filled, and how tokens become logits.
//!
//! A prompt goes through in chunks of as many rows as the longest list for prompts serves, what is left through
//! the shortest that holds it, and a single token through the decode list.
//! Only the rows that somebody wants to see go through the output head.

use std::ops::Range;
use std::time::Instant;

use qwen2c_format::{InputOffsets, Manifest, StepLists};

use crate::cuda::DeviceExecutor;
use crate::execute::{Executor, Job, Observer};
use crate::peak::Reading;
use crate::session_error::SessionError;
use crate::text::Sampler;

/// A step list as a session sees it.
#[derive(Clone, Debug)]
struct List {
    index: usize,
    max_rows: usize,
    max_logit_rows: usize,
    body: Range<usize>,
    head: Range<usize>,
}

impl List {
    fn new(executor: &Executor, lists: &StepLists, index: usize) -> Self {
        let (body, head) = executor.parts(index);
        let list = &lists.lists[index];
        let (max_rows, max_logit_rows) = (list.max_rows as usize, list.max_logit_rows as usize);
        Self { index, max_rows, max_logit_rows, body, head }
    }
}

/// A sequence with its cache.
pub struct Session {
    executor: Executor,
    inputs: InputOffsets,
    vocabulary: usize,
    context: usize,
    /// Positions of the cache that are filled.
    position: usize,
    decode: List,
    /// Ascending by their rows.
    prompts: Vec<List>,
    prompt_rows: usize,
}

impl Session {
    /// An empty sequence. `decode` and `prompts` are indexes of the lists for one row and for many, the latter
    /// ascending by their rows; without any of them the first serves prompts as well.
    pub(crate) fn new(
        executor: Executor,
        manifest: &Manifest,
        lists: &StepLists,
        decode: usize,
        prompts: &[usize],
    ) -> Self {
        let decode = List::new(&executor, lists, decode);
        let prompts: Vec<List> = prompts.iter().map(|index| List::new(&executor, lists, *index)).collect();
        Self {
            inputs: manifest.inputs,
            vocabulary: manifest.model.vocabulary as usize,
            context: manifest.context as usize,
            position: 0,
            prompt_rows: prompts.last().unwrap_or(&decode).max_rows,
            executor,
            decode,
            prompts,
        }
    }

    /// Takes prompts in chunks of at most `rows`, where that is less than they have.
    pub fn limit_prompt_rows(&mut self, rows: usize) {
        self.prompt_rows = self.prompt_rows.min(rows.max(1));
    }

    /// Positions that are filled.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Positions there are.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Columns of the logits.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Tokens that [`Session::prefill`] takes at once.
    pub fn prompt_rows(&self) -> usize {
        self.prompt_rows
    }

    /// Worker threads.
    pub fn threads(&self) -> usize {
        self.executor.threads()
    }

    /// What computes: `2 threads`, or a device and the code it was given.
    pub(crate) fn hardware_text(&self) -> String {
        match self.device() {
            None => format!("{} threads", self.threads()),
            Some(device) => device.description(),
        }
    }

    /// The device that computes; none where the processor does.
    pub(crate) fn device(&self) -> Option<&DeviceExecutor> {
        match &self.executor {
            Executor::Processor(_) => None,
            Executor::Device(executor) => Some(executor),
        }
    }

    /// The logits behind the last token taken by [`Session::prefill`] or [`Session::decode`],
    /// `[vocabulary]`.
    ///
    /// # Errors
    ///
    /// [`SessionError::Device`], where they have to come from one.
    pub fn logits(&mut self) -> Result<&[f32], SessionError> {
        self.logit_rows(1)
    }

    /// The token behind the last one taken, as `sampler` chooses it; none where the logits are not numbers.
    ///
    /// # Errors
    ///
    /// [`SessionError::Device`], where a device has the logits.
    pub fn sample(&mut self, sampler: &mut Sampler) -> Result<Option<u32>, SessionError> {
        if let Some((values, ids)) = self.executor.candidates()
            && let Some(token) = sampler.sample_largest(values, ids)
        {
            return Ok(Some(token));
        }
        Ok(sampler.sample(self.logits()?))
    }

    /// Runs a reading beside the steps, and returns the bytes per second.
    pub(crate) fn read_beside(&mut self, reading: &Reading) -> Result<f64, SessionError> {
        let start = Instant::now();
        self.executor.run(&reading.job, &mut ())?;
        Ok(reading.bytes as f64 / start.elapsed().as_secs_f64())
    }

    /// Forgets everything from `position` on; what is before stays as it is.
    pub fn rewind(&mut self, position: usize) {
        self.position = self.position.min(position);
    }

    /// Takes tokens.
    ///
    /// # Errors
    ///
    /// [`SessionError`]; nothing was taken then, unless the device failed.
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<(), SessionError> {
        self.prefill_observed(tokens, &mut ())
    }

    /// Takes one token.
    ///
    /// # Errors
    ///
    /// [`SessionError`]; nothing was taken then, unless the device failed.
    pub fn decode(&mut self, token: u32) -> Result<(), SessionError> {
        self.prefill_observed(&[token], &mut ())
    }

    /// As [`Session::prefill`], with somebody who watches the steps.
    pub(crate) fn prefill_observed(
        &mut self,
        tokens: &[u32],
        observer: &mut impl Observer,
    ) -> Result<(), SessionError> {
        self.check(tokens)?;
        let mut left = tokens;
        while left.len() > self.prompt_rows {
            let (chunk, rest) = left.split_at(self.prompt_rows);
            self.take(chunk, observer)?;
            left = rest;
        }
        self.take_with_logits(left, observer)
    }

    /// Takes tokens and shows the logits behind each of them, `[vocabulary]`, in order.
    ///
    /// # Errors
    ///
    /// [`SessionError`] before anything was taken, a device's failure, or the first error of `each`.
    pub fn prefill_each<E: From<SessionError>>(
        &mut self,
        tokens: &[u32],
        mut each: impl FnMut(usize, &[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.check(tokens)?;
        for (chunk, first) in tokens.chunks(self.prompt_rows).zip((0..).step_by(self.prompt_rows)) {
            let list = self.take(chunk, &mut ())?;
            for start in (0..chunk.len()).step_by(list.max_logit_rows) {
                let end = chunk.len().min(start + list.max_logit_rows);
                self.write_logit_rows(start..end);
                let (rows, logit_rows) = (chunk.len() as u32, (end - start) as u32);
                let job = Job { list: list.index, steps: list.head.clone(), rows, logit_rows };
                self.executor.run(&job, &mut ()).map_err(SessionError::from)?;
                let vocabulary = self.vocabulary;
                for (row, logits) in self.logit_rows(end - start)?.chunks_exact(vocabulary).enumerate() {
                    each(first + start + row, logits)?;
                }
            }
        }
        Ok(())
    }

    /// Whether the session can take these tokens.
    ///
    /// # Errors
    ///
    /// [`SessionError`] says why not.
    pub fn check(&self, tokens: &[u32]) -> Result<(), SessionError> {
        if tokens.is_empty() {
            return Err(SessionError::Empty);
        }
        let vocabulary = self.vocabulary as u64;
        if let Some(&token) = tokens.iter().find(|&&token| u64::from(token) >= vocabulary) {
            return Err(SessionError::OutsideVocabulary { token, vocabulary });
        }
        let (needed, context) = (self.position + tokens.len(), self.context);
        if needed > context {
            return Err(SessionError::ContextFull { needed: needed as u64, context: context as u64 });
        }
        Ok(())
    }

    /// Runs the body on a chunk of checked tokens; returns the list it used.
    fn take(&mut self, tokens: &[u32], observer: &mut impl Observer) -> Result<List, SessionError> {
        let list = self.write_rows(tokens);
        let job =
            Job { list: list.index, steps: list.body.clone(), rows: tokens.len() as u32, logit_rows: 1 };
        self.executor.run(&job, observer)?;
        self.position += tokens.len();
        Ok(list)
    }

    /// Runs body and head in one go; the head sees the last row.
    fn take_with_logits(&mut self, tokens: &[u32], observer: &mut impl Observer) -> Result<(), SessionError> {
        let list = self.write_rows(tokens);
        self.write_logit_rows(tokens.len() - 1..tokens.len());
        let steps = list.body.start..list.head.end;
        let job = Job { list: list.index, steps, rows: tokens.len() as u32, logit_rows: 1 };
        self.executor.run(&job, observer)?;
        self.position += tokens.len();
        Ok(())
    }

    /// Tells the kernels what the rows are; returns the list for so many of them.
    fn write_rows(&mut self, tokens: &[u32]) -> List {
        let first = self.position as u32;
        let positions = (0..tokens.len()).map(|row| first + row as u32);
        self.executor.write_integers(self.inputs.token, tokens.iter().copied());
        self.executor.write_integers(self.inputs.position, positions);
        self.executor.write_integers(self.inputs.slot, tokens.iter().map(|_| 0));
        self.list_for(tokens.len()).clone()
    }

    /// The list that serves so many rows best.
    fn list_for(&self, rows: usize) -> &List {
        let for_prompts = self.prompts.iter().find(|list| rows > 1 && rows <= list.max_rows);
        for_prompts.unwrap_or(&self.decode)
    }

    fn write_logit_rows(&mut self, rows: Range<usize>) {
        self.executor.write_integers(self.inputs.logit_rows, rows.map(|row| row as u32));
    }

    fn logit_rows(&mut self, rows: usize) -> Result<&[f32], SessionError> {
        Ok(self.executor.logits(self.inputs.logits, rows, self.vocabulary)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Mapping;
    use crate::testing::{CONTEXT, KERNELS, VOCABULARY, expected_logits, program_file};
    use crate::{Hardware, Placement, Program};

    fn session(threads: usize) -> Session {
        let weights = Mapping::zeroed(crate::testing::WEIGHT_BYTES as u64).expect("a page can be mapped");
        weights.write_integers(0, [5.0_f32.to_bits(), 1e-5_f32.to_bits()].into_iter());
        let program = Program::from_parts(program_file(), &KERNELS, weights).expect("the parts fit");
        program.start(&Hardware::Processor(Placement::unpinned(threads))).expect("it can be started")
    }

    fn prompt(tokens: usize) -> Vec<u32> {
        (0..tokens as u32).map(|index| (index * 37 + 11) % VOCABULARY as u32).collect()
    }

    #[test]
    fn logits_are_those_of_the_whole_prompt_in_any_chunks() {
        for tokens in [1, 2, 5, 8, 9, 16, 33, CONTEXT] {
            let prompt = prompt(tokens);
            for (rows, threads) in [(1, 1), (2, 2), (3, 1), (8, 3), (100, 2)] {
                let mut session = session(threads);
                session.limit_prompt_rows(rows);
                session.prefill(&prompt).expect("it fits");
                assert_eq!(
                    session.logits().expect("they are there"),
                    expected_logits(&prompt),
                    "{tokens} tokens, {rows} rows"
                );
                assert_eq!(session.position(), tokens);
            }
        }
    }

    #[test]
    fn a_chunk_takes_the_shortest_list_that_holds_it() {
        let session = session(1);
        let rows: Vec<usize> = [1, 2, 3, 4, 8].map(|rows| session.list_for(rows).max_rows).to_vec();
        assert_eq!(rows, [1, 3, 3, 8, 8]);
        assert_eq!(session.prompt_rows(), 8);
    }

    #[test]
    fn every_row_has_its_logits() {
        // 20 rows: two chunks of 8 and one of 4, each through the head in groups of 3.
        let prompt = prompt(20);
        let mut session = session(2);
        let mut seen = 0;
        let each = |row: usize, logits: &[f32]| {
            assert_eq!(row, seen);
            assert_eq!(logits, expected_logits(&prompt[..=row]), "row {row}");
            seen += 1;
            Ok::<(), SessionError>(())
        };
        session.prefill_each(&prompt, each).expect("it fits");
        assert_eq!(seen, 20);
    }

    #[test]
    fn decoding_goes_on_where_the_prompt_ended() {
        let mut session = session(3);
        let mut tokens = prompt(9);
        session.prefill(&tokens).expect("it fits");
        for token in [4, 0, 259] {
            tokens.push(token);
            session.decode(token).expect("it fits");
            assert_eq!(session.logits().expect("they are there"), expected_logits(&tokens));
        }
    }

    #[test]
    fn rewinding_forgets_what_came_after() {
        let mut session = session(1);
        session.prefill(&[1, 2, 3, 4]).expect("it fits");
        session.rewind(2);
        session.prefill(&[9, 9]).expect("it fits");
        assert_eq!(session.logits().expect("they are there"), expected_logits(&[1, 2, 9, 9]));
        session.rewind(100);
        assert_eq!(session.position(), 4);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_changes_nothing() {
        let mut session = session(1);
        session.prefill(&prompt(CONTEXT - 1)).expect("it fits");
        let full = SessionError::ContextFull { needed: CONTEXT as u64 + 1, context: CONTEXT as u64 };
        assert_eq!(session.prefill(&[1, 2]).err(), Some(full.clone()));
        assert_eq!(session.position(), CONTEXT - 1);
        session.decode(1).expect("one position is left");
        assert_eq!(session.decode(1).err(), Some(full));
        session.rewind(0);
        let vocabulary = VOCABULARY as u64;
        let outside = SessionError::OutsideVocabulary { token: u32::MAX, vocabulary };
        assert_eq!(session.prefill(&[0, u32::MAX]).err(), Some(outside));
        assert_eq!(session.prefill(&[]).err(), Some(SessionError::Empty));
        assert!(session.prefill_each(&[], |_, _| Ok::<(), SessionError>(())).is_err());
    }
}

//! What each pass through the model took, kernel by kernel.

use std::time::Instant;

use qwen2c_format::StepLists;

use crate::execute::Observer;
use crate::peak::Peak;

/// Sums time, bytes and operations of every kernel, for each pass through the model.
pub(super) struct Stopwatch<'a> {
    lists: &'a StepLists,
    passes: Vec<Pass>,
    last: Instant,
}

/// A chunk of the prompt, or a token.
struct Pass {
    rows: u64,
    /// `Σ (position + 1)` over the rows.
    positions: u64,
    /// As many as there are kernels.
    totals: Vec<Total>,
    /// What the machine read per second around it, where that was measured.
    read_bytes_per_s: Option<f64>,
}

/// What was called, and what it took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Total {
    pub(super) calls: u64,
    pub(super) seconds: f64,
    pub(super) bytes: u64,
    pub(super) operations: u64,
}

impl Total {
    fn add(&mut self, other: Self) {
        self.calls += other.calls;
        self.seconds += other.seconds;
        self.bytes += other.bytes;
        self.operations += other.operations;
    }

    /// The time that a machine of these rates would have taken over the time it took.
    fn share(&self, read_bytes_per_s: f64, operations_per_s: f64) -> f64 {
        let read_seconds = self.bytes as f64 / read_bytes_per_s;
        let compute_seconds = self.operations as f64 / operations_per_s;
        read_seconds.max(compute_seconds) / self.seconds.max(1e-9)
    }
}

/// A token between two readings.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenBesideReads {
    /// What the machine read per second around it.
    pub(super) read_bytes_per_s: f64,
    /// Time of its steps.
    pub(super) us: f64,
    /// The time in which its bytes could have been read over that time.
    pub(super) share_of_read: f64,
}

impl<'a> Stopwatch<'a> {
    pub(super) const fn new(lists: &'a StepLists, start: Instant) -> Self {
        Self { lists, passes: Vec::new(), last: start }
    }

    /// Before the steps of `rows` rows that begin at `position`.
    pub(super) fn start(&mut self, position: usize, rows: usize) {
        let (position, rows) = (position as u64, rows as u64);
        self.passes.push(Pass {
            rows,
            positions: rows * (position + 1) + rows * rows.saturating_sub(1) / 2,
            totals: vec![Total::default(); self.lists.kernels.len()],
            read_bytes_per_s: None,
        });
        self.last = Instant::now();
    }

    /// Behind the steps: what the machine read per second around them.
    pub(super) fn stand_beside(&mut self, read_bytes_per_s: f64) {
        if let Some(pass) = self.passes.last_mut() {
            pass.read_bytes_per_s = Some(read_bytes_per_s);
        }
    }

    /// Passes through the model.
    pub(super) const fn passes(&self) -> usize {
        self.passes.len()
    }

    /// All calls of each kernel that was called, with its name and its share of the peak: where readings stand
    /// beside the passes, the median of the shares of what was read around each.
    pub(super) fn kernels(&self, peak: &Peak) -> impl Iterator<Item = (&'a str, Total, f64)> {
        self.lists.kernels.iter().enumerate().filter_map(|(index, kernel)| {
            let mut total = Total::default();
            let mut shares = Vec::new();
            for pass in self.passes.iter().filter(|pass| pass.totals[index].calls > 0) {
                total.add(pass.totals[index]);
                let share = |rate: f64| pass.totals[index].share(rate, peak.matrix_operations_per_s());
                shares.extend(pass.read_bytes_per_s.map(share));
            }
            let of_all = || total.share(peak.read_bytes_per_s, peak.matrix_operations_per_s());
            let share = if shares.is_empty() { of_all() } else { median(&mut shares) };
            (total.calls > 0).then_some((kernel.name.as_str(), total, share))
        })
    }

    /// The passes that stand between readings.
    pub(super) fn tokens_beside_reads(&self) -> impl Iterator<Item = TokenBesideReads> {
        self.passes.iter().filter_map(|pass| {
            let read_bytes_per_s = pass.read_bytes_per_s?;
            let mut all = Total::default();
            pass.totals.iter().for_each(|total| all.add(*total));
            let share_of_read = all.share(read_bytes_per_s, f64::INFINITY);
            Some(TokenBesideReads { read_bytes_per_s, us: all.seconds * 1e6, share_of_read })
        })
    }
}

impl Observer for Stopwatch<'_> {
    fn after_step(&mut self, list: usize, step: usize, seconds: Option<f64>) {
        let seconds = seconds.unwrap_or_else(|| self.last.elapsed().as_secs_f64());
        let list = &self.lists.lists[list];
        let is_head = step >= list.body.len();
        let step = if is_head { &list.head[step - list.body.len()] } else { &list.body[step] };
        let pass = self.passes.last_mut().expect("steps belong to a pass that was started");
        // The head sees one row.
        let (rows, positions) = if is_head { (1, 0) } else { (pass.rows, pass.positions) };
        let cost = &step.cost;
        pass.totals[step.kernel as usize].add(Total {
            calls: 1,
            seconds,
            bytes: cost.fixed_bytes + cost.bytes_per_row * rows + cost.bytes_per_row_and_position * positions,
            operations: cost.operations_per_row * rows + cost.operations_per_row_and_position * positions,
        });
        self.last = Instant::now();
    }
}

/// The middle of `values`, of which there is at least one.
pub(super) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn peak() -> Peak {
        Peak {
            read_bytes_per_s: 1000.0,
            operations_per_s: f64::INFINITY,
            bf16_operations_per_s: None,
            int8_operations_per_s: None,
            threads: 1,
            best_read: "",
        }
    }

    /// A kernel's step of the testing program moves 100 bytes, 10 for its row and 1 for each position.
    #[test]
    fn shares_are_those_of_what_was_read_around_each_token() {
        let lists = testing::lists();
        let mut stopwatch = Stopwatch::new(&lists, Instant::now());
        for (position, read_bytes_per_s) in [(1, 112.0), (1, 224.0), (1, 448.0), (1, 56.0)] {
            stopwatch.start(position, 1);
            stopwatch.after_step(0, 0, Some(2.0));
            stopwatch.stand_beside(read_bytes_per_s);
        }
        let (name, total, share) = stopwatch.kernels(&peak()).next().expect("one was called");
        assert_eq!((name, total.calls, total.bytes, total.seconds), ("write_cache", 4, 4 * 112, 8.0));
        // Shares of 1/2, 1/4, 1/8 and 1.
        assert_eq!(share, 0.375);
        let tokens: Vec<f64> = stopwatch.tokens_beside_reads().map(|token| token.share_of_read).collect();
        assert_eq!(tokens, [0.5, 0.25, 0.125, 1.0]);
    }

    #[test]
    fn without_readings_the_peak_counts() {
        let lists = testing::lists();
        let mut stopwatch = Stopwatch::new(&lists, Instant::now());
        stopwatch.start(0, 1);
        stopwatch.after_step(0, 0, Some(1.11));
        let (_, _, share) = stopwatch.kernels(&peak()).next().expect("one was called");
        assert!((share - 0.1).abs() < 1e-12, "{share}");
        assert_eq!((stopwatch.tokens_beside_reads().count(), stopwatch.passes()), (0, 1));
    }

    #[test]
    fn the_middle_of_an_even_number_lies_between_two() {
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 8.0]), 3.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0]), 2.0);
    }
}

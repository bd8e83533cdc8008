//! How long the stages and passes of a build took.

use std::fmt;
use std::time::{Duration, Instant};

use crate::units;

/// One line of the account.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    label: String,
    duration_us: u64,
    /// Part of the stage above it, and so not of the total.
    nested: bool,
}

/// The account of a build.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timings {
    entries: Vec<Entry>,
}

impl Timings {
    /// Does the work of a stage and enters its time.
    pub(crate) fn measure<T>(&mut self, label: &str, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.enter(label, start.elapsed());
        result
    }

    /// Enters a stage that was timed elsewhere.
    pub(crate) fn enter(&mut self, label: &str, duration: Duration) {
        self.entries.push(Entry {
            label: label.to_owned(),
            duration_us: microseconds(duration),
            nested: false,
        });
    }

    /// Enters a part of the stage that follows or precedes it; parts do not count in the total.
    pub(crate) fn enter_part(&mut self, label: &str, duration_us: u64) {
        self.entries.push(Entry { label: label.to_owned(), duration_us, nested: true });
    }

    /// The sum of all stages.
    pub(crate) fn total_us(&self) -> u64 {
        self.entries.iter().filter(|entry| !entry.nested).map(|entry| entry.duration_us).sum()
    }
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl fmt::Display for Timings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for entry in &self.entries {
            let label = if entry.nested { format!("  {}", entry.label) } else { entry.label.clone() };
            writeln!(formatter, "  {label:<36} {:>12} µs", units::grouped(entry.duration_us))?;
        }
        writeln!(formatter, "  {:<36} {:>12} µs", "total", units::grouped(self.total_us()))
    }
}

#[cfg(test)]
mod tests {
    use super::Timings;
    use std::time::Duration;

    #[test]
    fn parts_are_printed_but_not_added_up() {
        let mut timings = Timings::default();
        timings.enter_part("fuse_attention", 30);
        timings.enter("fused", Duration::from_micros(40));
        timings.enter("plan", Duration::from_micros(1_500));
        assert_eq!(timings.total_us(), 1_540);
        insta::assert_snapshot!(timings, @r"
            fuse_attention                               30 µs
          fused                                          40 µs
          plan                                        1 500 µs
          total                                       1 540 µs
        ");
    }
}

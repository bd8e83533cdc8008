//! Stop texts in a stream.

/// What a stop matcher lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopProgress<'a> {
    /// Text that belongs to the answer for certain.
    pub text: &'a str,
    /// A stop text was reached: it and what follows are not part of the answer.
    pub is_stopped: bool,
}

/// Finds stop texts in a stream, and holds back what may be the beginning of one.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// Text that was not let through before the last call.
    held: String,
    /// Bytes of `held` that the last call let through.
    given: usize,
    is_stopped: bool,
}

impl StopMatcher {
    /// A matcher of these texts; empty ones are ignored.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, held: String::with_capacity(4096), given: 0, is_stopped: false }
    }

    /// Adds text to the stream. After a stop nothing is let through any more.
    pub fn push(&mut self, text: &str) -> StopProgress<'_> {
        self.held.drain(..self.given);
        self.given = 0;
        if !self.is_stopped {
            self.held.push_str(text);
            let first = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
            if let Some(first) = first {
                self.held.truncate(first);
                self.is_stopped = true;
            }
            self.given = self.held.len() - if self.is_stopped { 0 } else { self.beginning_bytes() };
        }
        StopProgress { text: &self.held[..self.given], is_stopped: self.is_stopped }
    }

    /// The text held back, once the stream has ended without completing a stop text.
    pub fn finish(&mut self) -> &str {
        self.held.drain(..self.given);
        self.given = self.held.len();
        &self.held
    }

    /// Bytes at the end of `held` that a stop text may begin with.
    fn beginning_bytes(&self) -> usize {
        let longest = |stop: &String| {
            let prefixes = stop.char_indices().map(|(at, _)| &stop[..at]);
            prefixes.filter(|prefix| self.held.ends_with(prefix)).map(str::len).max().unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }
}

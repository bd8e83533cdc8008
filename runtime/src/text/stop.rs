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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a matcher lets through of text that comes in these parts.
    fn answer(stops: &[&str], parts: &[&str]) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops.iter().map(|&stop| stop.to_owned()));
        let (mut answer, mut is_stopped) = (String::new(), false);
        for part in parts {
            let progress = matcher.push(part);
            answer.push_str(progress.text);
            is_stopped = progress.is_stopped;
        }
        answer.push_str(matcher.finish());
        (answer, is_stopped)
    }

    #[test]
    fn holds_back_the_beginning_of_a_stop_text() {
        let mut matcher = StopMatcher::new(["END".to_owned()]);
        assert_eq!(matcher.push("the E"), StopProgress { text: "the ", is_stopped: false });
        assert_eq!(matcher.push("N"), StopProgress { text: "", is_stopped: false });
        assert_eq!(matcher.push("T"), StopProgress { text: "ENT", is_stopped: false });
        assert_eq!(matcher.push("E"), StopProgress { text: "", is_stopped: false });
        assert_eq!(matcher.push("ND of it"), StopProgress { text: "", is_stopped: true });
        assert_eq!(matcher.push("more"), StopProgress { text: "", is_stopped: true });
        assert_eq!(matcher.finish(), "");
    }

    #[test]
    fn the_first_of_several_stops_counts() {
        assert_eq!(answer(&["\n\n", "User:", ""], &["a\n", "b Us", "er: c\n\n"]), ("a\nb ".to_owned(), true));
        assert_eq!(answer(&[], &["a", "b"]), ("ab".to_owned(), false));
        assert_eq!(answer(&["aab"], &["aa", "a"]), ("aaa".to_owned(), false));
    }

    proptest! {
        #[test]
        fn parts_do_not_matter(parts in prop::collection::vec("[ab→]{0,4}", 0..12)) {
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            let text = parts.concat();
            let stops = ["ab→", "→→"];
            let expected = match stops.iter().filter_map(|stop| text.find(stop)).min() {
                Some(at) => (text[..at].to_owned(), true),
                None => (text, false),
            };
            prop_assert_eq!(answer(&stops, &parts), expected);
        }
    }
}

//! Text to token ids.

use super::merge::Merger;
use super::normalize::normalize;
use super::split::Splitter;
use qwen2c_format::tokenizer::{AddedMatch, TokenizerView};

/// Turns text into token ids, exactly as the crate `tokenizers` does on the tokenizer that the tables were
/// built from.
///
/// The order is that of `tokenizers`: added tokens in the raw text, normalization, added tokens in the
/// normalized text, splitting, merging. No beginning-of-sequence token is put in front; see
/// [`TokenizerView::add_bos`].
#[derive(Clone, Debug)]
pub struct Encoder<'a> {
    view: TokenizerView<'a>,
    splitter: Splitter<'a>,
    /// Which first bytes an added token can have: \[raw, normalized\].
    first_bytes: [[bool; 256]; 2],
}

/// Which special tokens are recognised in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recognise {
    /// None: they are encoded as the text they are.
    Ordinary,
    /// All.
    Special,
    /// All but those directly behind this character, which itself is taken out before encoding.
    Unmarked(char),
}

impl<'a> Encoder<'a> {
    /// An encoder on tables.
    pub fn new(view: TokenizerView<'a>) -> Self {
        let first_bytes = [false, true].map(|normalized| {
            let mut first_bytes = [false; 256];
            for byte in view.added(normalized).filter_map(|id| view.token_bytes(id)?.first()) {
                first_bytes[usize::from(*byte)] = true;
            }
            first_bytes
        });
        Self { view, splitter: Splitter::new(view), first_bytes }
    }

    /// The tables.
    pub fn view(&self) -> TokenizerView<'a> {
        self.view
    }

    /// The tokens of `text`.
    ///
    /// With `allow_special` the text of a special token becomes that token: for templates and for text that is
    /// trusted. Without it, it is encoded like any other text (`encode_special_tokens` of `tokenizers`): for what
    /// a user wrote. Added tokens that are not special are recognised either way.
    pub fn encode(&self, text: &str, allow_special: bool) -> Vec<u32> {
        self.encode_with(text, if allow_special { Recognise::Special } else { Recognise::Ordinary })
    }

    pub(super) fn encode_with(&self, text: &str, recognise: Recognise) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        let mut merger = Merger::default();
        self.for_each_part(text, false, recognise, &mut |raw| match raw {
            Part::Token(id) => ids.push(id),
            Part::Text(raw) => {
                let normalized = normalize(raw, self.view.normalization());
                self.for_each_part(&normalized, true, recognise, &mut |part| match part {
                    Part::Token(id) => ids.push(id),
                    Part::Text(text) => self.encode_text(text, recognise, &mut merger, &mut ids),
                });
            }
        });
        ids
    }

    fn encode_text(&self, text: &str, recognise: Recognise, merger: &mut Merger, ids: &mut Vec<u32>) {
        let mut encode = |text: &str| {
            self.splitter.for_each_piece(text, |piece| merger.merge(&self.view, piece.as_bytes(), ids));
        };
        match recognise {
            Recognise::Unmarked(marker) if text.contains(marker) => encode(&text.replace(marker, "")),
            _ => encode(text),
        }
    }

    /// The longest added token that `text` has at `at`, a place between two characters.
    pub(super) fn added_at(&self, text: &str, at: usize, normalized: bool) -> Option<AddedMatch> {
        let rest = text.as_bytes().get(at..)?;
        if !self.first_bytes[usize::from(normalized)][usize::from(*rest.first()?)] {
            return None;
        }
        let found = self.view.match_added(rest, normalized)?;
        (text.is_char_boundary(at) && text.is_char_boundary(at + found.bytes)).then_some(found)
    }

    /// Calls `each` with the added tokens and the texts between them.
    ///
    /// Matches are leftmost, longest and do not overlap; a special token that is not to be recognised is passed
    /// over as a whole.
    fn for_each_part(
        &self,
        text: &str,
        normalized: bool,
        recognise: Recognise,
        each: &mut impl FnMut(Part<'_>),
    ) {
        let (mut start, mut at) = (0, 0);
        while at < text.len() {
            let Some(found) = self.added_at(text, at, normalized) else {
                at += 1;
                continue;
            };
            let is_literal = self.view.is_special(found.id)
                && match recognise {
                    Recognise::Ordinary => true,
                    Recognise::Special => false,
                    Recognise::Unmarked(marker) => text[..at].ends_with(marker),
                };
            let end = at + found.bytes;
            if !is_literal {
                if start < at {
                    each(Part::Text(&text[start..at]));
                }
                each(Part::Token(found.id));
                start = end;
            }
            at = end;
        }
        if start < text.len() {
            each(Part::Text(&text[start..]));
        }
    }
}

/// Part of a text.
enum Part<'t> {
    /// An added token.
    Token(u32),
    /// Text between added tokens.
    Text(&'t str),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::example_tables::{END, START, TOOL, example_tables};
    use qwen2c_format::tokenizer::SplitRule;

    #[test]
    fn merges_by_rank_and_recognises_special_tokens_only_where_allowed() {
        let tables = example_tables(SplitRule::Qwen2);
        let encoder = Encoder::new(TokenizerView::new(tables).unwrap());
        assert_eq!(encoder.encode(" the the", false), [258, 258]);
        assert_eq!(encoder.encode("<|im_start|>the<|im_end|>", true), [START, 257, END]);
        let as_text: Vec<u32> = "<|im_start|>".bytes().map(u32::from).collect();
        assert_eq!(encoder.encode("<|im_start|>", false), as_text);
        assert_eq!(encoder.encode("<tool>", false), [TOOL]);
        assert!(encoder.encode("", true).is_empty());
    }

    #[test]
    fn composes_before_splitting() {
        let tables = example_tables(SplitRule::Qwen2);
        let encoder = Encoder::new(TokenizerView::new(tables).unwrap());
        assert_eq!(encoder.encode("e\u{301}", false), encoder.encode("é", false));
    }

    #[test]
    fn a_long_word_takes_no_quadratic_time() {
        let tables = example_tables(SplitRule::Qwen2);
        let encoder = Encoder::new(TokenizerView::new(tables).unwrap());
        assert_eq!(encoder.encode(&"the".repeat(100_000), false).len(), 100_000);
    }
}

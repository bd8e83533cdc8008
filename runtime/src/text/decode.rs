//! Token ids to text, one at a time.

use qwen2c_format::tokenizer::TokenizerView;

/// Whether special tokens show in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialText {
    /// They are left out.
    Hidden,
    /// They show as their own text.
    Shown,
}

/// Gives the text of a stream of tokens as soon as it is certain, and never half a character.
///
/// All texts together are what `String::from_utf8_lossy` makes of all bytes together: bytes that may still
/// become a character wait, bytes that no longer can become U+FFFD. Allocates at creation, and later only
/// where a token is longer than all of the vocabulary's usual ones.
#[derive(Clone, Debug)]
pub struct StreamDecoder<'a> {
    view: TokenizerView<'a>,
    special: SpecialText,
    /// Bytes that do not make a character yet, and while decoding the bytes of the token.
    pending: Vec<u8>,
    /// Text of the last call.
    ready: String,
}

impl<'a> StreamDecoder<'a> {
    /// A decoder at the beginning of a text.
    pub fn new(view: TokenizerView<'a>, special: SpecialText) -> Self {
        // Tokens of this family are at most 128 spaces or so; one byte becomes at most three of U+FFFD.
        Self { view, special, pending: Vec::with_capacity(1024), ready: String::with_capacity(3 * 1024) }
    }

    /// The text that is certain after the token `id`; empty for ids beyond the vocabulary.
    pub fn push(&mut self, id: u32) -> &str {
        self.ready.clear();
        let is_hidden = self.special == SpecialText::Hidden && self.view.is_special(id);
        if let Some(bytes) = self.view.token_bytes(id).filter(|_| !is_hidden) {
            self.pending.extend_from_slice(bytes);
            self.decode();
        }
        &self.ready
    }

    /// The rest at the end of the text: U+FFFD where a character was left incomplete.
    pub fn finish(&mut self) -> &str {
        self.ready.clear();
        if !self.pending.is_empty() {
            self.ready.push(char::REPLACEMENT_CHARACTER);
            self.pending.clear();
        }
        &self.ready
    }

    /// Moves what is certain from `pending` to `ready`.
    fn decode(&mut self) {
        let mut done = 0;
        while done < self.pending.len() {
            let error = match std::str::from_utf8(&self.pending[done..]) {
                Ok(text) => {
                    self.ready.push_str(text);
                    done = self.pending.len();
                    break;
                }
                Err(error) => error,
            };
            let valid = &self.pending[done..done + error.valid_up_to()];
            self.ready.push_str(std::str::from_utf8(valid).unwrap_or_default());
            done += error.valid_up_to();
            let Some(invalid) = error.error_len() else { break };
            self.ready.push(char::REPLACEMENT_CHARACTER);
            done += invalid;
        }
        self.pending.drain(..done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::example_tables::{END, example_tables};
    use proptest::prelude::*;
    use qwen2c_format::tokenizer::SplitRule;

    fn texts(bytes: &[u8]) -> Vec<String> {
        let tables = example_tables(SplitRule::Gpt2);
        let mut decoder = StreamDecoder::new(TokenizerView::new(tables).unwrap(), SpecialText::Hidden);
        let mut texts: Vec<String> = bytes.iter().map(|&byte| decoder.push(byte.into()).to_owned()).collect();
        texts.push(decoder.finish().to_owned());
        texts
    }

    #[test]
    fn a_character_comes_when_its_last_byte_does() {
        assert_eq!(texts("aé漢".as_bytes()), ["a", "", "é", "", "", "漢", ""]);
        assert_eq!(texts(b"\xe6\xbc!"), ["", "", "\u{fffd}!", ""]);
        assert_eq!(texts(b"\xff\xe6"), ["\u{fffd}", "", "\u{fffd}"]);
    }

    #[test]
    fn special_tokens_show_only_on_request() {
        let tables = example_tables(SplitRule::Gpt2);
        let view = TokenizerView::new(tables).unwrap();
        assert_eq!(StreamDecoder::new(view, SpecialText::Hidden).push(END), "");
        assert_eq!(StreamDecoder::new(view, SpecialText::Shown).push(END), "<|im_end|>");
        assert_eq!(StreamDecoder::new(view, SpecialText::Shown).push(u32::MAX), "");
    }

    proptest! {
        #[test]
        fn the_texts_together_are_the_lossy_text(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(texts(&bytes).concat(), String::from_utf8_lossy(&bytes));
        }
    }
}

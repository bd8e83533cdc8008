//! Cuts text into the pieces inside which tokens are merged.
//!
//! The rules are regular expressions in every other engine. Two of their features, ordered alternatives and
//! `\s+(?!\S)`, make a general engine slow and large; by hand each rule is a page. The alternatives are tried
//! in the order of the expression, which stands at [`SplitRule`]. Character classes come from the tables, where
//! the compiler put those of the engine that `tokenizers` uses.

use qwen2c_format::tokenizer::{
    CLASS_LETTER, CLASS_NUMBER, CLASS_SINGLE_DIGIT, CLASS_SPACE, SplitRule, TokenizerView,
};

/// A character where it stands.
#[derive(Clone, Copy)]
struct Seen {
    character: char,
    class: u8,
    /// Bytes of the character.
    width: usize,
}

impl Seen {
    fn is(self, class: u8) -> bool {
        self.class & class != 0
    }

    /// `[^\s\p{L}\p{N}]`
    fn is_other(self) -> bool {
        !self.is(CLASS_LETTER | CLASS_NUMBER | CLASS_SPACE)
    }

    fn is_newline(self) -> bool {
        matches!(self.character, '\r' | '\n')
    }
}

/// Splits text by the rule of a tokenizer.
#[derive(Clone, Debug)]
pub(super) struct Splitter<'a> {
    view: TokenizerView<'a>,
    /// Classes of the ASCII characters, most of most texts.
    ascii: [u8; 128],
}

impl<'a> Splitter<'a> {
    pub(super) fn new(view: TokenizerView<'a>) -> Self {
        let ascii = std::array::from_fn(|code| view.class(code as u8 as char));
        Self { view, ascii }
    }

    /// Calls `piece` with each piece of `text`, in order; together they are `text`.
    pub(super) fn for_each_piece(&self, text: &str, mut piece: impl FnMut(&str)) {
        match self.view.split_rule() {
            SplitRule::Gpt2 => pieces_of(text, |rest| self.gpt2_piece(rest), &mut piece),
            SplitRule::Qwen2 => pieces_of(text, |rest| self.qwen2_piece(rest, 1), &mut piece),
            SplitRule::LlamaBpe => pieces_of(text, |rest| self.qwen2_piece(rest, 3), &mut piece),
            SplitRule::SmolLm => {
                let mut rest = text;
                while !rest.is_empty() {
                    let end = self.run_end(rest, 0, |seen| !seen.is(CLASS_SINGLE_DIGIT));
                    let (before, digits) = rest.split_at(end);
                    pieces_of(before, |rest| self.gpt2_piece(rest), &mut piece);
                    let width = self.at(digits, 0).map_or(0, |digit| digit.width);
                    let (digit, after) = digits.split_at(width);
                    if !digit.is_empty() {
                        piece(digit);
                    }
                    rest = after;
                }
            }
        }
    }

    fn at(&self, text: &str, at: usize) -> Option<Seen> {
        let first = *text.as_bytes().get(at)?;
        if let Some(&class) = self.ascii.get(usize::from(first)) {
            return Some(Seen { character: char::from(first), class, width: 1 });
        }
        let character = text.get(at..)?.chars().next()?;
        Some(Seen { character, class: self.view.class(character), width: character.len_utf8() })
    }

    /// Where the run of characters that satisfy `belongs` ends, from `at` on.
    fn run_end(&self, text: &str, mut at: usize, belongs: impl Fn(Seen) -> bool) -> usize {
        while let Some(seen) = self.at(text, at).filter(|&seen| belongs(seen)) {
            at += seen.width;
        }
        at
    }

    /// Bytes of the first piece by GPT-2's rule.
    fn gpt2_piece(&self, text: &str) -> usize {
        if let Some(bytes) = contraction(text, |found, letter| found == letter) {
            return bytes;
        }
        let space = usize::from(text.starts_with(' '));
        if let Some(next) = self.at(text, space) {
            for class in [CLASS_LETTER, CLASS_NUMBER] {
                if next.is(class) {
                    return self.run_end(text, space, |seen| seen.is(class));
                }
            }
            if next.is_other() {
                return self.run_end(text, space, Seen::is_other);
            }
        }
        self.spaces(text)
    }

    /// Bytes of the first piece by Qwen2's rule, with up to `most_digits` in one piece.
    fn qwen2_piece(&self, text: &str, most_digits: usize) -> usize {
        if let Some(bytes) = contraction(text, equals_folded) {
            return bytes;
        }
        let Some(first) = self.at(text, 0) else { return text.len() };
        let is_letter = |seen: Seen| seen.is(CLASS_LETTER);
        if is_letter(first) {
            return self.run_end(text, 0, is_letter);
        }
        if !first.is_newline() && !first.is(CLASS_NUMBER) && self.at(text, first.width).is_some_and(is_letter)
        {
            return self.run_end(text, first.width, is_letter);
        }
        if first.is(CLASS_NUMBER) {
            let mut end = first.width;
            for _ in 1..most_digits {
                end += self.at(text, end).filter(|seen| seen.is(CLASS_NUMBER)).map_or(0, |seen| seen.width);
            }
            return end;
        }
        let space = usize::from(first.character == ' ');
        if self.at(text, space).is_some_and(Seen::is_other) {
            let end = self.run_end(text, space, Seen::is_other);
            return self.run_end(text, end, Seen::is_newline);
        }
        let run = self.run_end(text, 0, |seen| seen.is(CLASS_SPACE));
        match text[..run].rfind(['\r', '\n']) {
            Some(last_newline) => last_newline + 1,
            None => self.spaces(text),
        }
    }

    /// `\s+(?!\S)|\s+`: a run of spaces leaves its last one to what follows, unless it is the only one.
    fn spaces(&self, text: &str) -> usize {
        let run = self.run_end(text, 0, |seen| seen.is(CLASS_SPACE));
        let last = text[..run].chars().next_back().map_or(0, char::len_utf8);
        if run == text.len() || run == last { run } else { run - last }
    }
}

/// Cuts `text` by the length of its first piece, again and again.
fn pieces_of(text: &str, first_piece: impl Fn(&str) -> usize, piece: &mut impl FnMut(&str)) {
    let mut rest = text;
    while !rest.is_empty() {
        let bytes = first_piece(rest);
        // Every rule covers every character; only damaged class tables can leave one out.
        let bytes = if bytes == 0 { rest.chars().next().map_or(rest.len(), char::len_utf8) } else { bytes };
        let (first, after) = rest.split_at(bytes);
        piece(first);
        rest = after;
    }
}

/// `'s|'t|'re|'ve|'m|'ll|'d` at the beginning of `text`.
fn contraction(text: &str, equals: impl Fn(char, char) -> bool) -> Option<usize> {
    let tail = text.strip_prefix('\'')?;
    ["s", "t", "re", "ve", "m", "ll", "d"].into_iter().find_map(|letters| {
        let mut rest = tail.chars();
        let mut bytes = 1;
        for letter in letters.chars() {
            let found = rest.next().filter(|&found| equals(found, letter))?;
            bytes += found.len_utf8();
        }
        Some(bytes)
    })
}

/// Equality under `(?i:…)`, which is Unicode's simple case folding: the long s counts as an s.
fn equals_folded(found: char, letter: char) -> bool {
    found.eq_ignore_ascii_case(&letter) || (letter == 's' && found == 'ſ')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::example_tables::example_tables;

    fn pieces(rule: SplitRule, text: &str) -> Vec<String> {
        let tables = example_tables(rule);
        let splitter = Splitter::new(TokenizerView::new(tables).unwrap());
        let mut pieces = Vec::new();
        splitter.for_each_piece(text, |piece| pieces.push(piece.to_owned()));
        pieces
    }

    #[test]
    fn qwen2_takes_digits_singly_and_newlines_with_what_stands_before() {
        assert_eq!(
            pieces(SplitRule::Qwen2, "I'LL be 42!\n\n  ok\t(x)\r\n y  "),
            ["I", "'LL", " be", " ", "4", "2", "!\n\n", " ", " ok", "\t", "(x", ")\r\n", " y", "  "]
        );
        // Folding takes the long s for an s.
        assert_eq!(pieces(SplitRule::Qwen2, "'ſx'sx'x"), ["'ſ", "x", "'s", "x", "'x"]);
        assert_eq!(pieces(SplitRule::Qwen2, "  \n \n  x"), ["  \n \n", " ", " x"]);
        assert_eq!(pieces(SplitRule::LlamaBpe, "1234 567"), ["123", "4", " ", "567"]);
    }

    #[test]
    fn gpt2_joins_a_space_to_letters_digits_or_signs() {
        assert_eq!(
            pieces(SplitRule::Gpt2, "I'll I'LL  be 42 !?\n x"),
            ["I", "'ll", " I", "'", "LL", " ", " be", " 42", " !?", "\n", " x"]
        );
    }

    #[test]
    fn smollm_cuts_digits_out_before_spaces_can_join_them() {
        assert_eq!(pieces(SplitRule::SmolLm, "a  12 b"), ["a", "  ", "1", "2", " b"]);
    }
}

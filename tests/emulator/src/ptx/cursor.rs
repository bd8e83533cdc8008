//! A position in the tokens of a module.

use super::ParseError;
use super::lexer::{Placed, Token, line_of};

/// Walks over tokens; every error names line and text.
pub(crate) struct Cursor<'text> {
    text: &'text str,
    tokens: Vec<Placed<'text>>,
    at: usize,
}

impl<'text> Cursor<'text> {
    /// Begins before the first of `tokens`, which are those of `text`.
    pub(crate) fn new(text: &'text str, tokens: Vec<Placed<'text>>) -> Cursor<'text> {
        Cursor { text, tokens, at: 0 }
    }

    /// Line of the next token, or of the last one at the end.
    pub(crate) fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(0, |placed| placed.line)
    }

    /// The next token, which stays.
    pub(crate) fn peek(&self) -> Option<Token<'text>> {
        self.tokens.get(self.at).map(|placed| placed.token)
    }

    /// The token after the next.
    pub(crate) fn peek_second(&self) -> Option<Token<'text>> {
        self.tokens.get(self.at + 1).map(|placed| placed.token)
    }

    /// An error at the token that was taken last.
    pub(crate) fn error(&self, what: String) -> ParseError {
        let line = self.tokens.get(self.at.saturating_sub(1)).map_or(0, |placed| placed.line);
        self.error_at(line, what)
    }

    /// An error at `line`.
    pub(crate) fn error_at(&self, line: u32, what: String) -> ParseError {
        ParseError { line, text: line_of(self.text, line), what }
    }

    /// Takes the next token, of which there must be one.
    pub(crate) fn next(&mut self, expected: &str) -> Result<Token<'text>, ParseError> {
        let token =
            self.peek().ok_or_else(|| self.error(format!("the text ends where {expected} is due")))?;
        self.at += 1;
        Ok(token)
    }

    /// Takes a word.
    pub(crate) fn word(&mut self, expected: &str) -> Result<&'text str, ParseError> {
        match self.next(expected)? {
            Token::Word(word) => Ok(word),
            other => Err(self.error(format!("{other:?} where {expected} is due"))),
        }
    }

    /// Takes a whole number.
    pub(crate) fn integer(&mut self, expected: &str) -> Result<u32, ParseError> {
        let word = self.word(expected)?;
        word.parse().map_err(|_| self.error(format!("`{word}` where {expected} is due")))
    }

    /// Takes `mark` if it is next.
    pub(crate) fn take_mark(&mut self, mark: char) -> bool {
        let found = self.peek() == Some(Token::Mark(mark));
        self.at += usize::from(found);
        found
    }

    /// Takes `word` if it is next.
    pub(crate) fn take_word(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(Token::Word(word));
        self.at += usize::from(found);
        found
    }

    /// Takes `mark`, which must be next.
    pub(crate) fn expect_mark(&mut self, mark: char) -> Result<(), ParseError> {
        match self.next(&format!("`{mark}`"))? {
            Token::Mark(found) if found == mark => Ok(()),
            other => Err(self.error(format!("{other:?} where `{mark}` is due"))),
        }
    }

    /// Skips what is left of the line of the token that was taken last.
    pub(crate) fn skip_line(&mut self) {
        let line = self.tokens[self.at.saturating_sub(1)].line;
        while self.tokens.get(self.at).is_some_and(|placed| placed.line == line) {
            self.at += 1;
        }
    }

    /// Skips a block in braces, if one begins here.
    pub(crate) fn skip_braces(&mut self) -> Result<(), ParseError> {
        let mut depth = 0u32;
        loop {
            match self.peek() {
                Some(Token::Mark('{')) => depth += 1,
                Some(Token::Mark('}')) if depth > 0 => depth -= 1,
                _ if depth == 0 => return Ok(()),
                None => return Err(self.error("a block does not end".to_owned())),
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return Ok(());
            }
        }
    }
}

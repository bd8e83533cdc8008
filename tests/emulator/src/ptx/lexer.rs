//! Cuts PTX text into tokens, each with its line.

use super::ParseError;

/// A piece of PTX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token<'text> {
    /// A directive, opcode with its modifiers, register, symbol or number.
    Word(&'text str),
    /// A quoted string, without its quotes.
    Text(&'text str),
    /// One character of punctuation.
    Mark(char),
}

/// A token and its line, from 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed<'text> {
    pub(crate) token: Token<'text>,
    pub(crate) line: u32,
}

/// The line numbered `line` of `text`.
pub(crate) fn line_of(text: &str, line: u32) -> String {
    let at = (line as usize).saturating_sub(1);
    text.lines().nth(at).unwrap_or_default().trim().to_owned()
}

/// All tokens of `text`; comments are gone.
pub(crate) fn tokens(text: &str) -> Result<Vec<Placed<'_>>, ParseError> {
    let mut lexer = Lexer { text, at: 0, line: 1, tokens: Vec::with_capacity(text.len() / 5) };
    while lexer.at < text.len() {
        lexer.step()?;
    }
    Ok(lexer.tokens)
}

struct Lexer<'text> {
    text: &'text str,
    at: usize,
    line: u32,
    tokens: Vec<Placed<'text>>,
}

impl<'text> Lexer<'text> {
    fn rest(&self) -> &'text str {
        &self.text[self.at..]
    }

    fn push(&mut self, token: Token<'text>) {
        self.tokens.push(Placed { token, line: self.line });
    }

    fn error(&self, what: &str) -> ParseError {
        ParseError { line: self.line, text: line_of(self.text, self.line), what: what.to_owned() }
    }

    fn step(&mut self) -> Result<(), ParseError> {
        let rest = self.rest();
        let first = rest.as_bytes()[0];
        match first {
            b'\n' => {
                self.line += 1;
                self.at += 1;
            }
            b' ' | b'\t' | b'\r' => self.at += 1,
            b'/' if rest.starts_with("//") => self.at += rest.find('\n').unwrap_or(rest.len()),
            b'/' if rest.starts_with("/*") => {
                let length = rest.find("*/").ok_or_else(|| self.error("a comment does not end"))? + 2;
                self.line += rest[..length].matches('\n').count() as u32;
                self.at += length;
            }
            b'"' => {
                let length = rest[1..].find('"').ok_or_else(|| self.error("a string does not end"))?;
                self.push(Token::Text(&rest[1..1 + length]));
                self.at += length + 2;
            }
            _ if is_word(first) => self.word(rest),
            b',' | b';' | b':' | b'{' | b'}' | b'[' | b']' | b'(' | b')' | b'<' | b'>' | b'@' | b'!'
            | b'|' | b'+' | b'-' | b'=' => {
                self.push(Token::Mark(first as char));
                self.at += 1;
            }
            _ => return Err(self.error("a character that PTX does not have")),
        }
        Ok(())
    }

    fn word(&mut self, rest: &'text str) {
        let bytes = rest.as_bytes();
        let mut length = 0;
        // `.shared::cta` is one word, `label:` is two tokens.
        loop {
            match bytes.get(length) {
                Some(&byte) if is_word(byte) => length += 1,
                Some(b':') if bytes.get(length + 1) == Some(&b':') => length += 2,
                _ => break,
            }
        }
        self.push(Token::Word(&rest[..length]));
        self.at += length;
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_their_modifiers_and_lose_comments() {
        let placed = tokens("ld.shared::cta.b32 %r1, [a+4]; // end\n/* two\nlines */ $L:").unwrap();
        let found: Vec<_> = placed.iter().map(|placed| placed.token).collect();
        let word = Token::Word;
        let mark = Token::Mark;
        assert_eq!(
            found,
            [
                word("ld.shared::cta.b32"),
                word("%r1"),
                mark(','),
                mark('['),
                word("a"),
                mark('+'),
                word("4"),
                mark(']'),
                mark(';'),
                word("$L"),
                mark(':')
            ]
        );
        assert_eq!(placed.last().unwrap().line, 3);
    }

    #[test]
    fn what_is_not_ptx_is_named_with_its_line() {
        let error = tokens("ret;\nret ~;").unwrap_err();
        assert_eq!((error.line, error.text.as_str()), (2, "ret ~;"));
    }
}

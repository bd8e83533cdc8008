//! Text → words, quoted strings and symbols, with their places.

/// Whether a character can stand in a word: names, numbers, keywords.
pub(super) fn in_word(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '.' | '-' | '+')
}

/// A piece of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// Name, number or keyword.
    Word(&'a str),
    /// A string that stood between quotation marks, its escapes undone.
    Quoted(String),
    /// Any other character.
    Symbol(char),
    /// The text is over.
    End,
}

impl Token<'_> {
    /// The token as it is called in messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Word(word) => format!("`{}`", word.chars().take(40).collect::<String>()),
            Self::Quoted(_) => "a quoted string".to_owned(),
            Self::Symbol(symbol) => format!("`{}`", symbol.escape_debug()),
            Self::End => "the end of the text".to_owned(),
        }
    }
}

/// Why a piece of text is none: what is wrong, and the byte where.
pub(super) type ScanError = (String, usize);

/// Reads token after token.
#[derive(Clone, Debug)]
pub(super) struct Scanner<'a> {
    text: &'a str,
    /// Byte at which the next token is looked for.
    offset: usize,
}

impl<'a> Scanner<'a> {
    pub(super) const fn new(text: &'a str) -> Self {
        Self { text, offset: 0 }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.offset..]
    }

    fn skip_spaces_and_comments(&mut self) {
        loop {
            self.offset = self.text.len() - self.rest().trim_start().len();
            if !self.rest().starts_with("//") {
                return;
            }
            self.offset += self.rest().find('\n').unwrap_or(self.rest().len());
        }
    }

    /// The next token and the byte at which it starts.
    pub(super) fn next(&mut self) -> Result<(Token<'a>, usize), ScanError> {
        self.skip_spaces_and_comments();
        let start = self.offset;
        let Some(first) = self.rest().chars().next() else {
            return Ok((Token::End, start));
        };
        if first == '"' {
            return Ok((Token::Quoted(self.quoted()?), start));
        }
        let length = self.rest().find(|character| !in_word(character)).unwrap_or(self.rest().len());
        if length > 0 {
            self.offset += length;
            return Ok((Token::Word(&self.text[start..self.offset]), start));
        }
        self.offset += first.len_utf8();
        Ok((Token::Symbol(first), start))
    }

    /// Reads a string; the next character is its opening quotation mark.
    fn quoted(&mut self) -> Result<String, ScanError> {
        let start = self.offset;
        self.offset += 1;
        let mut content = String::new();
        loop {
            let here = self.offset;
            let Some(character) = self.rest().chars().next().filter(|character| *character != '\n') else {
                return Err(("this string has no closing quotation mark".to_owned(), start));
            };
            self.offset += character.len_utf8();
            match character {
                '"' => return Ok(content),
                '\\' => content.push(self.escape().ok_or_else(|| {
                    ("unknown escape: `\\\\`, `\\\"` and `\\u{…}` are understood".to_owned(), here)
                })?),
                _ => content.push(character),
            }
        }
    }

    /// The character meant by an escape whose backslash has been read.
    fn escape(&mut self) -> Option<char> {
        let rest = self.rest();
        let character = rest.chars().next()?;
        if character != 'u' {
            self.offset += character.len_utf8();
            return matches!(character, '"' | '\\').then_some(character);
        }
        let digits = rest.strip_prefix("u{")?;
        let length = digits.bytes().take(9).position(|byte| byte == b'}')?;
        self.offset += "u{".len() + length + 1;
        char::from_u32(u32::from_str_radix(digits.get(..length)?, 16).ok()?)
    }
}

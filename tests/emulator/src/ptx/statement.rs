//! The grammar of instructions: guard, opcode with modifiers, operands.

use super::cursor::Cursor;
use super::lexer::Token;
use super::{ParseError, Type};

/// An instruction as it was written.
#[derive(Clone, Debug)]
pub(crate) struct Statement<'text> {
    pub(crate) line: u32,
    /// Predicate register, and whether it is negated.
    pub(crate) guard: Option<(&'text str, bool)>,
    /// Opcode and modifiers, cut at dots.
    pub(crate) parts: Vec<&'text str>,
    pub(crate) operands: Vec<Operand<'text>>,
}

/// An operand as it was written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand<'text> {
    /// A register, special register, symbol or label.
    Name(&'text str),
    /// `!%p1`.
    Not(&'text str),
    /// A whole number, in two's complement.
    Integer(u64),
    /// `0f` and eight digits.
    Float32(u32),
    /// `0d` and sixteen digits.
    Float64(u64),
    /// `{a, b}`.
    Vector(Vec<Operand<'text>>),
    /// `a|b`.
    Pair(Box<[Operand<'text>; 2]>),
    /// `[base+offset]`; without a base, an absolute address.
    Address(Option<&'text str>, i64),
}

impl<'text> Statement<'text> {
    /// Reads one instruction with its semicolon.
    pub(crate) fn parse(cursor: &mut Cursor<'text>) -> Result<Statement<'text>, ParseError> {
        let line = cursor.line();
        let mut guard = None;
        if cursor.take_mark('@') {
            let negated = cursor.take_mark('!');
            guard = Some((cursor.word("a predicate")?, negated));
        }
        let opcode = cursor.word("an opcode")?;
        let mut operands = Vec::new();
        while !cursor.take_mark(';') {
            if !operands.is_empty() {
                cursor.expect_mark(',')?;
            }
            operands.push(operand(cursor)?);
        }
        Ok(Statement { line, guard, parts: split(opcode), operands })
    }

    /// The opcode without modifiers.
    pub(crate) fn opcode(&self) -> &'text str {
        self.parts[0]
    }
}

/// Cuts at single dots.
fn split(opcode: &str) -> Vec<&str> {
    opcode.split('.').collect()
}

fn operand<'text>(cursor: &mut Cursor<'text>) -> Result<Operand<'text>, ParseError> {
    if cursor.take_mark('{') {
        let mut elements = Vec::new();
        while !cursor.take_mark('}') {
            if !elements.is_empty() {
                cursor.expect_mark(',')?;
            }
            elements.push(operand(cursor)?);
        }
        return Ok(Operand::Vector(elements));
    }
    if cursor.take_mark('[') {
        return address(cursor);
    }
    if cursor.take_mark('!') {
        return Ok(Operand::Not(cursor.word("a predicate")?));
    }
    let first = scalar(cursor)?;
    if cursor.take_mark('|') {
        return Ok(Operand::Pair(Box::new([first, scalar(cursor)?])));
    }
    Ok(first)
}

fn scalar<'text>(cursor: &mut Cursor<'text>) -> Result<Operand<'text>, ParseError> {
    let negative = cursor.take_mark('-');
    let word = cursor.word("an operand")?;
    if !negative && !word.starts_with(|first: char| first.is_ascii_digit()) {
        return Ok(Operand::Name(word));
    }
    let number = number(word).ok_or_else(|| cursor.error(format!("`{word}` is not a number")))?;
    match (negative, number) {
        (false, number) => Ok(number),
        (true, Operand::Integer(value)) => Ok(Operand::Integer(value.wrapping_neg())),
        (true, _) => Err(cursor.error("a minus before the bits of a float".to_owned())),
    }
}

/// A number of any of PTX's spellings.
pub(crate) fn number(word: &str) -> Option<Operand<'static>> {
    let lower = word.to_ascii_lowercase();
    if let Some(digits) = lower.strip_prefix("0f") {
        return (digits.len() == 8)
            .then(|| u32::from_str_radix(digits, 16).ok())
            .flatten()
            .map(Operand::Float32);
    }
    if let Some(digits) = lower.strip_prefix("0d") {
        return (digits.len() == 16)
            .then(|| u64::from_str_radix(digits, 16).ok())
            .flatten()
            .map(Operand::Float64);
    }
    let lower = lower.strip_suffix('u').unwrap_or(&lower);
    let value = match lower.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => lower.parse(),
    };
    value.ok().map(Operand::Integer)
}

fn address<'text>(cursor: &mut Cursor<'text>) -> Result<Operand<'text>, ParseError> {
    let mut base = None;
    let mut offset = 0i64;
    let mut sign = 1;
    loop {
        match scalar(cursor)? {
            Operand::Name(name) if base.is_none() && sign == 1 => base = Some(name),
            Operand::Integer(value) => offset = offset.wrapping_add((value as i64).wrapping_mul(sign)),
            _ => return Err(cursor.error("an address that is no register with an offset".to_owned())),
        }
        match cursor.next("`]`")? {
            Token::Mark(']') => return Ok(Operand::Address(base, offset)),
            Token::Mark('+') => sign = 1,
            Token::Mark('-') => sign = -1,
            _ => return Err(cursor.error("an address that does not end".to_owned())),
        }
    }
}

/// The modifiers of an instruction; each has to be taken by someone.
pub(crate) struct Modifiers<'text> {
    left: Vec<&'text str>,
}

impl<'text> Modifiers<'text> {
    /// All modifiers of `statement`.
    pub(crate) fn of(statement: &Statement<'text>) -> Modifiers<'text> {
        Modifiers { left: statement.parts[1..].to_vec() }
    }

    /// Takes `name` if it is there.
    pub(crate) fn take(&mut self, name: &str) -> bool {
        self.take_one(&[name]).is_some()
    }

    /// Takes the first modifier that is one of `names`.
    pub(crate) fn take_one(&mut self, names: &[&str]) -> Option<&'text str> {
        let at = self.left.iter().position(|left| names.contains(left))?;
        Some(self.left.remove(at))
    }

    /// Takes every modifier that begins with `prefix`.
    pub(crate) fn take_prefixed(&mut self, prefix: &str) {
        self.left.retain(|left| !left.starts_with(prefix));
    }

    /// Takes the first modifier that names a type.
    pub(crate) fn take_type(&mut self) -> Option<Type> {
        let at = self.left.iter().position(|left| Type::parse(left).is_some())?;
        Type::parse(self.left.remove(at))
    }

    /// The modifiers that nobody took.
    pub(crate) fn left(&self) -> &[&'text str] {
        &self.left
    }
}

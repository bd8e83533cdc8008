//! Reads one entry: its parameters, variables, labels and instructions.

use std::collections::HashMap;
use std::sync::Arc;

use super::cursor::Cursor;
use super::decode::{self, Instruction};
use super::flow;
use super::lexer::Token;
use super::registers::Registers;
use super::resolver::{CONSTANT_BASE, LOCAL_BASE, Resolver, SHARED_BASE, Space, Symbol};
use super::statement::{Operand, Statement, number};
use super::types::Type;
use super::{Entry, Parameter, ParseError};

/// Registers of one name that an entry may declare.
const MOST_REGISTERS: u32 = 1 << 20;
/// Bytes of the largest variable and of the largest parameter.
const MOST_BYTES: u64 = 1 << 20;

/// A variable as it was declared.
#[derive(Clone, Debug)]
pub(crate) struct Variable<'text> {
    pub(crate) name: &'text str,
    pub(crate) alignment_bytes: u64,
    /// Its size; zero where the launch decides.
    pub(crate) bytes: u64,
    pub(crate) element_bytes: u64,
}

/// Variables of a memory, one behind the other.
#[derive(Clone, Default)]
struct Placement<'text> {
    placed: Vec<(&'text str, u64)>,
    end: u64,
}

impl<'text> Placement<'text> {
    fn place(&mut self, variable: &Variable<'text>) {
        let address = self.end.next_multiple_of(variable.alignment_bytes);
        self.placed.push((variable.name, address));
        self.end = address + variable.bytes;
    }
}

/// Reads what follows `.shared` or `.local`.
pub(crate) fn uninitialised<'text>(cursor: &mut Cursor<'text>) -> Result<Variable<'text>, ParseError> {
    let variable = variable(cursor)?;
    cursor.expect_mark(';')?;
    Ok(variable)
}

/// Reads alignment, type, name and size.
fn variable<'text>(cursor: &mut Cursor<'text>) -> Result<Variable<'text>, ParseError> {
    let mut alignment = None;
    let mut element = None;
    loop {
        let word = cursor.word("a type or a name")?;
        if word == ".align" {
            alignment = Some(u64::from(cursor.integer("an alignment")?));
        } else if let Some(kind) = word.strip_prefix('.').and_then(Type::parse) {
            element = Some(u64::from(kind.bytes()));
        } else if let (false, Some(element)) = (word.starts_with('.'), element) {
            let mut bytes = element;
            if cursor.take_mark('[') {
                let is_open = cursor.take_mark(']');
                let count = if is_open { 0 } else { u64::from(cursor.integer("a count")?) };
                if !is_open {
                    cursor.expect_mark(']')?;
                }
                bytes *= count;
            }
            let alignment_bytes = alignment.unwrap_or(element);
            if bytes > MOST_BYTES {
                return Err(cursor.error(format!("a variable of {bytes} bytes")));
            }
            if !alignment_bytes.is_power_of_two() || alignment_bytes > MOST_BYTES {
                return Err(cursor.error(format!("an alignment of {alignment_bytes} bytes")));
            }
            return Ok(Variable { name: word, alignment_bytes, bytes, element_bytes: element });
        } else {
            return Err(cursor.error(format!("`{word}` in the declaration of a variable")));
        }
    }
}

/// Reads what follows `.const` or `.global`: a variable that the module gives its bytes.
pub(crate) fn constant<'text>(
    cursor: &mut Cursor<'text>,
    outside: &mut Outside<'text>,
) -> Result<(), ParseError> {
    let variable = variable(cursor)?;
    cursor.expect_mark('=')?;
    cursor.expect_mark('{')?;
    let mut bytes = Vec::new();
    let element = variable.element_bytes as usize;
    while !cursor.take_mark('}') {
        if !bytes.is_empty() {
            cursor.expect_mark(',')?;
        }
        let is_negative = cursor.take_mark('-');
        let word = cursor.word("a number")?;
        let value = match number(word) {
            Some(Operand::Integer(value)) if is_negative => value.wrapping_neg(),
            Some(Operand::Integer(value) | Operand::Float64(value)) => value,
            Some(Operand::Float32(bits)) => u64::from(bits),
            _ => return Err(cursor.error(format!("`{word}` among the bytes of a constant"))),
        };
        bytes.extend(&value.to_le_bytes()[..element]);
    }
    cursor.expect_mark(';')?;
    if bytes.len() as u64 > variable.bytes {
        return Err(cursor.error(format!("{} bytes for a constant of {}", bytes.len(), variable.bytes)));
    }
    // What is not given is zero.
    bytes.resize(variable.bytes as usize, 0);
    let start = outside.constant_bytes.len().next_multiple_of(variable.alignment_bytes as usize);
    outside.constant_bytes.resize(start, 0);
    outside.constant_bytes.extend(bytes);
    outside.constants.push((variable.name, start as u64));
    Ok(())
}

/// What the module declares for all of its entries.
#[derive(Clone, Default)]
pub(crate) struct Outside<'text> {
    /// Static shared variables.
    pub(crate) shared: Vec<Variable<'text>>,
    /// Names and addresses of constants, and their bytes, one behind the other.
    pub(crate) constants: Vec<(&'text str, u64)>,
    pub(crate) constant_bytes: Vec<u8>,
    /// Names of the dynamic shared memory.
    pub(crate) dynamic: Vec<Variable<'text>>,
}

/// An entry whose text is read and not yet decoded.
struct Draft<'text> {
    registers: Registers,
    shared: Placement<'text>,
    local: Placement<'text>,
    statements: Vec<Statement<'text>>,
    labels: HashMap<&'text str, u32>,
    tables: HashMap<&'text str, Vec<&'text str>>,
    maximum_threads: Option<u32>,
    required_threads: Option<u32>,
}

/// Reads what follows `.entry`.
pub(crate) fn parse<'text>(
    cursor: &mut Cursor<'text>,
    outside: &Outside<'text>,
    text: &Arc<str>,
) -> Result<Entry, ParseError> {
    let name = cursor.word("the name of an entry")?;
    let parameters = parameters(cursor)?;
    let mut draft = Draft {
        registers: Registers::default(),
        shared: Placement { end: SHARED_BASE, ..Placement::default() },
        local: Placement { end: LOCAL_BASE, ..Placement::default() },
        statements: Vec::new(),
        labels: HashMap::new(),
        tables: HashMap::new(),
        maximum_threads: None,
        required_threads: None,
    };
    outside.shared.iter().for_each(|variable| draft.shared.place(variable));
    attributes(cursor, &mut draft)?;
    body(cursor, &mut draft)?;
    finish(cursor, name, parameters, draft, outside, text)
}

fn parameters<'text>(cursor: &mut Cursor<'text>) -> Result<Vec<(&'text str, Parameter)>, ParseError> {
    let mut parameters: Vec<(&str, Parameter)> = Vec::new();
    if !cursor.take_mark('(') {
        return Ok(parameters);
    }
    while !cursor.take_mark(')') {
        if !parameters.is_empty() {
            cursor.expect_mark(',')?;
        }
        let word = cursor.word("`.param`")?;
        if word != ".param" {
            return Err(cursor.error(format!("`{word}` where `.param` is due")));
        }
        let mut element = 0;
        let mut alignment = None;
        let mut is_pointer = false;
        let name = loop {
            let word = cursor.word("the name of a parameter")?;
            match word.strip_prefix('.') {
                // What a pointer points to is aligned, not the pointer.
                Some("align") if is_pointer => drop(cursor.integer("an alignment")?),
                Some("align") => alignment = Some(cursor.integer("an alignment")?),
                Some("ptr") => is_pointer = true,
                Some("global" | "shared" | "const" | "local") if is_pointer => {}
                Some(kind) => {
                    let kind = Type::parse(kind);
                    element = kind.ok_or_else(|| cursor.error(format!("`{word}` of a parameter")))?.bytes();
                }
                None => break word,
            }
        };
        let mut size_bytes = element;
        if cursor.take_mark('[') {
            size_bytes = size_bytes.saturating_mul(cursor.integer("a count")?);
            cursor.expect_mark(']')?;
        }
        let is_odd = alignment.is_some_and(|alignment| !alignment.is_power_of_two());
        if u64::from(size_bytes.max(alignment.unwrap_or(1))) > MOST_BYTES || is_odd || parameters.len() > 1000
        {
            return Err(cursor.error(format!("a parameter of {size_bytes} bytes")));
        }
        let behind = parameters.last().map_or(0, |(_, last)| last.offset_bytes + last.size_bytes);
        let offset_bytes = behind.next_multiple_of(alignment.unwrap_or(element).max(1));
        parameters.push((name, Parameter { name: name.to_owned(), offset_bytes, size_bytes }));
    }
    Ok(parameters)
}

fn attributes<'text>(cursor: &mut Cursor<'text>, draft: &mut Draft<'text>) -> Result<(), ParseError> {
    while !cursor.take_mark('{') {
        let word = cursor.word("`{`")?;
        let mut product = 1u32;
        while let Some(Token::Word(number)) = cursor.peek() {
            let Ok(number) = number.parse::<u32>() else { break };
            product = product.saturating_mul(number);
            cursor.integer("a number")?;
            cursor.take_mark(',');
        }
        match word {
            ".maxntid" => draft.maximum_threads = Some(product),
            ".reqntid" => draft.required_threads = Some(product),
            ".minnctapersm" | ".maxnreg" => {}
            _ => return Err(cursor.error(format!("`{word}` is not known here"))),
        }
    }
    Ok(())
}

fn body<'text>(cursor: &mut Cursor<'text>, draft: &mut Draft<'text>) -> Result<(), ParseError> {
    let mut depth = 1u32;
    while depth > 0 {
        match cursor.peek() {
            Some(Token::Mark('{')) => {
                cursor.take_mark('{');
                depth += 1;
            }
            Some(Token::Mark('}')) => {
                cursor.take_mark('}');
                depth -= 1;
            }
            Some(Token::Word(word)) if word.starts_with('.') => directive(cursor, draft)?,
            Some(Token::Word(word)) if cursor.peek_second() == Some(Token::Mark(':')) => {
                cursor.word("a label")?;
                cursor.expect_mark(':')?;
                label(cursor, draft, word)?;
            }
            Some(_) => draft.statements.push(Statement::parse(cursor)?),
            None => return Err(cursor.error("the entry does not end".to_owned())),
        }
    }
    Ok(())
}

fn label<'text>(
    cursor: &mut Cursor<'text>,
    draft: &mut Draft<'text>,
    name: &'text str,
) -> Result<(), ParseError> {
    if cursor.take_word(".branchtargets") {
        let mut targets = vec![cursor.word("a label")?];
        while cursor.take_mark(',') {
            targets.push(cursor.word("a label")?);
        }
        cursor.expect_mark(';')?;
        draft.tables.insert(name, targets);
    } else if draft.labels.insert(name, draft.statements.len() as u32).is_some() {
        return Err(cursor.error(format!("the label `{name}` stands twice")));
    }
    Ok(())
}

fn directive<'text>(cursor: &mut Cursor<'text>, draft: &mut Draft<'text>) -> Result<(), ParseError> {
    match cursor.word("a directive")? {
        ".reg" => registers(cursor, draft),
        ".shared" => uninitialised(cursor).map(|variable| draft.shared.place(&variable)),
        ".local" => uninitialised(cursor).map(|variable| draft.local.place(&variable)),
        ".loc" | ".file" | ".pragma" => {
            cursor.skip_line();
            Ok(())
        }
        word => Err(cursor.error(format!("`{word}` is not known here"))),
    }
}

fn registers<'text>(cursor: &mut Cursor<'text>, draft: &mut Draft<'text>) -> Result<(), ParseError> {
    let word = cursor.word("a type")?;
    let kind = word.strip_prefix('.').and_then(Type::parse);
    let kind = kind.ok_or_else(|| cursor.error(format!("registers of type `{word}`")))?;
    loop {
        let name = cursor.word("a register")?;
        let mut count = None;
        if cursor.take_mark('<') {
            let number = cursor.integer("a count")?;
            if number > MOST_REGISTERS {
                return Err(cursor.error(format!("{number} registers")));
            }
            count = Some(number);
            cursor.expect_mark('>')?;
        }
        draft.registers.declare(kind, name, count);
        if !cursor.take_mark(',') {
            return cursor.expect_mark(';');
        }
    }
}

fn finish<'text>(
    cursor: &Cursor<'text>,
    name: &str,
    parameters: Vec<(&'text str, Parameter)>,
    draft: Draft<'text>,
    outside: &Outside<'text>,
    text: &Arc<str>,
) -> Result<Entry, ParseError> {
    let mut symbols = HashMap::new();
    let static_end = draft.shared.end;
    let dynamic_alignment =
        outside.dynamic.iter().map(|variable| variable.alignment_bytes).max().unwrap_or(1);
    let dynamic_base = static_end.next_multiple_of(dynamic_alignment);
    let dynamic = outside.dynamic.iter().map(|variable| (variable.name, dynamic_base));
    for (symbol, address) in draft.shared.placed.iter().copied().chain(dynamic) {
        symbols.insert(symbol, Symbol { space: Space::Shared, address });
    }
    for (symbol, address) in draft.local.placed.iter().copied() {
        symbols.insert(symbol, Symbol { space: Space::Local, address });
    }
    for (symbol, offset) in outside.constants.iter().copied() {
        symbols.insert(symbol, Symbol { space: Space::Constant, address: CONSTANT_BASE + offset });
    }
    for (symbol, parameter) in &parameters {
        let address = u64::from(parameter.offset_bytes);
        symbols.insert(symbol, Symbol { space: Space::Parameter, address });
    }
    let mut resolver = Resolver { registers: draft.registers, symbols, labels: draft.labels };
    let mut code = Vec::with_capacity(draft.statements.len() + 1);
    for statement in &draft.statements {
        let decoded = decode::decode(statement, &mut resolver, &draft.tables);
        code.push(decoded.map_err(|what| cursor.error_at(statement.line, what))?);
    }
    let last_line = draft.statements.last().map_or(0, |statement| statement.line);
    code.push(Instruction::end(last_line));
    flow::note_reconvergence(&mut code);
    Ok(Entry {
        name: name.to_owned(),
        parameters: parameters.into_iter().map(|(_, parameter)| parameter).collect(),
        static_shared_bytes: u32::try_from(static_end - SHARED_BASE).unwrap_or(u32::MAX),
        maximum_threads: draft.maximum_threads,
        required_threads: draft.required_threads,
        code,
        layout: resolver.registers.layout,
        dynamic_shared_base: dynamic_base,
        constants: outside.constant_bytes.clone(),
        local_bytes: draft.local.end - LOCAL_BASE,
        text: Arc::clone(text),
    })
}

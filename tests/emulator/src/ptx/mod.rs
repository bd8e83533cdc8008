//! One PTX module: read, checked and decoded, so that execution never looks at text again.

mod cursor;
pub(crate) mod decode;
mod entry;
mod flow;
mod lexer;
pub(crate) mod registers;
pub(crate) mod resolver;
pub(crate) mod statement;
pub(crate) mod types;

use std::fmt;
use std::sync::Arc;

use cursor::Cursor;
use decode::Instruction;
use entry::Outside;
use registers::Layout;

pub(crate) use flow::NOWHERE;
pub(crate) use types::Type;

/// A module that was read completely; nothing in it is unknown.
#[derive(Debug)]
pub struct Module {
    architecture: u32,
    version: (u32, u32),
    entries: Vec<Entry>,
}

/// A kernel of a module.
#[derive(Debug)]
pub struct Entry {
    name: String,
    parameters: Vec<Parameter>,
    static_shared_bytes: u32,
    maximum_threads: Option<u32>,
    required_threads: Option<u32>,
    pub(crate) code: Vec<Instruction>,
    pub(crate) layout: Layout,
    /// Where dynamic shared memory begins in the window.
    pub(crate) dynamic_shared_base: u64,
    pub(crate) local_bytes: u64,
    /// Bytes that the module brings along.
    pub(crate) constants: Vec<u8>,
    text: Arc<str>,
}

/// A parameter of an entry, where it lies among the bytes of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name in the PTX.
    pub name: String,
    /// Where it begins.
    pub offset_bytes: u32,
    /// Its size.
    pub size_bytes: u32,
}

/// Why a module was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Line of the text, from 1.
    pub line: u32,
    /// The line.
    pub text: String,
    /// What about it is wrong or unknown.
    pub what: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PTX line {}: {}: {}", self.line, self.what, self.text)
    }
}

impl std::error::Error for ParseError {}

impl Module {
    /// Reads the text of a module, without a final NUL.
    ///
    /// # Errors
    /// On everything that is unknown or malformed, with the line.
    pub fn parse(text: &str) -> Result<Module, ParseError> {
        let shared: Arc<str> = Arc::from(text);
        let mut cursor = Cursor::new(text, lexer::tokens(text)?);
        let mut module = Module { architecture: 0, version: (0, 0), entries: Vec::new() };
        let mut outside = Outside::default();
        while cursor.peek().is_some() {
            match cursor.word("a directive")? {
                ".version" => module.version = version(&mut cursor)?,
                ".target" => module.architecture = target(&mut cursor)?,
                ".address_size" => {
                    if cursor.integer("an address size")? != 64 {
                        return Err(cursor.error("addresses have 64 bits here".to_owned()));
                    }
                }
                ".file" | ".loc" => cursor.skip_line(),
                ".section" => {
                    cursor.word("a section")?;
                    cursor.skip_braces()?;
                }
                ".visible" | ".weak" => {}
                ".extern" => {
                    if !cursor.take_word(".shared") {
                        return Err(cursor.error("only shared memory may be extern".to_owned()));
                    }
                    outside.dynamic.push(entry::uninitialised(&mut cursor)?);
                }
                ".const" | ".global" => entry::constant(&mut cursor, &mut outside)?,
                ".shared" => outside.shared.push(entry::uninitialised(&mut cursor)?),
                ".entry" => module.entries.push(entry::parse(&mut cursor, &outside, &shared)?),
                word => return Err(cursor.error(format!("`{word}` is not known here"))),
            }
        }
        if module.architecture == 0 {
            return Err(cursor.error("the module has no `.target`".to_owned()));
        }
        Ok(module)
    }

    /// The entry called `name`.
    #[must_use]
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// All entries, in the order of the text.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The number in `.target sm_NN`.
    #[must_use]
    pub fn architecture(&self) -> u32 {
        self.architecture
    }

    /// Major and minor number of `.version`.
    #[must_use]
    pub fn version(&self) -> (u32, u32) {
        self.version
    }
}

impl Entry {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its parameters, in order.
    #[must_use]
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Bytes that all parameters take together.
    #[must_use]
    pub fn parameter_bytes(&self) -> u32 {
        self.parameters.last().map_or(0, |last| last.offset_bytes + last.size_bytes)
    }

    /// Bytes of shared memory that the PTX declares.
    #[must_use]
    pub fn static_shared_bytes(&self) -> u32 {
        self.static_shared_bytes
    }

    /// Threads of a block that `.maxntid` allows.
    #[must_use]
    pub fn maximum_threads(&self) -> Option<u32> {
        self.maximum_threads
    }

    /// The line of the PTX numbered `line`.
    pub(crate) fn line(&self, line: u32) -> String {
        lexer::line_of(&self.text, line)
    }

    /// Threads of a block that `.reqntid` demands.
    #[must_use]
    pub fn required_threads(&self) -> Option<u32> {
        self.required_threads
    }
}

fn version(cursor: &mut Cursor<'_>) -> Result<(u32, u32), ParseError> {
    let word = cursor.word("a version")?;
    let numbers =
        word.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    numbers.ok_or_else(|| cursor.error(format!("`{word}` is not a version")))
}

/// The number of `sm_80`; letters behind it (`sm_90a`) and further words (`debug`) are allowed.
fn target(cursor: &mut Cursor<'_>) -> Result<u32, ParseError> {
    let word = cursor.word("a target")?;
    let number =
        word.strip_prefix("sm_").map(|rest| rest.trim_end_matches(|end: char| end.is_ascii_lowercase()));
    let number = number.and_then(|digits| digits.parse().ok());
    while cursor.take_mark(',') {
        cursor.word("a target")?;
    }
    number.ok_or_else(|| cursor.error(format!("`{word}` is not a target")))
}

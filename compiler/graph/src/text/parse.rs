//! Text → graph.

mod weight;

use std::collections::BTreeMap;
use std::fmt;

use qwen2c_request::{CacheKind, CacheType, Dimension, Element, Size, TensorType};

use super::attributes::{Written, operation};
use super::scan::{Scanner, Token};
use crate::{CacheId, Graph, Op, ValueId, WeightId};

/// Why a text is not a graph; displayed with the line and a caret under the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// What was found and what was needed: lower case, no full stop.
    pub message: String,
    /// Line, from 1 on.
    pub line: usize,
    /// Character of the line, from 1 on.
    pub column: usize,
    /// The line's text.
    pub line_text: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let drawn = super::draw(&self.line_text, self.column, 1);
        write!(formatter, "line {}, column {}: {}\n{drawn}", self.line, self.column, self.message)
    }
}

impl std::error::Error for ParseError {}

/// What is wrong, and the byte where.
type Fault = (String, usize);

/// Reads the text form of a graph.
///
/// The graph is not verified: see [`verify`](crate::verify()).
///
/// # Errors
///
/// The first place where the text does not follow the form, or names what is not defined before.
pub fn parse_graph(text: &str) -> Result<Graph, ParseError> {
    let start = Scanner::new(text);
    let parser = Parser {
        scanner: start,
        graph: Graph::default(),
        values: BTreeMap::new(),
        weights: BTreeMap::new(),
        caches: BTreeMap::new(),
    };
    parser.graph().map_err(|(message, offset)| {
        let before = text.get(..offset).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        ParseError {
            message,
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            line_text: text[line_start..].lines().next().unwrap_or_default().to_owned(),
        }
    })
}

struct Parser<'a> {
    scanner: Scanner<'a>,
    graph: Graph,
    values: BTreeMap<String, ValueId>,
    weights: BTreeMap<String, WeightId>,
    caches: BTreeMap<String, CacheId>,
}

impl<'a> Parser<'a> {
    fn graph(mut self) -> Result<Graph, Fault> {
        self.keyword("graph")?;
        self.graph.name = self.name()?;
        self.graph.is_persistent = self.accept(Token::Word("persistent"))?;
        self.symbol('{')?;
        loop {
            match self.peek()? {
                (Token::Symbol('}'), _) => break,
                (Token::Word("input"), _) => {
                    self.next()?;
                    let id = self.declaration()?;
                    self.graph.inputs.push(id);
                }
                (Token::Word("weight"), _) => self.weight()?,
                (Token::Word("cache"), _) => self.cache()?,
                (Token::Word("output"), _) => {
                    self.next()?;
                    self.symbol('%')?;
                    let id = self.used("value", '%', |parser| &parser.values)?;
                    self.graph.outputs.push(id);
                }
                (Token::Word(_) | Token::Symbol('%'), _) => self.operation()?,
                (token, place) => {
                    let needed = "`input`, `weight`, `cache`, `output`, an operation or `}`";
                    return Err((format!("expected {needed}, found {}", token.describe()), place));
                }
            }
        }
        self.symbol('}')?;
        match self.next()? {
            (Token::End, _) => Ok(self.graph),
            (token, place) => Err((format!("the graph is closed, but {} follows", token.describe()), place)),
        }
    }

    fn next(&mut self) -> Result<(Token<'a>, usize), Fault> {
        self.scanner.next()
    }

    fn peek(&self) -> Result<(Token<'a>, usize), Fault> {
        self.scanner.clone().next()
    }

    /// Whether the next token is `token`; it is then read.
    fn accept(&mut self, token: Token<'_>) -> Result<bool, Fault> {
        let found = self.peek()?.0 == token;
        if found {
            self.next()?;
        }
        Ok(found)
    }

    fn symbol(&mut self, symbol: char) -> Result<(), Fault> {
        match self.next()? {
            (Token::Symbol(found), _) if found == symbol => Ok(()),
            (found, place) => Err((format!("expected `{symbol}`, found {}", found.describe()), place)),
        }
    }

    fn keyword(&mut self, keyword: &str) -> Result<(), Fault> {
        match self.next()? {
            (Token::Word(found), _) if found == keyword => Ok(()),
            (found, place) => Err((format!("expected `{keyword}`, found {}", found.describe()), place)),
        }
    }

    fn word(&mut self, what: &str) -> Result<(&'a str, usize), Fault> {
        match self.next()? {
            (Token::Word(word), place) => Ok((word, place)),
            (found, place) => Err((format!("expected {what}, found {}", found.describe()), place)),
        }
    }

    fn name(&mut self) -> Result<String, Fault> {
        match self.next()? {
            (Token::Word(word), _) => Ok(word.to_owned()),
            (Token::Quoted(name), _) => Ok(name),
            (found, place) => Err((format!("expected a name, found {}", found.describe()), place)),
        }
    }

    fn number<N: std::str::FromStr>(&mut self, what: &str) -> Result<N, Fault> {
        let (word, place) = self.word(what)?;
        word.parse().map_err(|_| (format!("expected {what}, found `{word}`"), place))
    }

    /// Items between brackets that have been opened, separated by commas, up to `close`.
    fn list<T>(
        &mut self,
        close: char,
        mut item: impl FnMut(&mut Self) -> Result<T, Fault>,
    ) -> Result<Vec<T>, Fault> {
        let mut items = Vec::new();
        while !self.accept(Token::Symbol(close))? {
            if !items.is_empty() {
                self.symbol(',')?;
            }
            items.push(item(self)?);
        }
        Ok(items)
    }

    /// A name, behind its sigil, that is looked up among those defined so far.
    fn used<Id: Copy>(
        &mut self,
        kind: &str,
        sigil: char,
        names: impl Fn(&Self) -> &BTreeMap<String, Id>,
    ) -> Result<Id, Fault> {
        let place = self.peek()?.1;
        let name = self.name()?;
        let found = names(self).get(&name).copied();
        found.ok_or_else(|| (format!("{kind} `{sigil}{name}` is not defined before this line"), place))
    }

    /// A name, behind its sigil, that must be new.
    fn defined(
        &mut self,
        kind: &str,
        sigil: char,
        known: impl Fn(&Self, &str) -> bool,
    ) -> Result<String, Fault> {
        self.symbol(sigil)?;
        let place = self.peek()?.1;
        let name = self.name()?;
        if known(self, &name) {
            return Err((format!("{kind} `{sigil}{name}` is defined twice"), place));
        }
        self.symbol(':')?;
        Ok(name)
    }

    /// `%name: type`
    fn declaration(&mut self) -> Result<ValueId, Fault> {
        let name = self.defined("value", '%', |parser, name| parser.values.contains_key(name))?;
        let ty = self.tensor_type()?;
        let id = self.graph.add_value(name.clone(), ty);
        self.values.insert(name, id);
        Ok(id)
    }

    fn element(&mut self) -> Result<Element, Fault> {
        let (word, place) = self.word("an element type")?;
        Element::from_name(word).ok_or_else(|| {
            (format!("expected `f32`, `bf16`, `f16`, `i32` or `i8.32`, found `{word}`"), place)
        })
    }

    fn tensor_type(&mut self) -> Result<TensorType, Fault> {
        let element = self.element()?;
        self.symbol('[')?;
        let dimensions = self.list(']', Self::dimension)?;
        Ok(TensorType { dimensions, element })
    }

    /// `hidden=896`, `rows` or `logit_rows`
    fn dimension(&mut self) -> Result<Dimension, Fault> {
        let place = self.peek()?.1;
        let name = self.name()?;
        if self.accept(Token::Symbol('='))? {
            let (word, place) = self.word("a size")?;
            let size = match word {
                "rows" => Size::Rows,
                "logit_rows" => Size::LogitRows,
                _ => {
                    let fault =
                        || (format!("expected a size, `rows` or `logit_rows`, found `{word}`"), place);
                    Size::Constant(word.parse().map_err(|_| fault())?)
                }
            };
            return Ok(Dimension { name, size });
        }
        match name.as_str() {
            "rows" => Ok(Dimension::rows()),
            "logit_rows" => Ok(Dimension::logit_rows()),
            _ => Err((format!("dimension `{name}` has no size: write `{name}=…`"), place)),
        }
    }

    /// `cache #name: key bf16[slots=1, kv_heads=2, context=32, head_dim=16]`
    fn cache(&mut self) -> Result<(), Fault> {
        self.keyword("cache")?;
        let name = self.defined("cache", '#', |parser, name| parser.caches.contains_key(name))?;
        let (word, place) = self.word("`key` or `value`")?;
        let kind = match word {
            "key" => CacheKind::Key,
            "value" => CacheKind::Value,
            _ => return Err((format!("expected `key` or `value`, found `{word}`"), place)),
        };
        let element = self.element()?;
        self.symbol('[')?;
        let mut sizes = [0; 4];
        for (index, dimension) in ["slots", "kv_heads", "context", "head_dim"].into_iter().enumerate() {
            if index > 0 {
                self.symbol(',')?;
            }
            self.keyword(dimension)?;
            self.symbol('=')?;
            sizes[index] = self.number("a size")?;
        }
        self.symbol(']')?;
        let [slots, kv_heads, context, head_dim] = sizes;
        let ty = CacheType { kind, slots, kv_heads, context, head_dim, element };
        let id = self.graph.add_cache(name.clone(), ty);
        self.caches.insert(name, id);
        Ok(())
    }

    /// `[%value: type, … =] name(operands) [{attributes}] [layer N]`
    fn operation(&mut self) -> Result<(), Fault> {
        // The operands cannot name what the operation itself defines, so the outputs, which stand
        // first, are declared last.
        let mut outputs_at = self.scanner.clone();
        let has_outputs = self.peek()?.0 == Token::Symbol('%');
        if has_outputs {
            self.skip_declarations()?;
        }
        let (name, place) = self.word("the name of an operation")?;
        let mut op = Op {
            operation: qwen2c_request::Operation::Add,
            layer: None,
            inputs: Vec::new(),
            weights: Vec::new(),
            caches: Vec::new(),
            outputs: Vec::new(),
        };
        self.symbol('(')?;
        self.list(')', |parser| parser.operand(&mut op))?;
        let mut written = Written::default();
        if self.accept(Token::Symbol('{'))? {
            written.0 = self.list('}', Self::attribute)?;
        }
        op.operation = operation(name, written).map_err(|message| (message, place))?;
        if self.accept(Token::Word("layer"))? {
            op.layer = Some(self.number("the number of a layer")?);
        }
        if has_outputs {
            std::mem::swap(&mut self.scanner, &mut outputs_at);
            op.outputs.push(self.declaration()?);
            while self.accept(Token::Symbol(','))? {
                op.outputs.push(self.declaration()?);
            }
            self.symbol('=')?;
            std::mem::swap(&mut self.scanner, &mut outputs_at);
        }
        self.graph.operations.push(op);
        Ok(())
    }

    /// Skips `%value: type, … =`; what stands there is read later.
    fn skip_declarations(&mut self) -> Result<(), Fault> {
        loop {
            self.symbol('%')?;
            self.name()?;
            self.symbol(':')?;
            self.tensor_type()?;
            if !self.accept(Token::Symbol(','))? {
                return self.symbol('=');
            }
        }
    }

    /// `%value`, `@weight` or `#cache`, in this order.
    fn operand(&mut self, op: &mut Op) -> Result<(), Fault> {
        let (token, place) = self.next()?;
        let order = || ("operands stand in the order values, weights, caches".to_owned(), place);
        match token {
            Token::Symbol('%') => {
                let id = self.used("value", '%', |parser| &parser.values)?;
                if !op.weights.is_empty() || !op.caches.is_empty() {
                    return Err(order());
                }
                op.inputs.push(id);
            }
            Token::Symbol('@') => {
                let id = self.used("weight", '@', |parser| &parser.weights)?;
                if !op.caches.is_empty() {
                    return Err(order());
                }
                op.weights.push(id);
            }
            Token::Symbol('#') => {
                let id = self.used("cache", '#', |parser| &parser.caches)?;
                op.caches.push(id);
            }
            found => {
                let needed = "expected `%value`, `@weight` or `#cache`";
                return Err((format!("{needed}, found {}", found.describe()), place));
            }
        }
        Ok(())
    }

    /// `name` or `name=value`
    fn attribute(&mut self) -> Result<(&'a str, Option<&'a str>), Fault> {
        let (name, _) = self.word("an attribute")?;
        let value = if self.accept(Token::Symbol('='))? { Some(self.word("a value")?.0) } else { None };
        Ok((name, value))
    }
}

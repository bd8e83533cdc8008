//! The line of a weight: type, tensors or rotary table, layout.

use qwen2c_request::{Quantization, TensorType, WeightLayout, WeightType};

use super::super::parts::{MOST_PARTS, repeat};
use super::super::scan::Token;
use super::{Fault, Parser};
use crate::{RopeTable, Weight, WeightPart, WeightSource};

impl Parser<'_> {
    /// `weight @name: type [as int4(32)] = source [columns N] [layout L]`
    pub(super) fn weight(&mut self) -> Result<(), Fault> {
        self.keyword("weight")?;
        let name = self.defined("weight", '@', |parser, name| parser.weights.contains_key(name))?;
        let place = self.peek()?.1;
        let TensorType { dimensions, element } = self.tensor_type()?;
        if dimensions.iter().any(|dimension| dimension.size.constant().is_none()) {
            return Err(("every dimension of a weight needs a number".to_owned(), place));
        }
        let quantization = if self.accept(Token::Word("as"))? { Some(self.quantization()?) } else { None };
        let ty = WeightType { dimensions, element, quantization };
        self.symbol('=')?;
        let source = self.weight_source()?;
        let mut source_columns = ty.columns();
        if self.accept(Token::Word("columns"))? {
            source_columns = self.number("a number of columns")?;
        }
        let layout = if self.accept(Token::Word("layout"))? { Some(self.layout()?) } else { None };
        let id = self.graph.add_weight(Weight { name: name.clone(), ty, source_columns, source, layout });
        self.weights.insert(name, id);
        Ok(())
    }

    /// `int8(32)`, `int4(128)` or `int4(32, f32, minimum)`
    fn quantization(&mut self) -> Result<Quantization, Fault> {
        let (word, place) = self.word("a quantization")?;
        let bits = match word {
            "int8" => 8,
            "int4" => 4,
            _ => return Err((format!("expected `int8(…)` or `int4(…)`, found `{word}`"), place)),
        };
        self.symbol('(')?;
        let mut quantization = Quantization::signed(bits, self.number("a group size")?);
        while self.accept(Token::Symbol(','))? {
            if self.accept(Token::Word("minimum"))? {
                quantization.has_minimum = true;
            } else {
                quantization.scale = self.element()?;
            }
        }
        self.symbol(')')?;
        Ok(quantization)
    }

    fn weight_source(&mut self) -> Result<WeightSource, Fault> {
        match self.peek()? {
            (Token::Word("rope"), _) => self.rope_table(),
            (Token::Word(_), place) => {
                let count: u64 = self.number("`rope`, a quoted tensor name or a count")?;
                self.symbol('*')?;
                self.symbol('(')?;
                let group = self.list(')', Self::part)?;
                if count.saturating_mul(group.len() as u64) > MOST_PARTS {
                    return Err((format!("more than {MOST_PARTS} tensors in one weight"), place));
                }
                Ok(WeightSource::Tensors(repeat(&group, count)))
            }
            _ => {
                let mut parts = vec![self.part()?];
                while self.accept(Token::Symbol(','))? {
                    parts.push(self.part()?);
                }
                Ok(WeightSource::Tensors(parts))
            }
        }
    }

    /// `"tensor"[rows]` or `"tensor"[rows padded rows]`
    fn part(&mut self) -> Result<WeightPart, Fault> {
        let (Token::Quoted(tensor), _) = self.peek()? else {
            let (found, place) = self.next()?;
            return Err((format!("expected a quoted tensor name, found {}", found.describe()), place));
        };
        self.next()?;
        self.symbol('[')?;
        let rows = self.number("a number of rows")?;
        let padded = self.accept(Token::Word("padded"))?;
        let padded_rows = if padded { self.number("a number of rows")? } else { rows };
        self.symbol(']')?;
        Ok(WeightPart { tensor, rows, padded_rows })
    }

    /// `rope(unresolved)` or `rope(attention_factor=1.0, inverse_frequencies=[…])`
    fn rope_table(&mut self) -> Result<WeightSource, Fault> {
        self.keyword("rope")?;
        self.symbol('(')?;
        if self.accept(Token::Word("unresolved"))? {
            self.symbol(')')?;
            return Ok(WeightSource::UnresolvedRopeTable);
        }
        self.keyword("attention_factor")?;
        self.symbol('=')?;
        let attention_factor = self.number("a number")?;
        self.symbol(',')?;
        self.keyword("inverse_frequencies")?;
        self.symbol('=')?;
        self.symbol('[')?;
        let inverse_frequencies = self.list(']', |parser| parser.number("a frequency"))?;
        self.symbol(')')?;
        Ok(WeightSource::RopeTable(RopeTable { inverse_frequencies, attention_factor }))
    }

    /// `row_major`, `panels(16, 2)` or `panels(16, 2, separate_halves)`
    fn layout(&mut self) -> Result<WeightLayout, Fault> {
        let (word, place) = self.word("a layout")?;
        match word {
            "row_major" => Ok(WeightLayout::RowMajor),
            "panels" => {
                self.symbol('(')?;
                let lanes = self.number("a number of lanes")?;
                self.symbol(',')?;
                let pair = self.number("a pair size")?;
                let separate_halves = self.accept(Token::Symbol(','))?;
                if separate_halves {
                    self.keyword("separate_halves")?;
                }
                self.symbol(')')?;
                Ok(WeightLayout::Panels { lanes, pair, separate_halves })
            }
            _ => Err((format!("expected `row_major` or `panels(…)`, found `{word}`"), place)),
        }
    }
}

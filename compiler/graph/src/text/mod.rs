//! The graph's text form: every stage and every test of a pass is written in it.
//!
//! ```text
//! graph tiny {
//!   input %token: i32[rows]
//!   weight @embedding: bf16[vocabulary=101, hidden=64] = "model.embed_tokens.weight"[101]
//!   cache #layers.0.key: key bf16[slots=1, kv_heads=2, context=32, head_dim=16]
//!   %embedding: f32[rows, hidden=64] = embed(%token, @embedding)
//!   %layers.0.rotated: f32[rows, query=64] = rotate(%layers.0.query, %position, @rope) {head_dim=16} layer 0
//!   output %logits
//! }
//! ```
//!
//! Operands stand in the order in which a kernel receives them: values (`%`), weights (`@`), caches
//! (`#`). Attributes that are `false` are left out. A comment runs from `//` to the end of its line.
//! Values are numbered in the order of their definitions, so a graph whose values are stored in that
//! order, without unused ones, comes back equal.

mod attributes;
mod caret;
mod parse;
mod parts;
mod print;
mod scan;
#[cfg(test)]
mod tests;

pub use parse::{ParseError, parse_graph};
pub use print::print_graph;

pub(crate) use caret::draw;
pub(crate) use print::{Subject, print_lines, tensor_type, weight_type};

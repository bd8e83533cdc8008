//! Graph → text.

use std::fmt::Write;

use qwen2c_request::{CacheKind, Dimension, Element, Quantization, Size, TensorType, WeightType};

use super::attributes::{Attribute, attributes};
use super::parts::print_parts;
use crate::{CacheId, Graph, Op, RopeTable, ValueId, Weight, WeightId, WeightSource};

/// What a line of the text form is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// The line `graph … {`, or `}`.
    Graph,
    /// `input`, by its index among the graph's inputs.
    Input(usize),
    /// `weight`, by its index.
    Weight(usize),
    /// `cache`, by its index.
    Cache(usize),
    /// An operation, by its index.
    Operation(usize),
    /// `output`, by its index among the graph's outputs.
    Output(usize),
}

/// The text form of `graph`.
///
/// Broken graphs are printed as well, so that the verifier's errors can be drawn on them.
pub fn print_graph(graph: &Graph) -> String {
    let mut text = String::new();
    for (_, line) in print_lines(graph) {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// The lines of the text form with what each is about.
pub(crate) fn print_lines(graph: &Graph) -> Vec<(Subject, String)> {
    let persistent = if graph.is_persistent { " persistent" } else { "" };
    let mut lines = vec![(Subject::Graph, format!("graph {}{persistent} {{", Name(&graph.name)))];
    for (index, input) in graph.inputs.iter().enumerate() {
        lines.push((Subject::Input(index), format!("  input {}", declaration(graph, *input))));
    }
    for (index, weight) in graph.weights.iter().enumerate() {
        lines.push((Subject::Weight(index), print_weight(weight)));
    }
    for (index, cache) in graph.caches.iter().enumerate() {
        let kind = match cache.ty.kind {
            CacheKind::Key => "key",
            CacheKind::Value => "value",
        };
        let ty = &cache.ty;
        let line = format!(
            "  cache #{}: {kind} {}[slots={}, kv_heads={}, context={}, head_dim={}]",
            Name(&cache.name),
            ty.element,
            ty.slots,
            ty.kv_heads,
            ty.context,
            ty.head_dim,
        );
        lines.push((Subject::Cache(index), line));
    }
    for (index, op) in graph.operations.iter().enumerate() {
        lines.push((Subject::Operation(index), print_operation(graph, op)));
    }
    for (index, output) in graph.outputs.iter().enumerate() {
        lines.push((Subject::Output(index), format!("  output {}", value_name(graph, *output))));
    }
    lines.push((Subject::Graph, "}".to_owned()));
    lines
}

fn print_weight(weight: &Weight) -> String {
    let mut line = format!("  weight @{}: {} = ", Name(&weight.name), weight_type(&weight.ty));
    match &weight.source {
        WeightSource::Tensors(parts) => line.push_str(&print_parts(parts)),
        WeightSource::RopeTable(table) => print_rope_table(&mut line, table),
        WeightSource::UnresolvedRopeTable => line.push_str("rope(unresolved)"),
    }
    if weight.source_columns != weight.ty.columns() {
        let _ = write!(line, " columns {}", weight.source_columns);
    }
    if let Some(layout) = weight.layout {
        let _ = write!(line, " layout {layout}");
    }
    line
}

fn print_rope_table(line: &mut String, table: &RopeTable) {
    let _ = write!(line, "rope(attention_factor={:?}, inverse_frequencies=[", table.attention_factor);
    for (index, frequency) in table.inverse_frequencies.iter().enumerate() {
        let _ = write!(line, "{}{frequency:?}", if index > 0 { ", " } else { "" });
    }
    line.push_str("])");
}

fn print_operation(graph: &Graph, op: &Op) -> String {
    let mut line = String::from("  ");
    for (index, output) in op.outputs.iter().enumerate() {
        let _ = write!(line, "{}{}", if index > 0 { ", " } else { "" }, declaration(graph, *output));
    }
    if !op.outputs.is_empty() {
        line.push_str(" = ");
    }
    let values = op.inputs.iter().map(|id| value_name(graph, *id));
    let weights = op.weights.iter().map(|id| weight_name(graph, *id));
    let caches = op.caches.iter().map(|id| cache_name(graph, *id));
    let operands: Vec<String> = values.chain(weights).chain(caches).collect();
    let _ = write!(line, "{}({})", op.operation.name(), operands.join(", "));

    let attributes: Vec<String> = attributes(&op.operation)
        .into_iter()
        .filter_map(|(name, attribute)| match attribute {
            Attribute::Flag(false) => None,
            Attribute::Flag(true) => Some(name.to_owned()),
            Attribute::Integer(value) => Some(format!("{name}={value}")),
            Attribute::Real(value) => Some(format!("{name}={value}")),
            Attribute::Optional(value) => value.map(|value| format!("{name}={value}")),
        })
        .collect();
    if !attributes.is_empty() {
        let _ = write!(line, " {{{}}}", attributes.join(", "));
    }
    if let Some(layer) = op.layer {
        let _ = write!(line, " layer {layer}");
    }
    line
}

fn declaration(graph: &Graph, id: ValueId) -> String {
    let ty = graph.values.get(id.0 as usize).map_or("?".to_owned(), |value| tensor_type(&value.ty));
    format!("{}: {ty}", value_name(graph, id))
}

fn value_name(graph: &Graph, id: ValueId) -> String {
    let value = graph.values.get(id.0 as usize);
    value.map_or(format!("%?{}", id.0), |value| format!("%{}", Name(&value.name)))
}

fn weight_name(graph: &Graph, id: WeightId) -> String {
    let weight = graph.weights.get(id.0 as usize);
    weight.map_or(format!("@?{}", id.0), |weight| format!("@{}", Name(&weight.name)))
}

fn cache_name(graph: &Graph, id: CacheId) -> String {
    let cache = graph.caches.get(id.0 as usize);
    cache.map_or(format!("#?{}", id.0), |cache| format!("#{}", Name(&cache.name)))
}

/// `f32[rows, hidden=896]`.
pub(crate) fn tensor_type(ty: &TensorType) -> String {
    let dimensions: Vec<String> = ty.dimensions.iter().map(dimension).collect();
    format!("{}[{}]", ty.element, dimensions.join(", "))
}

/// `bf16[vocabulary=151936, hidden=896]`.
pub(crate) fn weight_type(ty: &WeightType) -> String {
    let text = tensor_type(&TensorType { dimensions: ty.dimensions.clone(), element: ty.element });
    match ty.quantization {
        Some(Quantization { bits, group, scale, has_minimum }) => {
            let scale = if scale == Element::F16 { String::new() } else { format!(", {scale}") };
            let minimum = if has_minimum { ", minimum" } else { "" };
            format!("{text} as int{bits}({group}{scale}{minimum})")
        }
        None => text,
    }
}

fn dimension(dimension: &Dimension) -> String {
    let name = Name(&dimension.name);
    let (size, standard) = match dimension.size {
        Size::Constant(size) => return format!("{name}={size}"),
        Size::Rows => ("rows", Dimension::rows().name),
        Size::LogitRows => ("logit_rows", Dimension::logit_rows().name),
    };
    if dimension.name == standard { size.to_owned() } else { format!("{name}={size}") }
}

/// A name, quoted where it holds more than letters, digits and `_ . - +`.
struct Name<'a>(&'a str);

impl std::fmt::Display for Name<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.0.is_empty() && self.0.chars().all(super::scan::in_word) {
            return formatter.write_str(self.0);
        }
        let mut quoted = String::new();
        print_quoted(&mut quoted, self.0);
        formatter.write_str(&quoted)
    }
}

/// Appends `text` between quotation marks; control characters, `"` and `\` are escaped.
pub(super) fn print_quoted(line: &mut String, text: &str) {
    line.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => {
                line.push('\\');
                line.push(character);
            }
            _ if character.is_control() => {
                let _ = write!(line, "\\u{{{:x}}}", u32::from(character));
            }
            _ => line.push(character),
        }
    }
    line.push('"');
}

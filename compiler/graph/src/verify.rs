//! What must hold of every graph, checked between any two passes.
//!
//! The rules of a single operation stand in `signature`, as a table; the rules here are about names,
//! order and storage. The first rule that is broken is reported, drawn on the line of the text form
//! that breaks it.

mod signature;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;

use qwen2c_request::{Element, GROUP_SIZES, Quantization, Size, TensorType, WeightLayout};

use crate::text::{Subject, draw, print_lines};
use crate::{Graph, Op, Weight, WeightSource};

/// Largest number of elements of any operand: far above every model, far below an overflow.
const MOST_ELEMENTS: u64 = 1 << 48;

/// A rule that a graph breaks; displayed with the line of the text form under carets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyError {
    /// What was found and what was needed: lower case, no full stop.
    pub message: String,
    /// Line of [`crate::print_graph`]'s text, from 1 on.
    pub line: usize,
    /// The line's text.
    pub line_text: String,
}

impl fmt::Display for VerifyError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.line_text.trim_start();
        let indent = self.line_text.len() - text.len();
        let drawn = draw(&self.line_text, indent + 1, text.chars().count());
        write!(formatter, "line {}: {}\n{drawn}", self.line, self.message)
    }
}

impl std::error::Error for VerifyError {}

/// What is wrong, and which line says it.
type Fault = (Subject, String);

/// Checks a graph.
///
/// # Errors
///
/// The first rule that does not hold.
pub fn verify(graph: &Graph) -> Result<(), VerifyError> {
    check(graph).map_err(|(subject, message)| {
        let lines = print_lines(graph);
        let line = lines.iter().position(|(about, _)| *about == subject).unwrap_or_default();
        VerifyError { message, line: line + 1, line_text: lines[line].1.clone() }
    })
}

fn check(graph: &Graph) -> Result<(), Fault> {
    weights_are_sound(graph)?;
    caches_are_sound(graph)?;
    values_are_defined_once_before_use(graph)?;
    names_are_unique(graph)?;
    caches_are_written_before_they_are_read(graph)?;
    let mut activation = None;
    for (index, op) in graph.operations.iter().enumerate() {
        let subject = Subject::Operation(index);
        let found = signature::check(graph, op).map_err(|message| (subject, message))?;
        // One activation type for the whole graph: what is not f32 is the same everywhere.
        if let Some(element) = found.filter(|element| *element != Element::F32)
            && *activation.get_or_insert(element) != element
        {
            let message = "activations are of one type in the whole graph";
            return Err((subject, format!("{message}, found `{element}` after another")));
        }
    }
    Ok(())
}

/// Whether every extent is at least 1 and the product within [`MOST_ELEMENTS`].
fn is_bounded(extents: impl IntoIterator<Item = u64>) -> bool {
    let product = extents.into_iter().try_fold(1_u64, |product, extent| product.checked_mul(extent));
    product.is_some_and(|product| (1..=MOST_ELEMENTS).contains(&product))
}

fn extents(ty: &TensorType) -> impl Iterator<Item = u64> {
    ty.dimensions.iter().filter_map(|dimension| dimension.size.constant())
}

/// Rows are the outermost dimension of a value and stand nowhere else.
fn value_is_sound(ty: &TensorType) -> Result<(), String> {
    let varies = |size: Size| size.constant().is_none();
    match ty.dimensions.split_first() {
        Some((first, rest)) => {
            if !varies(first.size) || rest.iter().any(|dimension| varies(dimension.size)) {
                // The tile lists of grouped experts are the only value without rows.
                let is_table = ty.element == Element::I32 && rest.is_empty() && !varies(first.size);
                if !is_table {
                    return Err("`rows` or `logit_rows` is the first dimension and no other".to_owned());
                }
            }
        }
        None => return Err("a value has at least one dimension".to_owned()),
    }
    if ty.element.integer_group().is_some() && ty.dimensions.len() < 2 {
        return Err("integers with scales have a dimension behind the rows".to_owned());
    }
    if !is_bounded(extents(ty)) {
        return Err("every extent is 1 or more, and their product below 2^48".to_owned());
    }
    Ok(())
}

fn weights_are_sound(graph: &Graph) -> Result<(), Fault> {
    for (index, weight) in graph.weights.iter().enumerate() {
        weight_is_sound(weight).map_err(|message| (Subject::Weight(index), message))?;
    }
    Ok(())
}

fn weight_is_sound(weight: &Weight) -> Result<(), String> {
    let ty = &weight.ty;
    if ty.dimensions.is_empty() || ty.dimensions.iter().any(|dimension| dimension.size.constant().is_none()) {
        return Err("a weight has dimensions, all of them numbers".to_owned());
    }
    if !is_bounded(ty.extents()) {
        return Err("every extent is 1 or more, and their product below 2^48".to_owned());
    }
    if !ty.element.is_float() {
        return Err("a weight is of a floating-point type".to_owned());
    }
    if let Some(Quantization { bits, group, scale, .. }) = ty.quantization
        && (ty.dimensions.len() < 2
            || ![4, 8].contains(&bits)
            || !GROUP_SIZES.contains(&group)
            || !matches!(scale, Element::F16 | Element::F32))
    {
        return Err("matrices alone are quantized, to 4 or 8 bits in groups of 16, 32, 64 or 128 with \
                    scales in f16 or f32"
            .to_owned());
    }
    let columns = ty.columns();
    if weight.source_columns == 0 || weight.source_columns > columns {
        return Err(format!("takes {} columns, needs 1 to {columns}", weight.source_columns));
    }
    if let Some(WeightLayout::Panels { lanes, pair, .. }) = weight.layout
        && (lanes == 0 || pair == 0)
    {
        return Err(format!("panels have 1 or more lanes and pairs, found {lanes} and {pair}"));
    }
    match &weight.source {
        WeightSource::Tensors(parts) => {
            if let Some(part) = parts.iter().find(|part| part.rows > part.padded_rows) {
                let (rows, padded) = (part.rows, part.padded_rows);
                return Err(format!("`{}` has {rows} rows, padded to only {padded}", part.tensor));
            }
            // A vector's parts lie along its only dimension.
            let needed = if ty.dimensions.len() == 1 { columns } else { ty.rows() };
            let found = parts.iter().try_fold(0_u64, |sum, part| sum.checked_add(part.padded_rows));
            if found != Some(needed) {
                let found = found.map_or("more".to_owned(), |rows| rows.to_string());
                return Err(format!("its tensors bring {found} rows, its type has {needed}"));
            }
        }
        WeightSource::RopeTable(_) | WeightSource::UnresolvedRopeTable => {
            if ty.dimensions.len() != 2 || ty.element != Element::F32 || !columns.is_multiple_of(2) {
                return Err("a rotary table is `f32[context, head_dim]` with an even head_dim".to_owned());
            }
        }
    }
    if let WeightSource::RopeTable(table) = &weight.source {
        let frequencies = table.inverse_frequencies.len() as u64;
        if frequencies * 2 != columns {
            return Err(format!(
                "a head of {columns} elements needs {} frequencies, found {frequencies}",
                columns / 2
            ));
        }
        let numbers = table.inverse_frequencies.iter().chain([&table.attention_factor]);
        if numbers.into_iter().any(|number| !number.is_finite()) {
            return Err("every number of a rotary table is finite".to_owned());
        }
    }
    Ok(())
}

fn caches_are_sound(graph: &Graph) -> Result<(), Fault> {
    for (index, cache) in graph.caches.iter().enumerate() {
        let ty = &cache.ty;
        let fault = |message: &str| Err((Subject::Cache(index), message.to_owned()));
        if !is_bounded([ty.slots, ty.kv_heads, ty.context, ty.head_dim]) {
            return fault("every extent is 1 or more, and their product below 2^48");
        }
        if !ty.element.is_float() {
            return fault("a cache is of a floating-point type");
        }
    }
    Ok(())
}

fn values_are_defined_once_before_use(graph: &Graph) -> Result<(), Fault> {
    let mut defined = vec![false; graph.values.len()];
    let mut define = |id: crate::ValueId| {
        let value = graph.values.get(id.0 as usize).ok_or_else(|| format!("{id} does not exist"))?;
        if std::mem::replace(&mut defined[id.0 as usize], true) {
            return Err(format!("value `%{}` is defined twice", value.name));
        }
        value_is_sound(&value.ty).map_err(|message| format!("value `%{}`: {message}", value.name))
    };
    for (index, input) in graph.inputs.iter().enumerate() {
        define(*input).map_err(|message| (Subject::Input(index), message))?;
    }
    // Definitions are numbered by line, so that a use can be compared with them.
    let mut line_of = vec![usize::MAX; graph.values.len()];
    for input in &graph.inputs {
        line_of[input.0 as usize] = 0;
    }
    for (index, op) in graph.operations.iter().enumerate() {
        for output in &op.outputs {
            define(*output).map_err(|message| (Subject::Operation(index), message))?;
            line_of[output.0 as usize] = index + 1;
        }
    }
    let is_defined_before = |id: crate::ValueId, line: usize| {
        let value = graph.values.get(id.0 as usize).ok_or_else(|| format!("{id} does not exist"))?;
        match line_of[id.0 as usize] {
            usize::MAX => Err(format!("value `%{}` is never defined", value.name)),
            defined if defined >= line => {
                Err(format!("value `%{}` is used before its definition", value.name))
            }
            _ => Ok(()),
        }
    };
    for (index, op) in graph.operations.iter().enumerate() {
        let subject = Subject::Operation(index);
        for input in &op.inputs {
            is_defined_before(*input, index + 1).map_err(|message| (subject, message))?;
        }
        operands_exist(graph, op).map_err(|message| (subject, message))?;
    }
    for (index, output) in graph.outputs.iter().enumerate() {
        is_defined_before(*output, usize::MAX).map_err(|message| (Subject::Output(index), message))?;
    }
    Ok(())
}

fn operands_exist(graph: &Graph, op: &Op) -> Result<(), String> {
    if let Some(id) = op.weights.iter().find(|id| id.0 as usize >= graph.weights.len()) {
        return Err(format!("weight {} does not exist", id.0));
    }
    match op.caches.iter().find(|id| id.0 as usize >= graph.caches.len()) {
        Some(id) => Err(format!("cache {} does not exist", id.0)),
        None => Ok(()),
    }
}

fn names_are_unique(graph: &Graph) -> Result<(), Fault> {
    let mut names = BTreeSet::new();
    let mut new = |subject, sigil: char, name: &str| {
        if names.insert((sigil, name.to_owned())) {
            return Ok(());
        }
        Err((subject, format!("the name `{sigil}{name}` is taken")))
    };
    // Values that nothing defines have no line, and no part in the graph.
    for (index, id) in graph.inputs.iter().enumerate() {
        new(Subject::Input(index), '%', &graph.value(*id).name)?;
    }
    for (index, op) in graph.operations.iter().enumerate() {
        for id in &op.outputs {
            new(Subject::Operation(index), '%', &graph.value(*id).name)?;
        }
    }
    for (index, weight) in graph.weights.iter().enumerate() {
        new(Subject::Weight(index), '@', &weight.name)?;
    }
    for (index, cache) in graph.caches.iter().enumerate() {
        new(Subject::Cache(index), '#', &cache.name)?;
    }
    Ok(())
}

/// A cache is written by one operation, and read after it by operations of the same layer.
fn caches_are_written_before_they_are_read(graph: &Graph) -> Result<(), Fault> {
    let mut written_by = vec![None; graph.caches.len()];
    for (index, op) in graph.operations.iter().enumerate() {
        let fault = |message: String| Err((Subject::Operation(index), message));
        for id in &op.caches {
            let name = &graph.cache(*id).name;
            let writer: &mut Option<&Op> = &mut written_by[id.0 as usize];
            match writer {
                Some(_) if op.operation.writes_cache() => {
                    return fault(format!("cache `#{name}` is written twice"));
                }
                Some(writer) if writer.layer != op.layer => {
                    return fault(format!("cache `#{name}` is written in another layer"));
                }
                Some(_) => {}
                None if op.operation.writes_cache() => *writer = Some(op),
                None => return fault(format!("cache `#{name}` is read before it is written")),
            }
        }
    }
    Ok(())
}

//! What the passes share: who writes and reads a value, and the replacement of operations.

use crate::{Graph, Op, Value, ValueId, WeightId};

/// Who writes and reads each value, as indices of operations.
pub(super) struct Uses {
    writers: Vec<Option<usize>>,
    readers: Vec<Vec<usize>>,
    is_output: Vec<bool>,
}

impl Uses {
    /// Looks through the graph once.
    pub(super) fn new(graph: &Graph) -> Self {
        let count = graph.values.len();
        let mut uses = Self {
            writers: vec![None; count],
            readers: vec![Vec::new(); count],
            is_output: vec![false; count],
        };
        for (index, op) in graph.operations.iter().enumerate() {
            for input in &op.inputs {
                uses.readers[input.0 as usize].push(index);
            }
            for output in &op.outputs {
                uses.writers[output.0 as usize] = Some(index);
            }
        }
        for output in &graph.outputs {
            uses.is_output[output.0 as usize] = true;
        }
        uses
    }

    /// The operation that writes the value; none for an input of the graph.
    pub(super) fn writer(&self, value: ValueId) -> Option<usize> {
        self.writers[value.0 as usize]
    }

    /// The operations that read the value, one for each operand.
    pub(super) fn readers(&self, value: ValueId) -> &[usize] {
        &self.readers[value.0 as usize]
    }

    /// The operation that reads the value, if it is the only one and the value does not leave the graph.
    pub(super) fn only_reader(&self, value: ValueId) -> Option<usize> {
        match self.readers(value) {
            [reader] if !self.is_output[value.0 as usize] => Some(*reader),
            _ => None,
        }
    }

    /// The operation that writes the value, if nothing but one operand reads what it writes: it can
    /// then be drawn into that reader.
    pub(super) fn private_writer(&self, graph: &Graph, value: ValueId) -> Option<usize> {
        self.only_reader(value)?;
        self.writer(value).filter(|index| graph.operations[*index].outputs == [value])
    }
}

/// Operations to take out and to put in. Indices are those before the replacement.
pub(super) struct Replacement {
    /// Operations that go.
    pub(super) remove: Vec<usize>,
    /// Place that the new operations take: before the operation with this index.
    pub(super) at: usize,
    /// New operations.
    pub(super) insert: Vec<Op>,
}

/// Asks `find` at each operation for a replacement and applies it, until none is found any more.
/// Returns the number of replacements.
pub(super) fn rewrite_all(
    graph: &mut Graph,
    mut find: impl FnMut(&mut Graph, &Uses, usize) -> Option<Replacement>,
) -> u64 {
    let mut rewrites = 0;
    loop {
        let before = rewrites;
        let mut uses = Uses::new(graph);
        let mut index = 0;
        while index < graph.operations.len() {
            if let Some(replacement) = find(graph, &uses, index) {
                apply(graph, replacement);
                uses = Uses::new(graph);
                rewrites += 1;
            }
            index += 1;
        }
        if rewrites == before {
            return rewrites;
        }
    }
}

fn apply(graph: &mut Graph, mut replacement: Replacement) {
    let operations = std::mem::take(&mut graph.operations);
    for (index, op) in operations.into_iter().enumerate() {
        if index == replacement.at {
            graph.operations.append(&mut replacement.insert);
        }
        if !replacement.remove.contains(&index) {
            graph.operations.push(op);
        }
    }
    graph.operations.append(&mut replacement.insert);
}

/// Lets everything that reads `from` read `to`.
pub(super) fn replace_value(graph: &mut Graph, from: ValueId, to: ValueId) {
    let inputs = graph.operations.iter_mut().flat_map(|op| &mut op.inputs);
    for id in inputs.chain(&mut graph.outputs).filter(|id| **id == from) {
        *id = to;
    }
}

/// The operations that read a weight.
pub(super) fn weight_readers(graph: &Graph, weight: WeightId) -> usize {
    graph.operations.iter().flat_map(|op| &op.weights).filter(|id| **id == weight).count()
}

/// Arena bytes that a step of one row writes and reads at a full context: the sum over the operands of
/// all operations. Weights and caches are not counted, no pass changes their traffic.
pub(super) fn moved_bytes(graph: &Graph) -> u64 {
    let operands = graph.operations.iter().flat_map(|op| op.inputs.iter().chain(&op.outputs));
    operands.map(|id| graph.value(*id).ty.bytes(1, 1)).sum()
}

/// Adds a value like `like` whose last dimension is `size` wide, under a name that is not taken yet.
pub(super) fn add_widened(
    graph: &mut Graph,
    like: ValueId,
    name: &str,
    dimension: &str,
    size: u64,
) -> ValueId {
    let mut ty = graph.value(like).ty.clone();
    if let Some(last) = ty.dimensions.last_mut() {
        *last = qwen2c_request::Dimension::constant(dimension, size);
    }
    let name = free_name(name, |name| graph.values.iter().any(|value: &Value| value.name == name));
    graph.add_value(name, ty)
}

/// `name`, with a number behind it where it is taken.
pub(super) fn free_name(name: &str, is_taken: impl Fn(&str) -> bool) -> String {
    let numbered = (2..).map(|number: u64| format!("{name}.{number}"));
    std::iter::once(name.to_owned()).chain(numbered).find(|name| !is_taken(name)).unwrap_or_default()
}

/// A name for what several things become together: what their names begin and end with, cut at dots,
/// around `middle`. `layers.0.q.weight` and `layers.0.k.weight` become `layers.0.qk.weight`.
pub(super) fn joint_name(names: &[&str], middle: &str) -> String {
    let first: Vec<&str> = names.first().map(|name| name.split('.').collect()).unwrap_or_default();
    let parts: Vec<Vec<&str>> = names.iter().map(|name| name.split('.').collect()).collect();
    let shortest = parts.iter().map(Vec::len).min().unwrap_or(0);
    // One part at least differs and gives way to `middle`.
    let most = shortest.saturating_sub(1);
    let prefix = (0..most).take_while(|index| parts.iter().all(|name| name[*index] == first[*index])).count();
    let suffix = (1..=most - prefix)
        .take_while(|back| parts.iter().all(|name| name[name.len() - back] == first[first.len() - back]))
        .count();
    let mut joint: Vec<&str> = first[..prefix].to_vec();
    joint.push(middle);
    joint.extend(&first[first.len() - suffix..]);
    joint.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joint_names_keep_what_is_equal() {
        assert_eq!(joint_name(&["layers.0.q.weight", "layers.0.k.weight"], "qk"), "layers.0.qk.weight");
        assert_eq!(joint_name(&["layers.0.gate", "layers.0.up"], "gate_up"), "layers.0.gate_up");
        assert_eq!(joint_name(&["q", "k"], "qk"), "qk");
        assert_eq!(joint_name(&["a.weight", "a.weight"], "both"), "a.both");
    }

    #[test]
    fn a_taken_name_gets_a_number() {
        assert_eq!(free_name("qkv", |_| false), "qkv");
        assert_eq!(free_name("qkv", |name| name == "qkv"), "qkv.2");
    }
}

//! Rounds activations to integers in front of products with quantized weights.
//!
//! # What it does
//!
//! Inserts one `quantize_rows` for each value, group size and width that a product with a quantized weight
//! reads, and lets the products read its result. Integers have 8 bits, or 16 in front of the output head and
//! of the projections to queries, keys and values, where their weights have 8 bits.
//!
//! # Why
//!
//! Processors multiply four pairs of bytes where they multiply one pair of floats. Rounding is an
//! operation of the graph, so that decode and prompt, the interpreter and every target round alike.
//!
//! Of what int8 costs in perplexity, nearly all comes from activations of 8 bits, and about half of that from
//! these two products. Their share of a prompt's operations is small, since the head sees one row of a
//! prompt, and decode waits for memory: integers of two bytes cost little there, and would make a prompt's
//! products take 1.7 times as long everywhere else. Rounding of 4-bit weights is so much coarser that it hides that of
//! activations.
//!
//! # Before
//!
//! ```text
//! %y: f32[rows, n=16] = matmul(%x, @weight)
//! ```
//!
//! # After
//!
//! ```text
//! %x.quantized: i8.32[rows, k=64] = quantize_rows(%x)
//! %y: f32[rows, n=16] = matmul(%x.quantized, @weight)
//! ```
//!
//! # When it does not apply
//!
//! Where activations are f32: whoever asks for them wants no rounding. On targets that do not multiply
//! integers.

use std::collections::{BTreeMap, BTreeSet};

use qwen2c_request::{Element, Operation};

use crate::passes::PassContext;
use crate::passes::rewrite::free_name;
use crate::{Graph, Op, ValueId};

/// Quantizes the inputs of all products with quantized weights.
pub(super) fn run(graph: &mut Graph, context: &PassContext<'_>) -> u64 {
    if !context.target.multiplies_integers {
        return 0;
    }
    let mut rewrites = 0;
    let mut quantized: BTreeMap<(ValueId, Element), ValueId> = BTreeMap::new();
    let fine = values_to_compute_finely(graph);
    for mut op in std::mem::take(&mut graph.operations) {
        if let Some((x, element)) = input_to_quantize(graph, &op, &fine) {
            let integers = *quantized.entry((x, element)).or_insert_with(|| {
                rewrites += 1;
                let rounding = insert_rounding(graph, x, element, op.layer);
                graph.operations.push(rounding);
                graph.operations[graph.operations.len() - 1].outputs[0]
            });
            op.inputs[0] = integers;
        }
        graph.operations.push(op);
    }
    rewrites
}

fn is_product(op: &Op) -> bool {
    matches!(op.operation, Operation::Matmul { .. } | Operation::ExpertMatmul { .. })
}

/// Values that leave the graph or reach an attention without another product: logits, queries, keys and
/// values, fused or not.
fn values_to_compute_finely(graph: &Graph) -> BTreeSet<ValueId> {
    let mut fine: BTreeSet<ValueId> = graph.outputs.iter().copied().collect();
    for op in graph.operations.iter().rev().filter(|op| !is_product(op)) {
        let is_attention = !op.caches.is_empty();
        if is_attention || op.outputs.iter().any(|output| fine.contains(output)) {
            fine.extend(&op.inputs);
        }
    }
    fine
}

/// The first input of a product with a quantized weight, and the integers it becomes.
fn input_to_quantize(graph: &Graph, op: &Op, fine: &BTreeSet<ValueId>) -> Option<(ValueId, Element)> {
    if !is_product(op) {
        return None;
    }
    let x = *op.inputs.first()?;
    let quantization = graph.weight(*op.weights.first()?).ty.quantization?;
    let is_rounded_anyway = matches!(graph.value(x).ty.element, Element::Bf16 | Element::F16);
    let group = quantization.group;
    let is_fine = quantization.bits == 8 && op.outputs.iter().any(|output| fine.contains(output));
    let element = if is_fine { Element::I16 { group } } else { Element::I8 { group } };
    is_rounded_anyway.then_some((x, element))
}

fn insert_rounding(graph: &mut Graph, x: ValueId, element: Element, layer: Option<u64>) -> Op {
    let mut ty = graph.value(x).ty.clone();
    ty.element = element;
    let wanted = format!("{}.quantized", graph.value(x).name);
    let name = free_name(&wanted, |name| graph.values.iter().any(|value| value.name == name));
    let integers = graph.add_value(name, ty);
    Op {
        operation: Operation::QuantizeRows,
        layer,
        inputs: vec![x],
        weights: Vec::new(),
        caches: Vec::new(),
        outputs: vec![integers],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::tests::{ATTENTION, EXPERTS, MLP, rewrite};

    /// All matrices in integers.
    fn quantized(text: &str, format: &str) -> String {
        let weights = |line: &str| line.trim_start().starts_with("weight") && line.contains(": bf16[");
        let lines = text.lines().map(|line| match (weights(line), line.split_once(" = ")) {
            (true, Some((ty, source))) => format!("{ty} as {format} = {source}\n"),
            _ => format!("{line}\n"),
        });
        lines.collect()
    }

    #[test]
    fn products_that_share_an_input_share_its_integers() {
        let (rewrites, after) = rewrite(run, &quantized(MLP, "int4(32)"), 1);
        assert_eq!(rewrites, 2);
        insta::assert_snapshot!(after);
    }

    #[test]
    fn entries_of_experts_are_quantized_one_by_one() {
        let (rewrites, after) = rewrite(run, &quantized(EXPERTS, "int4(32)"), 8);
        assert_eq!(rewrites, 2);
        assert!(after.contains("i8.32[rows, choices=2, intermediate=32] = quantize_rows"), "{after}");
    }

    #[test]
    fn queries_keys_and_values_of_bytes_get_integers_of_16_bits() {
        for (format, element) in [("int8(32)", "i16.32"), ("int4(32)", "i8.32")] {
            let (rewrites, after) = rewrite(run, &quantized(ATTENTION, format), 1);
            assert_eq!(rewrites, 1, "queries, keys and values share them");
            assert!(after.contains(&format!("{element}[rows, hidden=64] = quantize_rows(%x)")), "{after}");
            assert_eq!(after.matches("matmul(%x.quantized").count(), 3);
        }
    }

    #[test]
    fn what_leaves_the_graph_gets_integers_of_16_bits() {
        let (rewrites, after) = rewrite(run, &quantized(MLP, "int8(32)"), 1);
        assert_eq!(rewrites, 2);
        assert!(after.contains("i8.32[rows, hidden=64] = quantize_rows(%x)"), "{after}");
        assert!(after.contains("i16.32[rows, intermediate=32] = quantize_rows(%product)"), "{after}");
    }

    #[test]
    fn plain_weights_and_f32_activations_stay() {
        assert_eq!(rewrite(run, MLP, 1), (0, MLP.to_owned()));
        let exact = quantized(MLP, "int4(32)").replace("bf16[", "f32[");
        assert_eq!(rewrite(run, &exact, 1), (0, exact));
    }
}

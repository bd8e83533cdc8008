//! Rounds activations to 8-bit integers in front of products with quantized weights.
//!
//! # What it does
//!
//! Inserts one `quantize_rows` for each value and group size that a product with a quantized weight reads,
//! and lets the products read its result.
//!
//! # Why
//!
//! Processors multiply four pairs of bytes where they multiply one pair of floats. Rounding is an
//! operation of the graph, so that decode and prompt, the interpreter and every target round alike.
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

use std::collections::BTreeMap;

use qwen2c_request::{Element, Operation};

use crate::passes::PassContext;
use crate::passes::rewrite::free_name;
use crate::{Graph, Op, ValueId};

/// Quantizes the inputs of all products with quantized weights.
pub(super) fn run(graph: &mut Graph, context: &PassContext<'_>) -> u64 {
    if !context.multiplies_integers {
        return 0;
    }
    let mut rewrites = 0;
    let mut quantized: BTreeMap<(ValueId, u32), ValueId> = BTreeMap::new();
    for mut op in std::mem::take(&mut graph.operations) {
        if let Some((x, group)) = input_to_quantize(graph, &op) {
            let integers = *quantized.entry((x, group)).or_insert_with(|| {
                rewrites += 1;
                let rounding = insert_rounding(graph, x, group, op.layer);
                graph.operations.push(rounding);
                graph.operations[graph.operations.len() - 1].outputs[0]
            });
            op.inputs[0] = integers;
        }
        graph.operations.push(op);
    }
    rewrites
}

/// The first input of a product with a quantized weight, and the weight's group size.
fn input_to_quantize(graph: &Graph, op: &Op) -> Option<(ValueId, u32)> {
    if !matches!(op.operation, Operation::Matmul { .. } | Operation::ExpertMatmul { .. }) {
        return None;
    }
    let x = *op.inputs.first()?;
    let quantization = graph.weight(*op.weights.first()?).ty.quantization?;
    let is_rounded_anyway = matches!(graph.value(x).ty.element, Element::Bf16 | Element::F16);
    is_rounded_anyway.then_some((x, quantization.group))
}

fn insert_rounding(graph: &mut Graph, x: ValueId, group: u32, layer: Option<u64>) -> Op {
    let mut ty = graph.value(x).ty.clone();
    ty.element = Element::I8 { group };
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
    use crate::passes::tests::{EXPERTS, MLP, rewrite};

    /// All weights in integers.
    fn quantized(text: &str) -> String {
        let weights = |line: &str| line.trim_start().starts_with("weight");
        let lines = text.lines().map(|line| match (weights(line), line.split_once(" = ")) {
            (true, Some((ty, source))) => format!("{ty} as int4(32) = {source}\n"),
            _ => format!("{line}\n"),
        });
        lines.collect()
    }

    #[test]
    fn products_that_share_an_input_share_its_integers() {
        let (rewrites, after) = rewrite(run, &quantized(MLP), 1);
        assert_eq!(rewrites, 2);
        insta::assert_snapshot!(after);
    }

    #[test]
    fn entries_of_experts_are_quantized_one_by_one() {
        let (rewrites, after) = rewrite(run, &quantized(EXPERTS), 8);
        assert_eq!(rewrites, 2);
        assert!(after.contains("i8.32[rows, choices=2, intermediate=32] = quantize_rows"), "{after}");
    }

    #[test]
    fn plain_weights_and_f32_activations_stay() {
        assert_eq!(rewrite(run, MLP, 1), (0, MLP.to_owned()));
        let exact = quantized(MLP).replace("bf16[", "f32[");
        assert_eq!(rewrite(run, &exact, 1), (0, exact));
    }
}

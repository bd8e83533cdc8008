//! Moves constant factors to where they cost nothing.
//!
//! # What it does
//!
//! Joins two factors in a row, moves a factor of queries behind their rotation (which is linear) and
//! into the scale of the attention scores, and drops factors of one.
//!
//! # Why
//!
//! Attention multiplies its scores by a constant anyway.
//!
//! # Before
//!
//! ```text
//! %scaled: f32[rows, query=64] = scale(%q) {factor=0.25}
//! %scores: f32[rows, heads=4, context=64] = attention_scores(%scaled, %position, %slot, #key) {heads=4, scale=1.0}
//! ```
//!
//! # After
//!
//! ```text
//! %scores: f32[rows, heads=4, context=64] = attention_scores(%q, %position, %slot, #key) {heads=4, scale=0.25}
//! ```
//!
//! # When it does not apply
//!
//! Where something else reads the scaled value. Results differ in the last place where the factor is no
//! power of two.

use qwen2c_request::{Operation, Real};

use crate::passes::PassContext;
use crate::passes::rewrite::{Replacement, Uses, replace_value, rewrite_all};
use crate::{Graph, Op};

/// Folds all constants.
pub(super) fn run(graph: &mut Graph, _context: &PassContext<'_>) -> u64 {
    rewrite_all(graph, fold)
}

fn fold(graph: &mut Graph, uses: &Uses, index: usize) -> Option<Replacement> {
    let scale = &graph.operations[index];
    let Operation::Scale { factor } = scale.operation else { return None };
    let (from, to) = (*scale.outputs.first()?, *scale.inputs.first()?);
    if factor.0 == 1.0 && !graph.outputs.contains(&from) {
        replace_value(graph, from, to);
        return Some(Replacement { remove: vec![index], at: index, insert: Vec::new() });
    }
    let reader = uses.only_reader(from)?;
    let mut op = graph.operations[reader].clone();
    if op.inputs.first() != Some(&from) {
        return None;
    }
    op.inputs[0] = to;
    let insert = match &mut op.operation {
        Operation::Scale { factor: own }
        | Operation::AttentionScores { scale: own, .. }
        | Operation::Attention { scale: own, .. } => {
            *own = Real(own.0 * factor.0);
            vec![op]
        }
        Operation::Rotate { .. } => {
            // The scaled value now is the unscaled one rotated.
            let rotated = std::mem::replace(&mut op.outputs, vec![from]);
            let scale = Op { inputs: vec![from], outputs: rotated, ..scale.clone() };
            vec![op, scale]
        }
        _ => return None,
    };
    Some(Replacement { remove: vec![index, reader], at: reader, insert })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::tests::rewrite;

    const SCALED: &str = "graph scores {
  input %position: i32[rows]
  input %slot: i32[rows]
  input %k: f32[rows, kv=8]
  input %q: f32[rows, query=16]
  weight @rope: f32[context=64, head_dim=4] = rope(unresolved)
  cache #key: key f32[slots=1, kv_heads=2, context=64, head_dim=4]
  write_cache(%k, %position, %slot, #key) layer 0
  %one: f32[rows, query=16] = scale(%q) {factor=1.0} layer 0
  %half: f32[rows, query=16] = scale(%one) {factor=0.5} layer 0
  %rotated: f32[rows, query=16] = rotate(%half, %position, @rope) {head_dim=4} layer 0
  %quarter: f32[rows, query=16] = scale(%rotated) {factor=0.5} layer 0
  %scores: f32[rows, heads=4, context=64] = attention_scores(%quarter, %position, %slot, #key) {heads=4, scale=0.5} layer 0
  output %scores
}
";

    #[test]
    fn factors_end_in_the_attention_scale() {
        let (rewrites, after) = rewrite(run, SCALED, 1);
        assert_eq!(rewrites, 4);
        insta::assert_snapshot!(after);
    }

    #[test]
    fn a_scaled_value_with_another_reader_stays() {
        let shared = SCALED
            .replace("scale(%q) {factor=1.0}", "scale(%q) {factor=2.0}")
            .replace("  output", "  output %one\n  output %half\n  output %quarter\n  output");
        assert_eq!(rewrite(run, &shared, 1), (0, shared));
    }
}

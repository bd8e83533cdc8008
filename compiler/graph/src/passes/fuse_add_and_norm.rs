//! Normalizes a sum in the operation that adds it.
//!
//! # What it does
//!
//! Turns a sum of the residual stream and the normalization of that sum into one operation that
//! returns both. It serves the sums that `fuse_residual_into_projection` left over.
//!
//! # Why
//!
//! The sum is at hand when its mean square is needed: it is not read again.
//!
//! # Before
//!
//! ```text
//! %sum: f32[rows, hidden=64] = add(%h, %y)
//! %normalized: bf16[rows, hidden=64] = rms_norm(%sum, @norm) {epsilon=1e-6}
//! ```
//!
//! # After
//!
//! ```text
//! %sum: f32[rows, hidden=64], %normalized: bf16[rows, hidden=64] = add_and_norm(%h, %y, @norm) {epsilon=1e-6}
//! ```
//!
//! # When it does not apply
//!
//! Where no normalization reads the sum: before the head, rows are gathered in between.

use qwen2c_request::Operation;

use crate::passes::PassContext;
use crate::passes::rewrite::{Replacement, Uses, rewrite_all};
use crate::{Graph, Op};

/// Fuses all sums that are normalized.
pub(super) fn run(graph: &mut Graph, _context: &PassContext<'_>) -> u64 {
    rewrite_all(graph, |graph, uses, index| find(graph, uses, index))
}

fn find(graph: &Graph, uses: &Uses, index: usize) -> Option<Replacement> {
    let add = &graph.operations[index];
    if add.operation != Operation::Add {
        return None;
    }
    let sum = *add.outputs.first()?;
    let (norm, epsilon) =
        uses.readers(sum).iter().find_map(|reader| match graph.operations[*reader].operation {
            Operation::RmsNorm { epsilon } => Some((*reader, epsilon)),
            _ => None,
        })?;
    let norm_op = &graph.operations[norm];
    let fused = Op {
        operation: Operation::AddAndNorm { epsilon },
        weights: norm_op.weights.clone(),
        outputs: vec![sum, *norm_op.outputs.first()?],
        ..add.clone()
    };
    Some(Replacement { remove: vec![index, norm], at: index, insert: vec![fused] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::tests::rewrite;

    const SUM: &str = r#"graph norm {
  input %h: f32[rows, hidden=64]
  input %y: f32[rows, hidden=64]
  weight @norm: f32[hidden=64] = "model.norm.weight"[64]
  %sum: f32[rows, hidden=64] = add(%h, %y) layer 0
  %normalized: bf16[rows, hidden=64] = rms_norm(%sum, @norm) {epsilon=1e-6} layer 0
  output %sum
  output %normalized
}
"#;

    #[test]
    fn a_normalized_sum_becomes_one_operation() {
        let (rewrites, after) = rewrite(run, SUM, 1);
        assert_eq!(rewrites, 1);
        insta::assert_snapshot!(after);
    }

    #[test]
    fn a_normalized_input_stays() {
        let apart = SUM.replace("rms_norm(%sum,", "rms_norm(%h,");
        assert_eq!(rewrite(run, &apart, 1), (0, apart));
    }
}

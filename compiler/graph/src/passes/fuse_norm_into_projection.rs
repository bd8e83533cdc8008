//! Normalizes inside the projections behind a norm.
//!
//! # What it does
//!
//! Lets every product behind a norm take the residual stream and the norm's weight, and normalize a row
//! before it multiplies it.
//!
//! # Why
//!
//! On a device the norm of one row takes as long as starting it. Every block of a product can normalize the
//! row for itself in less time, because the row is short and in a cache.
//!
//! # Before
//!
//! ```text
//! %x: bf16[rows, hidden=64] = rms_norm(%h, @norm) {epsilon=1e-6}
//! %y: f32[rows, n=16] = matmul(%x, @y.weight)
//! ```
//!
//! # After
//!
//! ```text
//! %y: f32[rows, n=16] = matmul(%h, @y.weight, @norm) {norm=1e-6}
//! ```
//!
//! # When it does not apply
//!
//! Where a step brings several rows, and on targets that start kernels in no time. Where the row is longer
//! than what the target's products can normalize. Where something else than a projection reads the normalized
//! row: it has to be written then. Where a projection's weight has another type than the row, because the type
//! of the weight says how the row is rounded (routers, which are f32).

use qwen2c_request::Operation;

use crate::passes::PassContext;
use crate::passes::rewrite::{Replacement, Uses, rewrite_all};
use crate::{Graph, Op, ValueId};

/// Fuses all norms.
pub(super) fn run(graph: &mut Graph, context: &PassContext<'_>) -> u64 {
    if context.max_rows > 1 || !context.target.prefers_few_launches {
        return 0;
    }
    rewrite_all(graph, |graph, uses, index| find(graph, uses, index, context.target.longest_fused_norm))
}

fn find(graph: &mut Graph, uses: &Uses, index: usize, longest: u64) -> Option<Replacement> {
    let norm = graph.operations[index].clone();
    let Operation::RmsNorm { epsilon } = norm.operation else { return None };
    let ([row], [x], [weight]) = (&norm.outputs[..], &norm.inputs[..], &norm.weights[..]) else {
        return None;
    };
    if graph.value(*row).ty.columns() > longest {
        return None;
    }
    let readers = uses.readers(*row);
    let can_all = readers.iter().all(|reader| can_normalize(graph, &graph.operations[*reader], *row));
    if readers.is_empty() || graph.outputs.contains(row) || !can_all {
        return None;
    }
    for reader in readers {
        let reader = &mut graph.operations[*reader];
        if let Operation::Matmul { norm, .. } | Operation::ProjectAndWriteCache { norm, .. } =
            &mut reader.operation
        {
            *norm = Some(epsilon);
        }
        reader.inputs[0] = *x;
        reader.weights.push(*weight);
    }
    Some(Replacement { remove: vec![index], at: index, insert: Vec::new() })
}

/// Whether an operation is a product that can take the norm of `row`.
fn can_normalize(graph: &Graph, op: &Op, row: ValueId) -> bool {
    let is_product = matches!(
        op.operation,
        Operation::Matmul { norm: None, .. } | Operation::ProjectAndWriteCache { norm: None, .. }
    );
    let is_factor = op.inputs.iter().position(|input| *input == row) == Some(0)
        && op.inputs[1..].iter().all(|input| *input != row);
    is_product
        && is_factor
        && op.weights.first().is_some_and(|id| graph.weight(*id).ty.element == graph.value(row).ty.element)
}

#[cfg(test)]
mod tests {
    use qwen2c_request::TargetDescription;

    use super::*;
    use crate::passes::PassFunction;
    use crate::passes::tests::{EXPERTS, MLP, rewrite};

    fn run_for_device(graph: &mut Graph, context: &PassContext<'_>) -> u64 {
        let target = TargetDescription { prefers_few_launches: true, ..context.target.clone() };
        run(graph, &PassContext { target: &target, ..*context })
    }

    /// The graph with a norm in front of its `%x`.
    fn normalized(text: &str) -> String {
        let norm = "  weight @norm: f32[hidden=64] = \"norm.weight\"[64]\n";
        let operation = "  %x: bf16[rows, hidden=64] = rms_norm(%h, @norm) {epsilon=1e-6} layer 0\n";
        let text = text.replace("  input %x: bf16[rows, hidden=64]\n", "");
        let first = text.find("  weight").expect("weights");
        let text = format!("{}{norm}{}", &text[..first], &text[first..]);
        let first = text.find("  %gate").expect("operations");
        format!("{}{operation}{}", &text[..first], &text[first..])
    }

    #[test]
    fn projections_that_share_a_norm_take_it_each() {
        let (rewrites, after) = rewrite(run_for_device, &normalized(MLP), 1);
        assert_eq!(rewrites, 1);
        insta::assert_snapshot!(after);
    }

    #[test]
    fn several_rows_keep_their_norm() {
        assert_eq!(rewrite(run_for_device, &normalized(MLP), 8), (0, normalized(MLP)));
    }

    #[test]
    fn targets_without_launches_keep_norms() {
        assert_eq!(rewrite(run, &normalized(MLP), 1), (0, normalized(MLP)));
    }

    #[test]
    fn a_row_too_long_for_the_target_keeps_its_norm() {
        let run_with_less: PassFunction = |graph, context| {
            let target = TargetDescription { longest_fused_norm: 63, ..context.target.clone() };
            run_for_device(graph, &PassContext { target: &target, ..*context })
        };
        assert_eq!(rewrite(run_with_less, &normalized(MLP), 1), (0, normalized(MLP)));
    }

    #[test]
    fn a_norm_with_another_reader_stays() {
        let experts = normalized(EXPERTS);
        assert_eq!(rewrite(run_for_device, &experts, 1), (0, experts));
        let shared = normalized(MLP).replace("  output %down\n", "  output %down\n  output %x\n");
        assert_eq!(rewrite(run_for_device, &shared, 1), (0, shared));
    }

    #[test]
    fn a_row_that_is_rounded_otherwise_stays() {
        let router = normalized(MLP).replace("@gate.weight: bf16", "@gate.weight: f32");
        assert_eq!(rewrite(run_for_device, &router, 1), (0, router));
    }
}

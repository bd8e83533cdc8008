//! Each operation against numbers worked out by hand from its formula.

mod attention;
mod experts;
mod model;

use std::collections::BTreeMap;

use super::{InterpretError, Interpreter, Tensor};
use crate::{SourceError, TensorSource, parse_graph};

/// Tensors by name, all of their elements.
struct Tensors(BTreeMap<&'static str, Vec<f32>>);

impl TensorSource for Tensors {
    fn read_rows(
        &self,
        tensor: &str,
        columns: u64,
        first_row: u64,
        out: &mut [f32],
    ) -> Result<(), SourceError> {
        let elements = self.0.get(tensor).ok_or_else(|| format!("no tensor `{tensor}`"))?;
        let start = (first_row * columns) as usize;
        out.copy_from_slice(elements.get(start..start + out.len()).ok_or("rows beyond the tensor")?);
        Ok(())
    }
}

fn floats(elements: &[f32]) -> Tensor {
    Tensor::Floats(elements.to_vec())
}

fn integers(elements: &[i32]) -> Tensor {
    Tensor::Integers(elements.to_vec())
}

/// Runs `body`, the lines of a graph, and compares its outputs with `expected`.
fn check(body: &str, tensors: &[(&'static str, &[f32])], inputs: &[(&str, Tensor)], expected: &[Tensor]) {
    let found = run(body, tensors, inputs).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(found.len(), expected.len(), "outputs of {body}");
    for (found, expected) in found.iter().zip(expected) {
        match (found, expected) {
            (Tensor::Floats(found), Tensor::Floats(expected)) => {
                let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * b.abs().max(1.0);
                let all = found.len() == expected.len() && found.iter().zip(expected).all(close);
                assert!(all, "{body}\nfound    {found:?}\nexpected {expected:?}");
            }
            _ => assert_eq!(found, expected, "{body}"),
        }
    }
}

fn run(
    body: &str,
    tensors: &[(&'static str, &[f32])],
    inputs: &[(&str, Tensor)],
) -> Result<Vec<Tensor>, InterpretError> {
    let graph = parse_graph(&format!("graph test {{\n{body}\n}}")).unwrap_or_else(|error| panic!("{error}"));
    let tensors = Tensors(tensors.iter().map(|(name, elements)| (*name, elements.to_vec())).collect());
    Interpreter::new(&graph, &tensors)?.evaluate(inputs)
}

#[test]
fn embed_takes_rows_of_the_weight() {
    check(
        "input %token: i32[rows]
         weight @w: bf16[vocabulary=3, hidden=2] = \"w\"[3]
         %y: f32[rows, hidden=2] = embed(%token, @w)
         output %y",
        // 1.003 is rounded to the weight's type: bf16 has 1 and 1.0078125.
        &[("w", &[1.0, 2.0, 3.0, 4.0, 5.0, 1.003])],
        &[("token", integers(&[2, 0]))],
        &[floats(&[5.0, 1.0, 1.0, 2.0])],
    );
}

#[test]
fn gather_rows_takes_the_rows_that_are_named() {
    check(
        "input %x: f32[rows, n=2]
         input %logit_rows: i32[logit_rows]
         %y: f32[logit_rows, n=2] = gather_rows(%x, %logit_rows)
         output %y",
        &[],
        &[("x", floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])), ("logit_rows", integers(&[2, 0]))],
        &[floats(&[5.0, 6.0, 1.0, 2.0])],
    );
}

#[test]
fn norms_divide_by_the_root_of_the_mean_square() {
    // mean(3², 4²) = 12.5; with epsilon 3.5 the root is 4.
    check(
        "input %x: f32[rows, n=2]
         weight @w: f32[n=2] = \"w\"[2]
         %y: f32[rows, n=2] = rms_norm(%x, @w) {epsilon=3.5}
         output %y",
        &[("w", &[1.0, 2.0])],
        &[("x", floats(&[3.0, 4.0]))],
        &[floats(&[0.75, 2.0])],
    );
    check(
        "input %a: f32[rows, n=2]
         input %b: f32[rows, n=2]
         weight @w: f32[n=2] = \"w\"[2]
         %sum: f32[rows, n=2], %y: bf16[rows, n=2] = add_and_norm(%a, %b, @w) {epsilon=3.5}
         output %sum
         output %y",
        &[("w", &[1.0, 2.0])],
        &[("a", floats(&[1.0, 5.0])), ("b", floats(&[2.0, -1.0]))],
        &[floats(&[3.0, 4.0]), floats(&[0.75, 2.0])],
    );
}

#[test]
fn results_are_rounded_to_their_type() {
    check(
        "input %a: f32[rows, n=1]
         input %b: f32[rows, n=1]
         %y: bf16[rows, n=1] = multiply(%a, %b)
         output %y",
        &[],
        &[("a", floats(&[1.003])), ("b", floats(&[3.0]))],
        &[floats(&[3.015_625])],
    );
}

#[test]
fn matmul_adds_bias_and_residual() {
    let head = "input %x: f32[rows, k=3]
        input %residual: f32[rows, n=2]
        weight @w: f32[n=2, k=3] = \"w\"[2]
        weight @b: f32[n=2] = \"b\"[2]";
    let tensors: [(&str, &[f32]); 2] = [("w", &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), ("b", &[100.0, 200.0])];
    let inputs =
        [("x", floats(&[1.0, 0.0, -1.0, 0.5, 0.5, 0.5])), ("residual", floats(&[1.0, 2.0, 3.0, 4.0]))];
    check(
        &format!("{head}\n%y: f32[rows, n=2] = matmul(%x, @w)\noutput %y"),
        &tensors,
        &inputs,
        &[floats(&[-2.0, -2.0, 3.0, 7.5])],
    );
    let fused = "%y: f32[rows, n=2] = matmul(%x, %residual, @w, @b) {bias, residual}";
    check(&format!("{head}\n{fused}\noutput %y"), &tensors, &inputs, &[floats(&[99.0, 200.0, 106.0, 211.5])]);
    check(
        "input %x: f32[rows, n=2]
         weight @b: f32[n=2] = \"b\"[2]
         %y: f32[rows, n=2] = add_bias(%x, @b)
         output %y",
        &[("b", &[0.5, -0.5])],
        &[("x", floats(&[1.0, 2.0, 3.0, 4.0]))],
        &[floats(&[1.5, 1.5, 3.5, 3.5])],
    );
}

#[test]
fn matmul_combines_gate_and_up() {
    // silu(1) = 0.7310586, silu(−2) = −0.23840584; gates 1 and −2, ups 3 and 10.
    check(
        "input %x: f32[rows, k=1]
         weight @w: f32[both=4, k=1] = \"gate\"[2], \"up\"[2]
         %y: f32[rows, n=2] = matmul(%x, @w) {silu_multiply}
         output %y",
        &[("gate", &[1.0, -2.0]), ("up", &[3.0, 10.0])],
        &[("x", floats(&[1.0]))],
        &[floats(&[2.193_175_7, -2.384_058_4])],
    );
}

#[test]
fn elementwise_operations_follow_their_formulas() {
    let unary =
        |operation: &str| format!("input %x: f32[rows, n=3]\n%y: f32[rows, n=3] = {operation}\noutput %y");
    let x = [("x", floats(&[0.0, 1.0, -2.0]))];
    check(&unary("silu(%x)"), &[], &x, &[floats(&[0.0, 0.731_058_6, -0.238_405_84])]);
    check(&unary("sigmoid(%x)"), &[], &x, &[floats(&[0.5, 0.731_058_6, 0.119_202_92])]);
    check(&unary("scale(%x) {factor=-0.5}"), &[], &x, &[floats(&[0.0, -0.5, 1.0])]);

    let binary = |operation: &str| {
        format!(
            "input %x: f32[rows, n=3]\ninput %z: f32[rows, n=3]\n%y: f32[rows, n=3] = {operation}\noutput %y"
        )
    };
    let xz = [("x", floats(&[0.0, 1.0, -2.0])), ("z", floats(&[5.0, 6.0, 7.0]))];
    check(&binary("add(%x, %z)"), &[], &xz, &[floats(&[5.0, 7.0, 5.0])]);
    check(&binary("multiply(%x, %z)"), &[], &xz, &[floats(&[0.0, 6.0, -14.0])]);
    check(&binary("silu_multiply(%x, %z)"), &[], &xz, &[floats(&[0.0, 4.386_351_6, -1.668_840_9])]);
    check(
        "input %x: f32[rows, n=2]
         input %factor: f32[rows, one=1]
         %y: f32[rows, n=2] = scale_rows(%x, %factor)
         output %y",
        &[],
        &[("x", floats(&[1.0, 2.0, 3.0, 4.0])), ("factor", floats(&[2.0, 0.5]))],
        &[floats(&[2.0, 4.0, 1.5, 2.0])],
    );
}

#[test]
fn slice_takes_part_of_the_last_dimension() {
    check(
        "input %x: f32[rows, k=2, n=3]
         %y: f32[rows, k=2, m=2] = slice(%x) {first=1}
         output %y",
        &[],
        &[("x", floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))],
        &[floats(&[2.0, 3.0, 5.0, 6.0])],
    );
}

#[test]
fn what_does_not_fit_is_said() {
    let embed = "input %token: i32[rows]
        weight @w: f32[vocabulary=2, hidden=1] = \"w\"[2]
        %y: f32[rows, hidden=1] = embed(%token, @w)
        output %y";
    let message = |tensors: &[(&'static str, &[f32])], inputs: &[(&str, Tensor)]| {
        run(embed, tensors, inputs).expect_err("must fail").to_string()
    };
    let w: &[(&'static str, &[f32])] = &[("w", &[1.0, 2.0])];
    assert_eq!(message(w, &[]), "input `token` is not given");
    assert_eq!(
        message(w, &[("token", integers(&[]))]),
        "input `token` has 0 elements, needs one or more rows of 1"
    );
    assert_eq!(message(w, &[("token", floats(&[0.0]))]), "input `token` is of another type, needs i32");
    assert_eq!(message(w, &[("token", integers(&[2]))]), "`token` holds 2, needs less than 2");
    assert_eq!(message(w, &[("token", integers(&[-1]))]), "`token` holds -1, needs less than 2");
    assert_eq!(message(&[], &[("token", integers(&[0]))]), "weight `w` cannot be read: no tensor `w`");
}

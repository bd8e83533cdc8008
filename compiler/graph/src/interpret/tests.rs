//! Each operation against numbers worked out by hand from its formula.

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

/// Position 2 of a head of 4 elements with frequencies 0.5 and 0.25: angles 1 and 0.5.
const ROPE: &str = "weight @rope: f32[context=4, head_dim=4] = \
    rope(attention_factor=1.0, inverse_frequencies=[0.5, 0.25])";
const COS: [f32; 2] = [0.540_302_3, 0.877_582_55];
const SIN: [f32; 2] = [0.841_470_96, 0.479_425_55];

#[test]
fn rotate_pairs_the_halves_of_a_head() {
    let body = format!(
        "input %x: f32[rows, n=8]
         input %position: i32[rows]
         {ROPE}
         %y: f32[rows, n=8] = rotate(%x, %position, @rope) {{head_dim=4}}
         output %y"
    );
    let x = [1.0, 2.0, 3.0, 4.0, 0.0, 1.0, 1.0, 0.0];
    #[rustfmt::skip]
    let expected = [
        COS[0] - 3.0 * SIN[0], 2.0 * COS[1] - 4.0 * SIN[1], 3.0 * COS[0] + SIN[0], 4.0 * COS[1] + 2.0 * SIN[1],
        -SIN[0], COS[1], COS[0], SIN[1],
    ];
    check(&body, &[], &[("x", floats(&x)), ("position", integers(&[2]))], &[floats(&expected)]);
    check(&body, &[], &[("x", floats(&x)), ("position", integers(&[0]))], &[floats(&x)]);
}

/// Two rows of one head, keys `[1, 0]` and `[0, 2]`, values `[10, 20]` and `[30, 40]`.
const CACHES: &str = "input %k: f32[rows, n=2]
    input %v: f32[rows, n=2]
    input %q: f32[rows, n=4]
    input %position: i32[rows]
    input %slot: i32[rows]
    cache #key: key f32[slots=2, kv_heads=1, context=3, head_dim=2]
    cache #value: value f32[slots=2, kv_heads=1, context=3, head_dim=2]
    write_cache(%k, %position, %slot, #key)
    write_cache(%v, %position, %slot, #value)";

/// Position 0, then position 1 whose heads ask for scores (ln 3, 0) and (0, 0).
fn attention_inputs() -> Vec<(&'static str, Tensor)> {
    vec![
        ("k", floats(&[1.0, 0.0, 0.0, 2.0])),
        ("v", floats(&[10.0, 20.0, 30.0, 40.0])),
        ("q", floats(&[7.0, 7.0, 7.0, 7.0, 2.0 * 3.0_f32.ln(), 0.0, 0.0, 0.0])),
        ("position", integers(&[0, 1])),
        ("slot", integers(&[1, 1])),
    ]
}

#[test]
fn attention_step_by_step_and_at_once() {
    // Row 0 sees itself alone. In row 1 head 0 weighs the two values 3:1, head 1 equally.
    let expected = [10.0, 20.0, 10.0, 20.0, 15.0, 25.0, 20.0, 30.0];
    let steps = "%s: f32[rows, heads=2, context=3] =
            attention_scores(%q, %position, %slot, #key) {heads=2, scale=0.5}
        %p: f32[rows, heads=2, context=3] = causal_softmax(%s, %position)
        %y: f32[rows, n=4] = attention_values(%p, %position, %slot, #value) {heads=2}";
    let once = "%y: f32[rows, n=4] = attention(%q, %position, %slot, #key, #value) {heads=2, scale=0.5}";
    for operations in [steps, once] {
        check(&format!("{CACHES}\n{operations}\noutput %y"), &[], &attention_inputs(), &[floats(&expected)]);
    }
}

#[test]
fn scores_are_products_up_to_the_row_s_position() {
    let body = format!(
        "{CACHES}
        %s: f32[rows, heads=2, context=3] = attention_scores(%q, %position, %slot, #key) {{heads=2, scale=0.5}}
        output %s"
    );
    let ln_3 = 3.0_f32.ln();
    let expected = [3.5, 0.0, 0.0, 3.5, 0.0, 0.0, ln_3, 0.0, 0.0, 0.0, 0.0, 0.0];
    check(&body, &[], &attention_inputs(), &[floats(&expected)]);
}

#[test]
fn query_heads_share_kv_heads_in_order() {
    // Four query heads over two kv heads, one position: heads 0 and 1 get the first value.
    check(
        "input %x: f32[rows, n=2]
         input %q: f32[rows, n=4]
         input %position: i32[rows]
         input %slot: i32[rows]
         cache #key: key f32[slots=1, kv_heads=2, context=1, head_dim=1]
         cache #value: value f32[slots=1, kv_heads=2, context=1, head_dim=1]
         write_cache(%x, %position, %slot, #key)
         write_cache(%x, %position, %slot, #value)
         %y: f32[rows, n=4] = attention(%q, %position, %slot, #key, #value) {heads=4, scale=1.0}
         output %y",
        &[],
        &[
            ("x", floats(&[5.0, 6.0])),
            ("q", floats(&[1.0, 1.0, 1.0, 1.0])),
            ("position", integers(&[0])),
            ("slot", integers(&[0])),
        ],
        &[floats(&[5.0, 5.0, 6.0, 6.0])],
    );
}

#[test]
fn caches_round_and_live_from_step_to_step() {
    let text = "graph test {
        input %x: f32[rows, n=1]
        input %q: f32[rows, n=1]
        input %position: i32[rows]
        input %slot: i32[rows]
        cache #key: key bf16[slots=1, kv_heads=1, context=2, head_dim=1]
        write_cache(%x, %position, %slot, #key)
        %s: f32[rows, heads=1, context=2] = attention_scores(%q, %position, %slot, #key) {heads=1, scale=1.0}
        output %s
    }";
    let graph = parse_graph(text).expect("a graph");
    let tensors = Tensors(BTreeMap::new());
    let mut interpreter = Interpreter::new(&graph, &tensors).expect("a valid graph");
    let mut step = |x: f32, position: i32| {
        let inputs = [
            ("x", floats(&[x])),
            ("q", floats(&[1.0])),
            ("position", integers(&[position])),
            ("slot", integers(&[0])),
        ];
        interpreter.evaluate(&inputs).expect("a step").remove(0)
    };
    assert_eq!(step(1.003, 0), floats(&[1.0, 0.0]));
    assert_eq!(step(3.0, 1), floats(&[1.0, 3.0]));
}

#[test]
fn rotate_and_write_cache_does_all_four_at_once() {
    // One query head, one key, one value; the bias turns what is given into 1, 2, 3, 4 for each.
    let body = format!(
        "input %qkv: f32[rows, n=12]
         input %position: i32[rows]
         input %slot: i32[rows]
         {ROPE}
         weight @b: f32[n=12] = \"b\"[12]
         cache #key: key f32[slots=1, kv_heads=1, context=4, head_dim=4]
         cache #value: value f32[slots=1, kv_heads=1, context=4, head_dim=4]
         %q: f32[rows, n=4] =
            rotate_and_write_cache(%qkv, %position, %slot, @rope, @b, #key, #value) {{heads=1, bias}}
         %s: f32[rows, heads=1, context=4] =
            attention_scores(%q, %position, %slot, #key) {{heads=1, scale=1.0}}
         %p: f32[rows, heads=1, context=4] = causal_softmax(%s, %position)
         %y: f32[rows, n=4] = attention_values(%p, %position, %slot, #value) {{heads=1}}
         output %q
         output %s
         output %y"
    );
    let rotated = [
        COS[0] - 3.0 * SIN[0],
        2.0 * COS[1] - 4.0 * SIN[1],
        3.0 * COS[0] + SIN[0],
        4.0 * COS[1] + 2.0 * SIN[1],
    ];
    // Positions 0 and 1 hold zeros. Rotation keeps lengths: q·k = 1 + 4 + 9 + 16.
    let weight = 1.0 / (1.0 + 2.0 * (-30.0_f32).exp());
    check(
        &body,
        &[("b", &[1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0])],
        &[
            ("qkv", floats(&[0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 2.0, 4.0, 6.0, 8.0])),
            ("position", integers(&[2])),
            ("slot", integers(&[0])),
        ],
        &[
            floats(&rotated),
            floats(&[0.0, 0.0, 30.0, 0.0]),
            floats(&[weight, 2.0 * weight, 3.0 * weight, 4.0 * weight]),
        ],
    );
}

#[test]
fn softmax_runs_over_all_experts() {
    check(
        "input %x: f32[rows, experts=3]
         %y: f32[rows, experts=3] = softmax(%x)
         output %y",
        &[],
        &[("x", floats(&[0.0, 2.0_f32.ln(), 5.0_f32.ln(), 1000.0, 1000.0, -1000.0]))],
        &[floats(&[0.125, 0.25, 0.625, 0.5, 0.5, 0.0])],
    );
}

#[test]
fn top_k_takes_the_lower_index_first_where_equal() {
    let body = |attributes: &str| {
        format!(
            "input %p: f32[rows, experts=4]
             %w: f32[rows, k=2], %e: i32[rows, k=2] = top_k(%p) {{{attributes}}}
             output %w
             output %e"
        )
    };
    let p = [("p", floats(&[0.25, 0.125, 0.375, 0.25, 0.25, 0.25, 0.25, 0.25]))];
    let chosen = integers(&[2, 0, 0, 1]);
    check(&body("k=2"), &[], &p, &[floats(&[0.375, 0.25, 0.25, 0.25]), chosen.clone()]);
    check(&body("k=2, normalize"), &[], &p, &[floats(&[0.6, 0.4, 0.5, 0.5]), chosen]);
}

#[test]
fn group_rows_lists_the_work_of_each_expert() {
    // Three rows of two choices; the table is made for four rows. Expert 1 has no rows.
    check(
        "input %e: i32[rows, k=2]
         %groups: i32[table=18] = group_rows(%e) {experts=4}
         output %groups",
        &[],
        &[("e", integers(&[3, 0, 0, 2, 3, 2]))],
        &[integers(&[3, 0, 2, 3, 0, 0, 2, 2, 4, 6, 1, 2, 3, 5, 0, 4, 0, 0])],
    );
}

#[test]
fn experts_multiply_the_rows_that_chose_them() {
    // Expert 0 multiplies by 1 and 2, expert 1 by 10 and 20, expert 2 by 100 and 200.
    let weights: [(&str, &[f32]); 3] = [("0", &[1.0, 2.0]), ("1", &[10.0, 20.0]), ("2", &[100.0, 200.0])];
    let body = |groups: &str, operation: &str| {
        format!(
            "input %x: f32[rows, n=1]
             input %e: i32[rows, k=2]
             weight @w: f32[experts=3, m=2, n=1] = 3 * (\"{{}}\"[2])
             {groups}
             %y: f32[rows, k=2, m=2] = {operation}
             output %y"
        )
    };
    let inputs = [("x", floats(&[1.0, 3.0])), ("e", integers(&[2, 0, 1, 2]))];
    let expected = [floats(&[100.0, 200.0, 1.0, 2.0, 30.0, 60.0, 300.0, 600.0])];
    check(&body("", "expert_matmul(%x, %e, @w)"), &weights, &inputs, &expected);
    let groups = "%g: i32[table=12] = group_rows(%e) {experts=3}";
    check(&body(groups, "expert_matmul(%x, %e, %g, @w) {grouped}"), &weights, &inputs, &expected);
}

#[test]
fn experts_combine_gate_and_up_of_each_choice() {
    // The second expert multiplies choice by choice: its input has a row for each.
    check(
        "input %x: f32[rows, k=2, n=1]
         input %e: i32[rows, k=2]
         weight @w: f32[experts=2, both=2, n=1] = 2 * (\"{}.gate\"[1], \"{}.up\"[1])
         %y: f32[rows, k=2, m=1] = expert_matmul(%x, %e, @w) {silu_multiply}
         output %y",
        &[("0.gate", &[1.0]), ("0.up", &[3.0]), ("1.gate", &[-1.0]), ("1.up", &[1.0])],
        &[("x", floats(&[1.0, 2.0])), ("e", integers(&[0, 1]))],
        // silu(1) · 3 and silu(−2) · 2
        &[floats(&[2.193_175_7, -0.476_811_7])],
    );
}

#[test]
fn combine_experts_weighs_and_sums() {
    let body = |operation: &str| {
        format!(
            "input %y: f32[rows, k=2, n=2]
             input %w: f32[rows, k=2]
             input %h: f32[rows, n=2]
             %z: f32[rows, n=2] = {operation}
             output %z"
        )
    };
    let inputs =
        [("y", floats(&[1.0, 2.0, 3.0, 4.0])), ("w", floats(&[0.5, 0.25])), ("h", floats(&[100.0, 200.0]))];
    check(&body("combine_experts(%y, %w)"), &[], &inputs, &[floats(&[1.25, 2.0])]);
    check(&body("combine_experts(%y, %w, %h) {residual}"), &[], &inputs, &[floats(&[101.25, 202.0])]);
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

use std::collections::BTreeMap;

use super::{Tensors, check, floats, integers};
use crate::interpret::{Interpreter, Tensor};
use crate::parse_graph;

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
fn rounded_weights_are_ratios_to_the_largest_of_their_block() {
    // Of the weights 3:1 the smaller one is a third of the largest, in bf16 a little more; their sum is 4/3.
    let third = 171.0 / 512.0;
    let of_both = |first: f32, second: f32| (first + third * second) * 0.75;
    let expected = [10.0, 20.0, 10.0, 20.0, of_both(10.0, 30.0), of_both(20.0, 40.0), 20.0, 30.0];
    let steps = "%s: f32[rows, heads=2, context=3] =
            attention_scores(%q, %position, %slot, #key) {heads=2, scale=0.5}
        %p: f32[rows, heads=2, context=3] = causal_softmax(%s, %position)
        %y: f32[rows, n=4] = attention_values(%p, %position, %slot, #value) {heads=2, rounded}";
    let once =
        "%y: f32[rows, n=4] = attention(%q, %position, %slot, #key, #value) {heads=2, scale=0.5, rounded}";
    let parts = "%sums: f32[rows, blocks=1, n=4], %totals: f32[rows, blocks=1, m=4] =
            attention_blocks(%q, %position, %slot, #key, #value) {heads=2, scale=0.5, rounded}
        %y: f32[rows, n=4] = merge_blocks(%sums, %totals, %position) {heads=2}";
    for operations in [steps, once, parts] {
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

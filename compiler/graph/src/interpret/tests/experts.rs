use super::{check, floats, integers};

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

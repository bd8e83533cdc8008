use crate::verify;
use crate::verify::tests::{broken, graph, sound};

/// For each operation: a use that is right, and operands that do not fit it.
const USES: &[(&str, &[&str])] = &[
    (
        "%y: f32[rows, n=4] = embed(%position, @w)",
        &["%y: f32[rows, n=5] = embed(%position, @w)", "%y: f32[rows, n=4] = embed(%a, @w)"],
    ),
    (
        "input %l: i32[logit_rows]\n%y: f32[logit_rows, n=4] = gather_rows(%x, %l)",
        &[
            "input %l: i32[logit_rows]\n%y: f32[rows, n=4] = gather_rows(%x, %l)",
            "input %l: i32[logit_rows]\n%y: bf16[logit_rows, n=4] = gather_rows(%x, %l)",
            "%y: f32[logit_rows, n=4] = gather_rows(%x, %position)",
            "input %l: i32[logit_rows]\ninput %z: f32[logit_rows, n=4]
             %y: f32[logit_rows, n=4] = gather_rows(%z, %l)",
        ],
    ),
    (
        "%y: bf16[rows, n=4] = rms_norm(%x, @v) {epsilon=1e-6}",
        &[
            "%y: bf16[rows, n=4] = rms_norm(%a, @v) {epsilon=1e-6}",
            "%y: i32[rows, n=4] = rms_norm(%x, @v) {epsilon=1e-6}",
            "%y: bf16[rows, n=4] = rms_norm(%x, @v) {epsilon=-1.0}",
            "%y: bf16[rows, n=4] = rms_norm(%x, @v) {epsilon=inf}",
            "%y: bf16[rows, n=4] = rms_norm(%x, @rope) {epsilon=1e-6}",
        ],
    ),
    (
        "%y: f32[rows, m=6] = matmul(%a, @w)",
        &[
            "%y: f32[rows, m=6] = matmul(%x, @w)",
            "%y: bf16[rows, m=6] = matmul(%a, @w)",
            "%y: f32[rows, m=5] = matmul(%a, @w)",
            "%y: f32[logit_rows, m=6] = matmul(%a, @w)",
            "weight @u: bf16[m=6, n=5] = \"u\"[6]\n%y: f32[rows, m=6] = matmul(%a, @u)",
            "weight @u: f16[m=6, n=4] = \"u\"[6]\n%y: f32[rows, m=6] = matmul(%a, @u)",
        ],
    ),
    // The router's weight stays f32 in a bf16 program.
    ("weight @u: f32[m=6, n=4] = \"u\"[6]\n%y: f32[rows, m=6] = matmul(%a, @u)", &[]),
    (
        "%y: bf16[rows, m=3] = matmul(%a, @w) {silu_multiply}",
        &[
            "%y: f32[rows, m=3] = matmul(%a, @w) {silu_multiply}",
            "%y: bf16[rows, m=6] = matmul(%a, @w) {silu_multiply}",
            "%y: bf16[rows, m=3] = matmul(%a, @w) {silu_multiply, bias}",
            "weight @u: bf16[m=7, n=4] = \"u\"[7]\n%y: bf16[rows, m=3] = matmul(%a, @u) {silu_multiply}",
        ],
    ),
    (
        "weight @b: f32[m=6] = \"b\"[6]\ninput %r: f32[rows, m=6]
             %y: f32[rows, m=6] = matmul(%a, %r, @w, @b) {bias, residual}",
        &["%y: f32[rows, m=6] = matmul(%a, %x, @w, @v) {bias, residual}"],
    ),
    (
        "%y: f32[rows, m=6] = matmul(%x, @w, @v) {norm=1e-6}",
        &[
            "%y: f32[rows, m=6] = matmul(%a, @w, @v) {norm=1e-6}",
            "%y: f32[rows, m=6] = matmul(%x, @w) {norm=1e-6}",
            "%y: f32[rows, m=6] = matmul(%x, @w, @v) {norm=-1.0}",
            "weight @u: f32[m=5] = \"u\"[5]\n%y: f32[rows, m=6] = matmul(%x, @w, @u) {norm=1e-6}",
        ],
    ),
    (
        "%y: bf16[rows, m=3] = matmul(%x, @w, @v) {norm=1e-6, silu_multiply}",
        &[
            "%y: bf16[rows, m=3] = matmul(%a, @w, @v) {norm=1e-6, silu_multiply}",
            // What is rounded to f32 is not rounded to the activation type.
            "weight @u: f32[m=6, n=4] = \"u\"[6]
             %y: bf16[rows, m=3] = matmul(%x, @u, @v) {norm=1e-6, silu_multiply}",
        ],
    ),
    (
        "%y: f32[rows, n=4] = add_bias(%x, @v)",
        &["weight @u: f32[n=5] = \"u\"[5]\n%y: f32[rows, n=4] = add_bias(%x, @u)"],
    ),
    (
        "%y: f32[rows, n=4] = rotate(%x, %position, @rope) {head_dim=2}",
        &[
            "%y: f32[rows, n=4] = rotate(%x, %position, @rope) {head_dim=4}",
            "%y: f32[rows, n=4] = rotate(%x, %position, @rope) {head_dim=0}",
            "weight @r: f32[context=8, head_dim=1] = \"r\"[8]
                 %y: f32[rows, n=4] = rotate(%x, %position, @r) {head_dim=1}",
            "%y: f32[rows, n=4] = rotate(%x, %x, @rope) {head_dim=2}",
        ],
    ),
    (
        "write_cache(%x, %position, %slot, #key)",
        &[
            "input %z: f32[rows, n=6]\nwrite_cache(%z, %position, %slot, #key)",
            "write_cache(%a, %position, %slot, #key)",
        ],
    ),
    (
        "%y: f32[rows, n=4] = scale(%x) {factor=0.5}",
        &["%y: f32[rows, n=4] = scale(%x) {factor=NaN}", "%y: bf16[rows, n=4] = scale(%x) {factor=0.5}"],
    ),
    (
        "input %s: f32[rows, heads=2, context=8]\n%y: f32[rows, heads=2, context=8] = causal_softmax(%s, %position)",
        &[
            "input %s: f32[rows, heads=2, context=8]\n%y: f32[rows, heads=2, context=7] = causal_softmax(%s, %position)",
            "input %s: f32[rows, heads=2, context=8]\n%y: f32[rows, heads=2, context=8] = causal_softmax(%s, %s)",
        ],
    ),
    (
        "%y: f32[rows, n=4] = add(%x, %x)",
        &["%y: f32[rows, n=4] = add(%x, %a)", "%y: bf16[rows, n=4] = add(%x, %x)"],
    ),
    (
        "%y: f32[rows, n=4], %z: bf16[rows, n=4] = add_and_norm(%x, %x, @v) {epsilon=1e-6}",
        &[
            "%y: f32[rows, n=4], %z: bf16[rows, n=3] = add_and_norm(%x, %x, @v) {epsilon=1e-6}",
            "%y: f32[rows, n=4], %z: bf16[rows, n=4] = add_and_norm(%x, %x, @v) {epsilon=NaN}",
        ],
    ),
    (
        "%y: bf16[rows, m=2] = slice(%a) {first=2}",
        &[
            "%y: bf16[rows, m=2] = slice(%a) {first=3}",
            "%y: f32[rows, m=2] = slice(%a) {first=2}",
            "%y: bf16[rows, m=2] = slice(%a) {first=18446744073709551615}",
            "%y: bf16[rows, k=1, m=2] = slice(%a) {first=0}",
        ],
    ),
    ("%y: f32[rows, n=4] = silu(%x)", &["%y: f32[rows, n=2, m=2] = silu(%x)"]),
    ("%y: f32[rows, n=4] = sigmoid(%x)", &["%y: f32[rows, n=4] = sigmoid(%a)"]),
    (
        "%y: bf16[rows, n=4] = multiply(%x, %x)",
        &["%y: bf16[rows, n=4] = multiply(%x, %a)", "%y: i32[rows, n=4] = multiply(%x, %x)"],
    ),
    ("%y: bf16[rows, n=4] = silu_multiply(%x, %x)", &["%y: bf16[rows, n=3] = silu_multiply(%x, %x)"]),
    (
        "input %f: f32[rows, one=1]\n%y: f32[rows, n=4] = scale_rows(%x, %f)",
        &["%y: f32[rows, n=4] = scale_rows(%x, %x)"],
    ),
    ("%y: f32[rows, n=4] = softmax(%x)", &["%y: f32[rows, n=4] = softmax(%a)"]),
    (
        "%y: f32[rows, k=3], %z: i32[rows, k=3] = top_k(%x) {k=3}",
        &[
            "%y: f32[rows, k=5], %z: i32[rows, k=5] = top_k(%x) {k=5}",
            "%y: f32[rows, k=3], %z: i32[rows, k=2] = top_k(%x) {k=3}",
            "%y: f32[rows, k=3], %z: f32[rows, k=3] = top_k(%x) {k=3}",
        ],
    ),
];

#[test]
fn operands_are_counted() {
    broken("%y: f32[rows, n=4] = add(%x)", "`add` needs 2 inputs, has 1");
    broken("%y: f32[rows, n=4] = silu(%x, @v)", "`silu` needs 0 weights, has 1");
    broken("write_cache(%x, %position, %slot)", "`write_cache` needs 1 cache, has 0");
    broken("silu(%x)", "`silu` needs 1 result, has 0");
    broken("%y: f32[rows, m=6] = matmul(%a, @w) {bias}", "`matmul` needs 2 weights, has 1");
    broken("%y: f32[rows, m=6] = matmul(%a, @w) {residual}", "`matmul` needs 2 inputs, has 1");
}

#[test]
fn every_operation_has_a_signature() {
    for (right, wrong) in USES {
        sound(right);
        for body in *wrong {
            assert!(verify(&graph(body)).is_err(), "must be refused: {body}");
        }
    }
}

#[test]
fn attention_fits_its_caches() {
    let written = "write_cache(%x, %position, %slot, #key)\nwrite_cache(%x, %position, %slot, #value)\n";
    let attention = |result: &str, attributes: &str| {
        format!("{written}%y: {result} = attention(%x, %position, %slot, #key, #value) {{{attributes}}}")
    };
    sound(&attention("bf16[rows, n=4]", "heads=2, scale=0.5"));
    broken(
        &attention("bf16[rows, n=4]", "heads=4, scale=0.5"),
        "`%x` is `f32[rows, n=4]`, but `attention` needs `W[rows, heads·head_dim]`, \
         where head_dim = 2, heads = 4, rows = rows",
    );
    broken(
        &attention("bf16[rows, n=4]", "heads=2, scale=NaN"),
        "`attention` needs a finite scale, found NaN",
    );
    let three = "input %q: f32[rows, n=6]\n";
    broken(
        &format!(
            "{three}{written}%y: bf16[rows, n=6] = \
             attention(%q, %position, %slot, #key, #value) {{heads=3, scale=1.0}}"
        ),
        "`attention` has 3 heads, needs a multiple of the cache's 2 kv heads",
    );
    let parts = |blocks: u64| {
        format!(
            "{written}%s: f32[rows, blocks={blocks}, n=4], %t: f32[rows, blocks={blocks}, m=4] = \
             attention_blocks(%x, %position, %slot, #key, #value) {{heads=2, scale=0.5}}\n\
             %y: bf16[rows, n=4] = merge_blocks(%s, %t, %position) {{heads=2}}"
        )
    };
    sound(&parts(1));
    broken(
        &parts(2),
        "`%s` is `f32[rows, blocks=2, n=4]`, but `attention_blocks` needs \
         `f32[rows, blocks, heads·head_dim]`, where blocks = 1, head_dim = 2, heads = 2, rows = rows",
    );
    let swapped = "%y: bf16[rows, n=4] = attention(%x, %position, %slot, #value, #key) {heads=2, scale=0.5}";
    broken(&format!("{written}{swapped}"), "cache `#value` holds values, needs keys");
    let scores = "%s: f32[rows, heads=2, context=9] = attention_scores(%x, %position, %slot, #key) {heads=2, scale=1.0}";
    broken(
        &format!("{written}{scores}"),
        "`%s` is `f32[rows, heads=2, context=9]`, but `attention_scores` needs `f32[rows, heads, context]`, \
         where context = 8, heads = 2, rows = rows",
    );
    broken(
        &format!(
            "{written}cache #other: value bf16[slots=1, kv_heads=2, context=9, head_dim=2]
             %y: bf16[rows, n=4] = attention(%x, %position, %slot, #key, #other) {{heads=2, scale=0.5}}"
        ),
        "cache `#other` is read before it is written",
    );
    let p = "%p: f32[rows, heads=2, context=8] = attention_scores(%x, %position, %slot, #key) {heads=2, scale=1.0}";
    let values = |element: &str| {
        format!(
            "{written}{p}\n%y: {element}[rows, n=4] = attention_values(%p, %position, %slot, #value) {{heads=2}}"
        )
    };
    sound(&values("bf16"));
    assert!(verify(&graph(&values("i32"))).is_err());
}

#[test]
fn caches_of_one_attention_agree() {
    broken(
        "cache #other: value bf16[slots=1, kv_heads=2, context=9, head_dim=2]
         write_cache(%x, %position, %slot, #key)
         write_cache(%x, %position, %slot, #other)
         %y: bf16[rows, n=4] = attention(%x, %position, %slot, #key, #other) {heads=2, scale=0.5}",
        "cache `#other` has context=9, needs context=8",
    );
}

#[test]
fn rotate_and_write_cache_takes_all_heads() {
    let body = |width: u64, heads: u64, operands: &str, attributes: &str| {
        format!(
            "input %qkv: f32[rows, n={width}]
             weight @b: f32[n={width}] = \"b\"[{width}]
             %q: f32[rows, n=4] = rotate_and_write_cache(%qkv, %position, %slot, @rope{operands}, #key, #value) \
             {{heads={heads}{attributes}}}"
        )
    };
    sound(&body(12, 2, "", ""));
    sound(&body(12, 2, ", @b", ", bias"));
    broken(
        &body(10, 2, "", ""),
        "`%qkv` is `f32[rows, n=10]`, but `rotate_and_write_cache` needs `f32[rows, all_heads·head_dim]`, \
         where all_heads = 6, head_dim = 2, rows = rows",
    );
    broken(
        &body(12, 2, ", @v", ", bias"),
        "`@v` is `f32[n=4]`, but `rotate_and_write_cache` needs \
         `f32[all_heads·head_dim]`, where all_heads = 6, head_dim = 2",
    );
    assert!(verify(&graph(&body(14, 3, "", ""))).is_err(), "3 heads over 2 kv heads");
}

#[test]
fn project_and_write_cache_takes_a_merged_projection() {
    let body = |x: &str, rows: u64, operands: &str, attributes: &str| {
        format!(
            "weight @qkv: bf16[m={rows}, n=4] = \"qkv\"[{rows}]
             weight @b: f32[m={rows}] = \"b\"[{rows}]
             %q: f32[rows, n=4] = project_and_write_cache({x}, %position, %slot, @qkv, @rope{operands}, #key, #value) \
             {{heads=2{attributes}}}"
        )
    };
    sound(&body("%a", 12, "", ""));
    sound(&body("%a", 12, ", @b", ", bias"));
    sound(&body("%x", 12, ", @b, @v", ", bias, norm=0.5"));
    broken(
        &body("%a", 10, "", ""),
        "`@qkv` is `bf16[m=10, n=4]`, but `project_and_write_cache` needs `T[all_heads·head_dim, k]`, \
         where T = bf16, all_heads = 6, head_dim = 2, k = 4",
    );
    for (x, operands, attributes) in
        [("%x", "", ""), ("%a", ", @v", ", norm=0.5"), ("%a", ", @v", ", bias"), ("%x", ", @v", ", norm=inf")]
    {
        assert!(verify(&graph(&body(x, 12, operands, attributes))).is_err(), "{x}{operands}{attributes}");
    }
}

#[test]
fn experts_fit_their_choices() {
    let head = "input %e: i32[rows, k=3]
        weight @x: bf16[experts=5, m=6, n=4] = 5 * (\"{}\"[6])\n";
    let body = |operations: &str| format!("{head}{operations}");
    sound(&body("%y: f32[rows, k=3, m=6] = expert_matmul(%a, %e, @x)"));
    sound(&body("%y: bf16[rows, k=3, m=3] = expert_matmul(%a, %e, @x) {silu_multiply}"));
    sound(&body(
        "%g: i32[table=18] = group_rows(%e) {experts=5}
         %y: f32[rows, k=3, m=6] = expert_matmul(%a, %e, %g, @x) {grouped}
         input %w: f32[rows, k=3]
         %z: f32[rows, m=6] = combine_experts(%y, %w)",
    ));
    sound(&body(
        "input %c: bf16[rows, k=3, n=4]
         %y: f32[rows, k=3, m=6] = expert_matmul(%c, %e, @x)
         input %w: f32[rows, k=3]
         input %h: f32[rows, m=6]
         %z: f32[rows, m=6] = combine_experts(%y, %w, %h) {residual}",
    ));
    for wrong in [
        "%y: f32[rows, k=2, m=6] = expert_matmul(%a, %e, @x)",
        "%y: f32[rows, k=3, m=6] = expert_matmul(%x, %e, @x)",
        "%y: f32[rows, k=3, m=6] = expert_matmul(%a, %a, @x)",
        "%y: f32[rows, k=3, m=6] = expert_matmul(%a, %e, @w)",
        "input %c: bf16[rows, k=2, n=4]\n%y: f32[rows, k=3, m=6] = expert_matmul(%c, %e, @x)",
        "%y: f32[rows, k=3, m=6] = expert_matmul(%a, %e, %e, @x) {grouped}",
        "input %y: f32[rows, k=3, m=6]\ninput %w: f32[rows, k=2]\n%z: f32[rows, m=6] = combine_experts(%y, %w)",
    ] {
        assert!(verify(&graph(&body(wrong))).is_err(), "must be refused: {wrong}");
    }
    let table = |size: u64| body(&format!("%g: i32[table={size}] = group_rows(%e) {{experts=5}}"));
    broken(&table(12), "`group_rows` needs a table of 2 + 2·5 + max_rows·3 integers, found 12");
    broken(&table(14), "`group_rows` needs a table of 2 + 2·5 + max_rows·3 integers, found 14");
}

#[test]
fn top_k_chooses_among_the_experts() {
    broken("%y: f32[rows, k=5], %z: i32[rows, k=5] = top_k(%x) {k=5}", "`top_k` chooses 5 of 4 experts");
}

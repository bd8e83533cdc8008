//! One broken graph for each rule, and the sound one it was made from.

use qwen2c_request::{Dimension, Element, Size};

use super::verify;
use crate::{Graph, ValueId, WeightId, parse_graph};

/// What most graphs below start with.
const HEAD: &str = r#"input %x: f32[rows, n=4]
  input %a: bf16[rows, n=4]
  input %position: i32[rows]
  input %slot: i32[rows]
  weight @v: f32[n=4] = "v"[4]
  weight @w: bf16[m=6, n=4] = "w"[6]
  weight @rope: f32[context=8, head_dim=2] = rope(unresolved)
  cache #key: key bf16[slots=1, kv_heads=2, context=8, head_dim=2]
  cache #value: value bf16[slots=1, kv_heads=2, context=8, head_dim=2]
"#;

pub(super) fn graph(body: &str) -> Graph {
    parse_graph(&format!("graph test {{\n{HEAD}{body}\n}}")).unwrap_or_else(|error| panic!("{error}"))
}

pub(super) fn sound(body: &str) {
    verify(&graph(body)).unwrap_or_else(|error| panic!("{error}"));
}

/// The operation (or other line) that holds `line` breaks the rule described by `message`.
pub(super) fn broken(body: &str, message: &str) {
    broken_graph(&graph(body), message);
}

fn broken_graph(graph: &Graph, message: &str) {
    let error = verify(graph).expect_err(message);
    assert_eq!(error.message, message);
}

#[test]
fn errors_are_drawn_on_the_line() {
    let text = "graph test {\n  input %x: f32[rows, n=4]\n  %y: bf16[rows, n=4] = silu(%x)\n}";
    let error = verify(&parse_graph(text).expect("a graph")).expect_err("silu gives f32");
    let expected = "\
line 3: `%y` is `bf16[rows, n=4]`, but `silu` needs `f32[…]`
  %y: bf16[rows, n=4] = silu(%x)
  ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn activations_are_of_one_type() {
    broken(
        "%y: bf16[rows, n=4] = multiply(%x, %x)\n%z: f16[rows, n=4] = multiply(%x, %x)",
        "activations are of one type in the whole graph, found `f16` after another",
    );
}

#[test]
fn values_are_defined_before_they_are_used() {
    let mut swapped = graph("%y: f32[rows, n=4] = silu(%x)\n%z: f32[rows, n=4] = silu(%y)");
    swapped.operations.swap(0, 1);
    broken_graph(&swapped, "value `%y` is used before its definition");

    let mut own = graph("%y: f32[rows, n=4] = silu(%x)");
    own.operations[0].inputs = own.operations[0].outputs.clone();
    broken_graph(&own, "value `%y` is used before its definition");

    let mut missing = graph("%y: f32[rows, n=4] = silu(%x)\n%z: f32[rows, n=4] = silu(%y)");
    missing.operations.remove(0);
    broken_graph(&missing, "value `%y` is never defined");

    let mut no_output = graph("%y: f32[rows, n=4] = silu(%x)\noutput %y");
    no_output.operations.clear();
    broken_graph(&no_output, "value `%y` is never defined");
}

#[test]
fn values_are_defined_once() {
    let mut twice = graph("%y: f32[rows, n=4] = silu(%x)\n%z: f32[rows, n=4] = silu(%x)");
    twice.operations[1].outputs = twice.operations[0].outputs.clone();
    broken_graph(&twice, "value `%y` is defined twice");

    let mut input = graph("%y: f32[rows, n=4] = silu(%x)");
    input.operations[0].outputs = vec![input.inputs[0]];
    broken_graph(&input, "value `%x` is defined twice");
}

#[test]
fn operands_exist() {
    let base = graph("%y: f32[rows, n=4] = add_bias(%x, @v)\noutput %y");
    let with = |change: &dyn Fn(&mut Graph)| {
        let mut graph = base.clone();
        change(&mut graph);
        graph
    };
    let nowhere = ValueId(77);
    broken_graph(&with(&|graph| graph.operations[0].inputs[0] = nowhere), "value 77 does not exist");
    broken_graph(&with(&|graph| graph.operations[0].outputs[0] = nowhere), "value 77 does not exist");
    broken_graph(&with(&|graph| graph.outputs[0] = nowhere), "value 77 does not exist");
    broken_graph(&with(&|graph| graph.inputs[0] = nowhere), "value 77 does not exist");
    broken_graph(&with(&|graph| graph.operations[0].weights[0] = WeightId(9)), "weight 9 does not exist");
    let cache = |graph: &mut Graph| graph.operations[0].caches.push(crate::CacheId(9));
    broken_graph(&with(&cache), "cache 9 does not exist");
}

#[test]
fn names_are_unique() {
    let mut values = graph("%y: f32[rows, n=4] = silu(%x)");
    values.values.last_mut().expect("a value").name = "x".to_owned();
    broken_graph(&values, "the name `%x` is taken");
    let mut weights = graph("");
    weights.weights[1].name = "v".to_owned();
    broken_graph(&weights, "the name `@v` is taken");
    let mut caches = graph("");
    caches.caches[1].name = "key".to_owned();
    broken_graph(&caches, "the name `#key` is taken");
}

#[test]
fn caches_are_written_once_and_before_they_are_read() {
    let write = "write_cache(%x, %position, %slot, #key) layer 0";
    let read = "%s: f32[rows, heads=2, context=8] = attention_scores(%x, %position, %slot, #key) \
        {heads=2, scale=1.0}";
    sound(&format!("{write}\n{read} layer 0"));
    broken(&format!("{read} layer 0\n{write}"), "cache `#key` is read before it is written");
    broken(&format!("{write}\n{write}"), "cache `#key` is written twice");
    broken(&format!("{write}\n{read} layer 1"), "cache `#key` is written in another layer");
}

#[test]
fn values_start_with_rows() {
    let rule =
        |name: &str| format!("value `%{name}`: `rows` or `logit_rows` is the first dimension and no other");
    broken("input %z: f32[n=4]", &rule("z"));
    broken("input %z: f32[n=4, rows]", &rule("z"));
    broken("input %z: f32[rows, rows]", &rule("z"));
    broken("input %z: f32[]", "value `%z`: a value has at least one dimension");
    sound("input %z: i32[table=4]");
}

#[test]
fn extents_are_bounded() {
    let rule = "every extent is 1 or more, and their product below 2^48";
    broken("input %z: f32[rows, n=0]", &format!("value `%z`: {rule}"));
    broken("input %z: f32[rows, n=4294967296, m=4294967296]", &format!("value `%z`: {rule}"));
    broken("weight @z: f32[n=0] = \"z\"[0]", rule);
    broken("weight @z: f32[n=18446744073709551615, m=3] = \"z\"[1]", rule);
    broken("cache #z: key f32[slots=0, kv_heads=1, context=1, head_dim=1]", rule);
    broken("cache #z: key f32[slots=4294967296, kv_heads=4294967296, context=1, head_dim=1]", rule);
}

#[test]
fn weights_are_filled_by_their_tensors() {
    broken("weight @z: f32[n=4, m=2] = \"a\"[1], \"b\"[2]", "its tensors bring 3 rows, its type has 4");
    sound("weight @z: f32[n=4, m=2] = \"a\"[1 padded 2], \"b\"[2]");
    broken("weight @z: f32[n=4, m=2] = \"a\"[4 padded 3], \"b\"[1]", "`a` has 4 rows, padded to only 3");
    broken("weight @z: f32[n=5] = \"a\"[4]", "its tensors bring 4 rows, its type has 5");
    sound("weight @z: f32[n=5] = \"a\"[1], \"b\"[4]");
    sound("weight @z: f32[experts=2, n=3, m=2] = 2 * (\"{}\"[3])");
    broken("weight @z: f32[n=1, m=2] = \"a\"[1] columns 3", "takes 3 columns, needs 1 to 2");
    broken("weight @z: f32[n=1, m=2] = \"a\"[1] columns 0", "takes 0 columns, needs 1 to 2");
    broken("weight @z: i32[n=1] = \"a\"[1]", "a weight is of a floating-point type");
    broken("weight @z: f32[] = \"a\"[1]", "a weight has dimensions, all of them numbers");
    let rule = "matrices alone are quantized, to 4 or 8 bits in groups of 16, 32, 64 or 128 with scales in \
                f16 or f32";
    sound("weight @z: bf16[n=1, m=2] as int4(32) = \"a\"[1]");
    broken("weight @z: bf16[n=1, m=2] as int4(33) = \"a\"[1]", rule);
    broken("weight @z: bf16[n=1] as int8(32) = \"a\"[1]", rule);
    let panels = |layout: &str| format!("weight @z: f32[n=1, m=2] = \"a\"[1] layout panels({layout})");
    sound(&panels("16, 2"));
    broken(&panels("0, 2"), "panels have 1 or more lanes and pairs, found 0 and 2");
    broken(&panels("16, 0"), "panels have 1 or more lanes and pairs, found 16 and 0");
    let max = u64::MAX;
    broken(
        &format!("weight @z: f32[n=4, m=2] = \"a\"[{max}], \"b\"[{max}]"),
        "its tensors bring more rows, its type has 4",
    );
    let mut varying = graph("");
    varying.weights[0].ty.dimensions[0] = Dimension { name: "rows".to_owned(), size: Size::Rows };
    broken_graph(&varying, "a weight has dimensions, all of them numbers");
}

#[test]
fn rotary_tables_have_a_frequency_for_each_pair() {
    let rule = "a rotary table is `f32[context, head_dim]` with an even head_dim";
    for ty in ["f32[n=4]", "bf16[context=4, head_dim=2]", "f32[context=4, head_dim=3]"] {
        broken(&format!("weight @z: {ty} = rope(unresolved)"), rule);
    }
    let table = |numbers: &str| format!("weight @z: f32[context=4, head_dim=4] = rope({numbers})");
    sound(&table("attention_factor=1.0, inverse_frequencies=[1.0, 0.5]"));
    broken(
        &table("attention_factor=1.0, inverse_frequencies=[1.0]"),
        "a head of 4 elements needs 2 frequencies, found 1",
    );
    let finite = "every number of a rotary table is finite";
    broken(&table("attention_factor=inf, inverse_frequencies=[1.0, 0.5]"), finite);
    broken(&table("attention_factor=1.0, inverse_frequencies=[1.0, NaN]"), finite);
}

#[test]
fn caches_hold_floating_point() {
    let mut integers = graph("");
    integers.caches[0].ty.element = Element::I32;
    broken_graph(&integers, "a cache is of a floating-point type");
}

//! The text form of any graph reads back as that graph, and no text makes the parser panic.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use qwen2c_request::{
    CacheKind, CacheType, Dimension, Element, Operation, Quantization, Real, Size, TensorType, WeightLayout,
    WeightType,
};

use super::{parse_graph, print_graph};
use crate::{CacheId, Graph, Op, RopeTable, ValueId, Weight, WeightId, WeightPart, WeightSource};

const TINY: &str = r#"graph tiny {
  input %token: i32[rows]
  input %position: i32[rows]
  weight @embedding: bf16[vocabulary=101, hidden=64] = "model.embed_tokens.weight"[101]
  weight @both: bf16[both=64, hidden=64] = "gate"[30 padded 32], "up"[30 padded 32] columns 60 layout panels(8, 2, separate_halves)
  weight @experts: bf16[experts=3, output=2, hidden=64] = 3 * ("experts.{}.up"[2]) layout row_major
  weight @rope: f32[context=32, head_dim=4] = rope(attention_factor=1.0, inverse_frequencies=[1.0, 0.001])
  cache #layers.0.key: key bf16[slots=1, kv_heads=1, context=32, head_dim=64]
  %embedding: f32[rows, hidden=64] = embed(%token, @embedding)
  write_cache(%embedding, %position, %position, #layers.0.key) layer 0
  %weights: f32[rows, k=2], %experts: i32[rows, k=2] = top_k(%embedding) {k=2, normalize} layer 0
  %rotated: f32[rows, hidden=64] = rotate(%embedding, %position, @rope) {head_dim=4} layer 0
  %"a \"name\"": f32[rows, hidden=64] = scale(%rotated) {factor=0.125}
  output %experts
}
"#;

#[test]
fn printing_gives_back_what_was_read() {
    let graph = parse_graph(TINY).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(print_graph(&graph), TINY);
}

#[test]
fn comments_and_line_breaks_are_free() {
    let free = TINY.replace(" = ", "\n= // why\n").replace(", ", "\t,");
    assert_eq!(parse_graph(&free), parse_graph(TINY));
}

/// Asserts the message about `text`, whose place is marked by `«` standing before it.
fn refused(marked: &str, message: &str) {
    let place = marked.find('«').expect("a marked place");
    let text = marked.replace('«', "");
    let error = parse_graph(&text).expect_err(message);
    let line = marked[..place].matches('\n').count() + 1;
    let column = marked[..place].lines().last().map_or(0, |line| line.chars().count()) + 1;
    assert_eq!((error.message.as_str(), error.line, error.column), (message, line, column), "{text}");
}

fn refused_line(marked: &str, message: &str) {
    refused(
        &format!("graph t {{\n input %x: f32[rows]\n weight @w: f32[n=1] = \"w\"[1]\n {marked}\n}}"),
        message,
    );
}

#[test]
fn an_error_is_drawn_on_its_line() {
    let error = parse_graph("graph t {\n  input %x = f32[rows]\n}").expect_err("no type");
    let expected = "line 2, column 12: expected `:`, found `=`\n  input %x = f32[rows]\n           ^";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn broken_text_is_refused_where_it_breaks() {
    refused("«", "expected `graph`, found the end of the text");
    refused(
        "graph t { «",
        "expected `input`, `weight`, `cache`, `output`, an operation or `}`, found the end of the text",
    );
    refused("graph t {} «more", "the graph is closed, but `more` follows");
    refused("graph «% {}", "expected a name, found `%`");
    refused("graph «\"t", "this string has no closing quotation mark");
    refused("graph \"«\\n\" {}", "unknown escape: `\\\\`, `\\\"` and `\\u{…}` are understood");
    refused_line(
        "«\"x\"",
        "expected `input`, `weight`, `cache`, `output`, an operation or `}`, found a quoted string",
    );
    refused_line("input %«x: f32[rows]", "value `%x` is defined twice");
    refused_line("input %y: «f64[rows]", "expected `f32`, `bf16`, `f16`, `i32` or `i8.32`, found `f64`");
    refused_line("input %y: f32[«n]", "dimension `n` has no size: write `n=…`");
    refused_line("input %y: f32[n=«-1]", "expected a size, `rows` or `logit_rows`, found `-1`");
    refused_line("input %y: f32[n=1 «m=2]", "expected `,`, found `m`");
    refused_line("output %«y", "value `%y` is not defined before this line");
    refused_line("«frob(%x)", "no operation is called `frob`");
    refused_line("«scale(%x)", "attribute `factor=…` is missing");
    refused_line("«scale(%x) {factor=much}", "attribute `factor` needs a number, found `much`");
    refused_line("«silu(%x) {factor=1.0}", "`silu` has no attribute `factor`, or it is given twice");
    refused_line("«top_k(%x) {k=-3}", "attribute `k` needs a whole number, found `-3`");
    refused_line("«top_k(%x) {k=3, normalize=1}", "attribute `normalize` is a flag and takes no value");
    refused_line("add(%x, %«y)", "value `%y` is not defined before this line");
    refused_line("add(@«y)", "weight `@y` is not defined before this line");
    refused_line("add(#«y)", "cache `#y` is not defined before this line");
    refused_line("add(@w, «%x)", "operands stand in the order values, weights, caches");
    refused_line("add(«7)", "expected `%value`, `@weight` or `#cache`, found `7`");
    refused_line("add(%x) layer «one", "expected the number of a layer, found `one`");
    refused_line("%y: f32[rows] = silu(%«y)", "value `%y` is not defined before this line");
    refused_line("weight @«w: f32[n=1] = \"w\"[1]", "weight `@w` is defined twice");
    refused_line("weight @v: «f32[rows] = \"w\"[1]", "every dimension of a weight needs a number");
    refused_line("weight @v: f32[n=1] = «%x", "expected a quoted tensor name, found `%`");
    refused_line("weight @v: f32[n=1] = \"w\"[«x]", "expected a number of rows, found `x`");
    refused_line(
        "weight @v: f32[n=1] = \"w\"[1] layout «odd",
        "expected `row_major` or `panels(…)`, found `odd`",
    );
    refused_line("weight @v: f32[n=1] = «9999999999 * (\"w\"[1])", "more than 1048576 tensors in one weight");
    refused_line("cache #k: «both f32", "expected `key` or `value`, found `both`");
    refused_line("cache #k: key f32[«heads=1", "expected `slots`, found `heads`");
}

fn element() -> impl Strategy<Value = Element> {
    prop_oneof![
        Just(Element::F32),
        Just(Element::Bf16),
        Just(Element::F16),
        Just(Element::I32),
        Just(Element::I8 { group: 64 }),
        Just(Element::I16 { group: 32 }),
    ]
}

/// Plain names, keywords and anything else.
fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{1,4}[0-9.]{0,3}", "rows|logit_rows|input|rope|layer|graph", any::<String>()]
}

fn dimension() -> impl Strategy<Value = Dimension> {
    let size = prop_oneof![any::<u64>().prop_map(Size::Constant), Just(Size::Rows), Just(Size::LogitRows)];
    (name(), size).prop_map(|(name, size)| Dimension { name, size })
}

fn tensor_type() -> impl Strategy<Value = TensorType> {
    (vec(dimension(), 0..4), element()).prop_map(|(dimensions, element)| TensorType { dimensions, element })
}

fn real() -> impl Strategy<Value = f32> {
    prop_oneof![any::<f32>(), Just(f32::INFINITY), Just(-0.0), Just(1e-45)]
        .prop_filter("a NaN has no one spelling", |value| !value.is_nan())
}

fn parts() -> impl Strategy<Value = Vec<WeightPart>> {
    let part = |tensor| WeightPart { tensor, rows: 3, padded_rows: 3 };
    let any_parts = vec((name(), any::<u64>(), any::<u64>()), 1..4).prop_map(|parts| {
        let part = |(tensor, rows, padded_rows)| WeightPart { tensor, rows, padded_rows };
        parts.into_iter().map(part).collect()
    });
    let counted = (name(), 1..20_u64)
        .prop_map(move |(name, count)| (0..count).map(|n| part(format!("{name}.{n}"))).collect());
    prop_oneof![any_parts, counted]
}

fn weight() -> impl Strategy<Value = Weight> {
    let dimension = (name(), any::<u64>()).prop_map(|(name, size)| Dimension::constant(name, size));
    let quantization = (prop_oneof![Just(4), Just(8)], any::<u32>(), any::<bool>(), any::<bool>()).prop_map(
        |(bits, group, is_fine, has_minimum)| Quantization {
            scale: if is_fine { Element::F32 } else { Element::F16 },
            has_minimum,
            ..Quantization::signed(bits, group)
        },
    );
    let ty = (vec(dimension, 0..4), element(), option::of(quantization))
        .prop_map(|(dimensions, element, quantization)| WeightType { dimensions, element, quantization });
    let table = (vec(real(), 0..4), real()).prop_map(|(inverse_frequencies, attention_factor)| {
        WeightSource::RopeTable(RopeTable { inverse_frequencies, attention_factor })
    });
    let source =
        prop_oneof![parts().prop_map(WeightSource::Tensors), table, Just(WeightSource::UnresolvedRopeTable)];
    let layout = prop_oneof![
        Just(None),
        Just(Some(WeightLayout::RowMajor)),
        (any::<u32>(), any::<u32>(), any::<bool>()).prop_map(|(lanes, pair, separate_halves)| {
            Some(WeightLayout::Panels { lanes, pair, separate_halves })
        }),
    ];
    (name(), ty, any::<u64>(), source, layout).prop_map(|(name, ty, source_columns, source, layout)| Weight {
        name,
        ty,
        source_columns,
        source,
        layout,
    })
}

fn cache() -> impl Strategy<Value = (String, CacheType)> {
    let kind = prop_oneof![Just(CacheKind::Key), Just(CacheKind::Value)];
    (name(), kind, any::<[u64; 4]>(), element()).prop_map(|(name, kind, sizes, element)| {
        let [slots, kv_heads, context, head_dim] = sizes;
        (name, CacheType { kind, slots, kv_heads, context, head_dim, element })
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    let plain = [
        Operation::Embed,
        Operation::GatherRows,
        Operation::AddBias,
        Operation::WriteCache,
        Operation::CausalSoftmax,
        Operation::Add,
        Operation::Silu,
        Operation::Sigmoid,
        Operation::Multiply,
        Operation::SiluMultiply,
        Operation::ScaleRows,
        Operation::Softmax,
    ];
    let with_attributes = |(kind, count, number, one, two, three): (u32, u64, f32, bool, bool, bool)| {
        let number = Real(number);
        match kind {
            0 => Operation::RmsNorm { epsilon: number },
            1 => Operation::Matmul {
                norm: one.then_some(number),
                bias: one,
                residual: two,
                silu_multiply: three,
            },
            2 => Operation::Rotate { head_dim: count },
            3 => Operation::Scale { factor: number },
            4 => Operation::AttentionScores { heads: count, scale: number },
            5 => Operation::AttentionValues { heads: count, rounded: one },
            6 => Operation::Attention { heads: count, scale: number, rounded: one },
            7 => Operation::RotateAndWriteCache { heads: count, bias: one },
            8 => Operation::AddAndNorm { epsilon: number },
            9 => Operation::Slice { first: count },
            10 => Operation::TopK { k: count, normalize: one },
            11 => Operation::GroupRows { experts: count },
            12 => Operation::ExpertMatmul { grouped: one, silu_multiply: two },
            13 => Operation::ProjectAndWriteCache { heads: count, bias: one, norm: two.then_some(number) },
            14 => Operation::AttentionBlocks { heads: count, scale: number, rounded: one },
            15 => Operation::MergeBlocks { heads: count },
            _ => Operation::CombineExperts { residual: one },
        }
    };
    let attributes = (0..17_u32, any::<u64>(), real(), any::<bool>(), any::<bool>(), any::<bool>());
    prop_oneof![proptest::sample::select(plain.to_vec()), attributes.prop_map(with_attributes)]
}

/// Any graph whose operands are defined before, valid or not.
fn graph() -> impl Strategy<Value = Graph> {
    let values = || vec((name(), tensor_type()), 0..3);
    let picks = || vec(any::<prop::sample::Index>(), 0..3);
    let op = (operation(), proptest::option::of(any::<u64>()), picks(), picks(), picks(), values());
    (name(), values(), vec(weight(), 0..3), vec(cache(), 0..3), vec(op, 0..4), picks()).prop_map(
        |(name, inputs, weights, caches, operations, outputs)| {
            let mut graph = Graph { name, ..Graph::default() };
            // Numbered names are unique.
            for (name, ty) in inputs {
                let id = graph.add_value(format!("{name}{}", graph.values.len()), ty);
                graph.inputs.push(id);
            }
            for mut weight in weights {
                weight.name = format!("{}{}", weight.name, graph.weights.len());
                graph.add_weight(weight);
            }
            for (name, ty) in caches {
                graph.add_cache(format!("{name}{}", graph.caches.len()), ty);
            }
            let pick = |picks: Vec<prop::sample::Index>, count: usize| -> Vec<u32> {
                let chosen = picks.into_iter().filter(|_| count > 0);
                chosen.map(|index| index.index(count) as u32).collect()
            };
            for (operation, layer, inputs, weights, caches, outputs) in operations {
                let inputs = pick(inputs, graph.values.len()).into_iter().map(ValueId).collect();
                let weights = pick(weights, graph.weights.len()).into_iter().map(WeightId).collect();
                let caches = pick(caches, graph.caches.len()).into_iter().map(CacheId).collect();
                let mut add = |(name, ty)| graph.add_value(format!("{name}{}", graph.values.len()), ty);
                let outputs = outputs.into_iter().map(&mut add).collect();
                graph.operations.push(Op { operation, layer, inputs, weights, caches, outputs });
            }
            graph.outputs = pick(outputs, graph.values.len()).into_iter().map(ValueId).collect();
            graph
        },
    )
}

proptest! {
    #[test]
    fn any_graph_reads_back_equal(graph in graph()) {
        let text = print_graph(&graph);
        let read = parse_graph(&text);
        prop_assert_eq!(read.as_ref(), Ok(&graph), "{}", text);
        // Neither the verifier nor its messages panic on it.
        if let Err(error) = crate::verify(&graph) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in any::<String>()) {
        prop_assert!(parse_graph(&text).is_err());
        let inside = format!("graph t {{ {text}");
        let _ = parse_graph(&inside);
    }

    #[test]
    fn no_damage_makes_the_parser_panic(
        place in any::<prop::sample::Index>(),
        length in 0..20_usize,
        inserted in "[%@#{}(),=:*\"\\\\a-z0-9\n é]{0,6}",
    ) {
        let mut damaged: Vec<char> = TINY.chars().collect();
        let place = place.index(damaged.len());
        let end = (place + length).min(damaged.len());
        damaged.splice(place..end, inserted.chars());
        let damaged: String = damaged.into_iter().collect();
        match parse_graph(&damaged) {
            Ok(graph) => {
                let _ = crate::verify(&graph).map_err(|error| error.to_string());
            }
            Err(error) => prop_assert!(error.line > 0 && !error.to_string().is_empty()),
        }
    }
}

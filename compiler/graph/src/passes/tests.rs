//! Shared graphs of the passes' tests, and tests of the passes together.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use proptest::prelude::*;
use qwen2c_request::{Element, Operation, TargetDescription};

use super::{PASSES, PassContext, PassFunction, run_passes};
use crate::{
    ExpertConfig, Family, Graph, GraphOptions, Interpreter, ModelConfig, Rope, RopeScaling, SourceError,
    TensorSource, WeightStorage, build_graph, parse_graph, print_graph, verify,
};

/// A model of two layers, every width odd for a vector of 8.
pub(crate) fn tiny_config() -> ModelConfig {
    ModelConfig {
        name: "tiny".to_owned(),
        family: Family::Qwen2,
        hidden: 36,
        layers: 2,
        heads: 6,
        kv_heads: 2,
        head_dim: 6,
        intermediate: 50,
        vocabulary: 101,
        qkv_bias: true,
        tied_embedding: true,
        epsilon: 1e-6,
        rope: Rope { theta: 1e4, scaling: RopeScaling::None },
        max_context: 64,
        experts: None,
    }
}

/// The same with a dense and a sparse layer.
pub(crate) fn tiny_experts_config() -> ModelConfig {
    ModelConfig {
        family: Family::Qwen2Moe,
        tied_embedding: false,
        experts: Some(ExpertConfig {
            experts: 5,
            experts_per_token: 2,
            intermediate: 20,
            shared_intermediate: 28,
            normalize_weights: false,
            sparse_step: 2,
            dense_layers: Vec::new(),
        }),
        ..tiny_config()
    }
}

/// The target of all tests: 8 lanes, and a use for every pass but those that save launches.
static TARGET: LazyLock<TargetDescription> = LazyLock::new(|| TargetDescription {
    vector_lanes: 8,
    multiplies_integers: true,
    multiplies_bf16_pairs: true,
    splits_attention: true,
    has_own_memory: true,
    longest_fused_norm: 64,
    ..TargetDescription::default()
});

/// The context of all tests.
pub(super) fn context(config: &ModelConfig, max_rows: u64) -> PassContext<'_> {
    PassContext { config, target: &TARGET, max_rows }
}

/// Runs a pass on a graph in text form; both sides are verified. Gives the number of rewrites and the
/// graph in text form.
pub(super) fn rewrite(run: PassFunction, text: &str, max_rows: u64) -> (u64, String) {
    let mut graph = parse_graph(text).unwrap_or_else(|error| panic!("{error}"));
    verify(&graph).unwrap_or_else(|error| panic!("before the pass: {error}"));
    let config = tiny_config();
    let rewrites = run(&mut graph, &context(&config, max_rows));
    verify(&graph).unwrap_or_else(|error| panic!("after the pass: {error}"));
    (rewrites, print_graph(&graph))
}

/// An attention with biases, from the normalized input to the output projection.
pub(super) const ATTENTION: &str = r#"graph attention {
  input %x: bf16[rows, hidden=64]
  input %other: bf16[rows, hidden=64]
  input %position: i32[rows]
  input %slot: i32[rows]
  weight @rope: f32[context=64, head_dim=4] = rope(attention_factor=1.0, inverse_frequencies=[1.0, 0.01])
  weight @query.weight: bf16[query=16, hidden=64] = "q_proj.weight"[16]
  weight @query.bias: f32[query=16] = "q_proj.bias"[16]
  weight @key.weight: bf16[key=8, hidden=64] = "k_proj.weight"[8]
  weight @key.bias: f32[key=8] = "k_proj.bias"[8]
  weight @value.weight: bf16[value=8, hidden=64] = "v_proj.weight"[8]
  weight @value.bias: f32[value=8] = "v_proj.bias"[8]
  cache #key: key bf16[slots=1, kv_heads=2, context=64, head_dim=4]
  cache #value: value bf16[slots=1, kv_heads=2, context=64, head_dim=4]
  %query: f32[rows, query=16] = matmul(%x, @query.weight) layer 0
  %query.biased: f32[rows, query=16] = add_bias(%query, @query.bias) layer 0
  %key: f32[rows, key=8] = matmul(%x, @key.weight) layer 0
  %key.biased: f32[rows, key=8] = add_bias(%key, @key.bias) layer 0
  %value: f32[rows, value=8] = matmul(%x, @value.weight) layer 0
  %value.biased: f32[rows, value=8] = add_bias(%value, @value.bias) layer 0
  %query.rotated: f32[rows, query=16] = rotate(%query.biased, %position, @rope) {head_dim=4} layer 0
  %key.rotated: f32[rows, key=8] = rotate(%key.biased, %position, @rope) {head_dim=4} layer 0
  write_cache(%key.rotated, %position, %slot, #key) layer 0
  write_cache(%value.biased, %position, %slot, #value) layer 0
  %scores: f32[rows, heads=4, context=64] = attention_scores(%query.rotated, %position, %slot, #key) {heads=4, scale=0.5} layer 0
  %probabilities: f32[rows, heads=4, context=64] = causal_softmax(%scores, %position) layer 0
  %attention: bf16[rows, query=16] = attention_values(%probabilities, %position, %slot, #value) {heads=4} layer 0
  output %attention
}
"#;

/// A gated MLP.
pub(super) const MLP: &str = r#"graph mlp {
  input %h: f32[rows, hidden=64]
  input %x: bf16[rows, hidden=64]
  weight @gate.weight: bf16[intermediate=32, hidden=64] = "gate_proj.weight"[32]
  weight @up.weight: bf16[intermediate=32, hidden=64] = "up_proj.weight"[30 padded 32]
  weight @down.weight: bf16[hidden=64, intermediate=32] = "down_proj.weight"[64]
  %gate: f32[rows, intermediate=32] = matmul(%x, @gate.weight) layer 0
  %up: f32[rows, intermediate=32] = matmul(%x, @up.weight) layer 0
  %gate.activated: f32[rows, intermediate=32] = silu(%gate) layer 0
  %product: bf16[rows, intermediate=32] = multiply(%gate.activated, %up) layer 0
  %down: f32[rows, hidden=64] = matmul(%product, @down.weight) layer 0
  output %down
}
"#;

/// Routed experts, without their router.
pub(super) const EXPERTS: &str = r#"graph experts {
  input %h: f32[rows, hidden=64]
  input %x: bf16[rows, hidden=64]
  input %weights: f32[rows, choices=2]
  input %experts: i32[rows, choices=2]
  weight @experts.gate: bf16[experts=3, intermediate=32, hidden=64] = 3 * ("experts.{}.gate"[32])
  weight @experts.up: bf16[experts=3, intermediate=32, hidden=64] = 3 * ("experts.{}.up"[32])
  weight @experts.down: bf16[experts=3, hidden=64, intermediate=32] = 3 * ("experts.{}.down"[64])
  %gate: f32[rows, choices=2, intermediate=32] = expert_matmul(%x, %experts, @experts.gate) layer 0
  %up: f32[rows, choices=2, intermediate=32] = expert_matmul(%x, %experts, @experts.up) layer 0
  %gate.activated: f32[rows, choices=2, intermediate=32] = silu(%gate) layer 0
  %product: bf16[rows, choices=2, intermediate=32] = multiply(%gate.activated, %up) layer 0
  %down: f32[rows, choices=2, hidden=64] = expert_matmul(%product, %experts, @experts.down) layer 0
  %sum: f32[rows, hidden=64] = combine_experts(%down, %weights) layer 0
  output %sum
}
"#;

/// The product that ends a model.
pub(super) const HEAD: &str = r#"graph head {
  input %h: f32[rows, hidden=64]
  input %logit_rows: i32[logit_rows]
  weight @head.weight: f32[vocabulary=101, hidden=64] = "lm_head.weight"[101]
  %gathered: f32[logit_rows, hidden=64] = gather_rows(%h, %logit_rows)
  %logits: f32[logit_rows, vocabulary=101] = matmul(%gathered, @head.weight)
  output %logits
}
"#;

/// Elements that depend on the tensor's name and their place alone, between -1/4 and 1/4.
struct SeededSource;

impl TensorSource for SeededSource {
    fn read_rows(
        &self,
        tensor: &str,
        columns: u64,
        first_row: u64,
        out: &mut [f32],
    ) -> Result<(), SourceError> {
        // FNV-1a over the name, then a step of SplitMix64 for each element.
        let seed = tensor.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        for (index, out) in out.iter_mut().enumerate() {
            let place = first_row * columns + index as u64;
            let mut bits = seed.wrapping_add(place.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            *out = ((bits >> 40) as f32 / (1 << 24) as f32 - 0.5) / 2.0;
        }
        Ok(())
    }
}

/// The model's graph after the passes but the `disabled` ones.
pub(crate) fn passed(
    config: &ModelConfig,
    dtype: Element,
    max_rows: u64,
    disabled: &BTreeSet<&str>,
) -> Graph {
    passed_for(&context(config, max_rows), dtype, disabled)
}

fn passed_for(context: &PassContext<'_>, dtype: Element, disabled: &BTreeSet<&str>) -> Graph {
    let options =
        GraphOptions { dtype, storage: WeightStorage::Elements, context: 32, slots: 1, layers: None };
    let mut graph = build_graph(context.config, &options);
    let on_request = PASSES.iter().filter(|pass| !pass.by_default).map(|pass| pass.name);
    let disabled = disabled.iter().copied().chain(on_request).collect();
    run_passes(&mut graph, context, &disabled, &mut |_, _, _| {})
        .unwrap_or_else(|error| panic!("{error}: {}", error.cause));
    graph
}

/// Logits of a prompt of five rows, then of two more tokens one by one.
fn logits(graph: &Graph) -> Vec<f32> {
    let mut interpreter = Interpreter::new(graph, &SeededSource).expect("a valid graph");
    let mut logits =
        interpreter.step(&[3, 100, 7, 7, 41], &[0, 1, 2, 3, 4], &[0; 5], &[0, 4]).expect("a prompt");
    for (token, position) in [(55, 5), (9, 6)] {
        logits.extend(interpreter.step(&[token], &[position], &[0], &[0]).expect("a token"));
    }
    logits
}

/// `|found − expected| / |expected|`.
fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |value: f64| value * value;
    let difference: f64 =
        found.iter().zip(expected).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = expected.iter().map(|value| square(f64::from(*value))).sum();
    (difference / norm).sqrt()
}

fn optional_passes() -> Vec<&'static str> {
    PASSES.iter().filter(|pass| pass.optional && pass.by_default).map(|pass| pass.name).collect()
}

fn names(graph: &Graph) -> BTreeSet<&'static str> {
    graph.operations.iter().map(|op| op.operation.name()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever passes are switched off, the graph verifies and means the same.
    #[test]
    fn any_subset_of_passes_keeps_the_logits(
        selection in proptest::bits::u32::masked((1 << 18) - 1),
        is_sparse: bool,
        has_biases: bool,
        prefers_few_launches: bool,
        max_rows in prop_oneof![Just(1_u64), Just(8)],
    ) {
        let config = if is_sparse { tiny_experts_config() } else { tiny_config() };
        let config = ModelConfig { qkv_bias: has_biases, ..config };
        let optional = optional_passes();
        prop_assert_eq!(optional.len(), 18);
        let disabled: BTreeSet<&str> = optional
            .iter()
            .enumerate()
            .filter(|(index, _)| selection >> index & 1 == 1)
            .map(|(_, name)| *name)
            .collect();
        let unfused = passed(&config, Element::F32, max_rows, &optional.iter().copied().collect());
        let target = TargetDescription { prefers_few_launches, ..TARGET.clone() };
        let context = PassContext { target: &target, ..context(&config, max_rows) };
        let fused = passed_for(&context, Element::F32, &disabled);
        // Grouped experts hold tables for `max_rows` rows, a prompt of 5 needs 8.
        prop_assume!(max_rows == 8 || !names(&fused).contains("group_rows"));
        let (expected, found) = (logits(&unfused), logits(&fused));
        let error = relative_error(&found, &expected);
        prop_assert!(error < 1e-6, "relative error {} without {:?}", error, disabled);
        if disabled.contains("fold_constants") {
            // All other passes keep every operation's order.
            prop_assert_eq!(found, expected);
        }
    }
}

#[test]
fn a_fused_block_has_one_operation_per_kernel() {
    let graph = passed(&tiny_config(), Element::Bf16, 1, &BTreeSet::new());
    let block: Vec<&str> =
        graph.operations.iter().filter(|op| op.layer == Some(1)).map(|op| op.operation.name()).collect();
    assert_eq!(
        block,
        [
            "rms_norm",
            "matmul",
            "rotate_and_write_cache",
            "attention",
            "matmul",
            "rms_norm",
            "matmul",
            "matmul"
        ]
    );
    assert!(graph.operations.iter().all(|op| !matches!(op.operation, Operation::Slice { .. })));
}

/// On a device a dense block is five kernels for one row, and rounds where the unfused one does.
#[test]
fn few_launches_keep_every_rounding() {
    for config in [tiny_config(), tiny_experts_config()] {
        let rewrites = optional_passes().into_iter().filter(|name| *name != "fold_constants").collect();
        let unfused = passed(&config, Element::Bf16, 1, &rewrites);
        let target = TargetDescription {
            prefers_few_launches: true,
            multiplies_integers: false,
            multiplies_bf16_pairs: false,
            ..TARGET.clone()
        };
        let context = PassContext { target: &target, ..context(&config, 1) };
        let fused = passed_for(&context, Element::Bf16, &BTreeSet::new());
        assert_eq!(logits(&fused), logits(&unfused));
        let dense: Vec<&str> =
            fused.operations.iter().filter(|op| op.layer == Some(0)).map(|op| op.operation.name()).collect();
        let block = ["project_and_write_cache", "attention", "matmul", "matmul", "matmul"];
        assert_eq!(dense, block);
        // Experts read the normalized row.
        assert_eq!(names(&fused).contains("rms_norm"), config.experts.is_some());
    }
}

/// A token of a long text sees several blocks of the caches.
#[test]
fn an_attention_in_parts_means_the_same() {
    let config = ModelConfig { max_context: 600, ..tiny_config() };
    let graph = |disabled: &BTreeSet<&str>| {
        let options = GraphOptions {
            dtype: Element::Bf16,
            storage: WeightStorage::Elements,
            context: 600,
            slots: 1,
            layers: None,
        };
        let mut graph = build_graph(&config, &options);
        run_passes(&mut graph, &context(&config, 1), disabled, &mut |_, _, _| {}).expect("a valid graph");
        graph
    };
    let (whole, parts) = (graph(&BTreeSet::from(["split_attention"])), graph(&BTreeSet::new()));
    assert!(!names(&whole).contains("merge_blocks"));
    assert!(names(&parts).contains("merge_blocks") && !names(&parts).contains("attention"));
    let tokens: Vec<u32> = (0..550).map(|index| index * 7 % 101).collect();
    let positions: Vec<u32> = (0..550).collect();
    let logits = |graph: &Graph| {
        let mut interpreter = Interpreter::new(graph, &SeededSource).expect("a valid graph");
        let rows = [0, 255, 256, 549];
        interpreter.step(&tokens, &positions, &[0; 550], &rows).expect("a text")
    };
    // An attention's last bit may round its result, of bf16, to a neighbour.
    let error = relative_error(&logits(&parts), &logits(&whole));
    assert!(error < 1e-3, "relative error {error}");
}

#[test]
fn graphs_after_all_passes() {
    for (name, config) in [("dense", tiny_config()), ("experts", tiny_experts_config())] {
        for max_rows in [1, 8] {
            let graph = passed(&config, Element::Bf16, max_rows, &BTreeSet::new());
            insta::assert_snapshot!(format!("fused_{name}_rows{max_rows}"), print_graph(&graph));
        }
    }
}

#[test]
fn reports_tell_what_was_saved() {
    let config = tiny_config();
    let options = GraphOptions {
        dtype: Element::Bf16,
        storage: WeightStorage::Elements,
        context: 32,
        slots: 1,
        layers: None,
    };
    let mut graph = build_graph(&config, &options);
    let mut seen = Vec::new();
    let disabled = BTreeSet::from(["fuse_attention"]);
    let reports =
        run_passes(&mut graph, &context(&config, 1), &disabled, &mut |pass, _, _| seen.push(pass.name))
            .expect("a valid graph");
    let report = |name: &str| *reports.iter().find(|report| report.name == name).expect("all passes report");
    assert_eq!(reports.len(), PASSES.len());
    assert_eq!(seen.len(), PASSES.len() - 1);
    let attention = report("fuse_attention");
    assert_eq!((attention.enabled, attention.rewrites, attention.bytes_saved), (false, 0, 0));
    // Two layers add two sums each; a sum of 36 elements is written and read once less.
    assert_eq!(report("fuse_residual_into_projection").rewrites, 4);
    assert_eq!(report("fuse_residual_into_projection").bytes_saved, 4 * 2 * 36 * 4);
}

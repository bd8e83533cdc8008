//! Shared graphs of the passes' tests, and tests of the passes together.

use super::{PassContext, PassFunction};
use crate::{ExpertConfig, Family, ModelConfig, Rope, RopeScaling, parse_graph, print_graph, verify};

/// A model of two layers, every width odd for a vector of 8.
pub(super) fn tiny_config() -> ModelConfig {
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
pub(super) fn tiny_experts_config() -> ModelConfig {
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

/// The context of all tests: 8 lanes.
pub(super) fn context(config: &ModelConfig, max_rows: u64) -> PassContext<'_> {
    PassContext { config, target_lanes: 8, max_rows }
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

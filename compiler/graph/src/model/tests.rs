use qwen2c_request::{Element, Operation};

use super::{GraphOptions, WeightStorage, build_graph};
use crate::{ExpertConfig, Family, ModelConfig, Rope, RopeScaling, parse_graph, print_graph, verify};

/// Two layers, grouped heads, a tied head, sizes that no vector width divides.
fn tiny_dense() -> ModelConfig {
    ModelConfig {
        name: "tiny-dense".to_owned(),
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
        rope: Rope { theta: 1e6, scaling: RopeScaling::None },
        max_context: 64,
        experts: None,
    }
}

/// A dense layer and a sparse one.
fn tiny_experts() -> ModelConfig {
    ModelConfig {
        name: "tiny-experts".to_owned(),
        family: Family::Qwen2Moe,
        tied_embedding: false,
        experts: Some(ExpertConfig {
            experts: 30,
            experts_per_token: 3,
            intermediate: 20,
            shared_intermediate: 28,
            normalize_weights: false,
            sparse_step: 2,
            dense_layers: Vec::new(),
        }),
        ..tiny_dense()
    }
}

fn options() -> GraphOptions {
    GraphOptions {
        dtype: Element::Bf16,
        storage: WeightStorage::Elements,
        context: 64,
        slots: 1,
        layers: None,
    }
}

#[test]
fn dense_graph_reads_like_the_model() {
    insta::assert_snapshot!(print_graph(&build_graph(&tiny_dense(), &options())));
}

#[test]
fn experts_graph_reads_like_the_model() {
    insta::assert_snapshot!(print_graph(&build_graph(&tiny_experts(), &options())));
}

#[test]
fn every_configuration_gives_a_valid_graph_that_comes_back_from_text() {
    let llama = ModelConfig { family: Family::Llama, qkv_bias: false, tied_embedding: false, ..tiny_dense() };
    for config in [tiny_dense(), tiny_experts(), llama] {
        for dtype in [Element::F32, Element::Bf16, Element::F16] {
            let graph = build_graph(&config, &GraphOptions { dtype, ..options() });
            verify(&graph).unwrap_or_else(|error| panic!("{}: {error}", config.name));
            assert_eq!(parse_graph(&print_graph(&graph)).as_ref(), Ok(&graph), "{}", config.name);
        }
    }
}

#[test]
fn a_model_without_biases_adds_none() {
    let config = ModelConfig { qkv_bias: false, ..tiny_dense() };
    let graph = build_graph(&config, &options());
    assert!(graph.operations.iter().all(|op| op.operation != Operation::AddBias));
    assert!(graph.weights.iter().all(|weight| !weight.name.ends_with("bias")));
}

#[test]
fn a_tied_head_reads_the_embedding() {
    let graph = build_graph(&tiny_dense(), &options());
    let (first, last) = (&graph.operations[0], graph.operations.last().expect("a head"));
    assert_eq!(first.operation, Operation::Embed);
    assert_eq!(first.weights, last.weights);
    assert!(graph.weights.iter().all(|weight| weight.name != "head"));
}

#[test]
fn chosen_layers_keep_their_numbers() {
    let graph = build_graph(&tiny_experts(), &GraphOptions { layers: Some(vec![1]), ..options() });
    verify(&graph).expect("a valid graph");
    let names: Vec<&str> = graph.caches.iter().map(|cache| cache.name.as_str()).collect();
    assert_eq!(names, ["layers.1.key", "layers.1.value"]);
    assert!(graph.operations.iter().all(|op| op.layer.is_none_or(|layer| layer == 1)));
}

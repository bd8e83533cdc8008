//! The graph's interpreter against HF transformers: the compiler's own reference must be right first.
//!
//! It runs the readers of checkpoints, the model's graph, and the graph as the passes leave it.

use std::collections::BTreeSet;

use qwen2c_checkpoint::Checkpoint;
use qwen2c_graph::passes::{PASSES, PassContext, run_passes};
use qwen2c_graph::{Graph, GraphOptions, Interpreter, WeightStorage, build_graph};
use qwen2c_request::{Element, TargetDescription};
use qwen2c_tests::{GOLDENS, Golden, relative_l2};

/// Lengths of the prompts: plain loops take their time.
const LONGEST_PROMPT: usize = 33;

/// The relative error over a prompt, run in chunks of 8 rows.
fn error_of(graph: &Graph, checkpoint: &Checkpoint, golden: &Golden, length: usize) -> f64 {
    let prompt = &golden.prompts[&length];
    let mut interpreter = Interpreter::new(graph, checkpoint).expect("a valid graph");
    let mut found = Vec::new();
    for (index, chunk) in prompt.tokens.chunks(8).enumerate() {
        let first = index as u32 * 8;
        let rows: Vec<u32> = (0..chunk.len() as u32).collect();
        let positions: Vec<u32> = rows.iter().map(|row| first + row).collect();
        found.extend(interpreter.step(chunk, &positions, &vec![0; rows.len()], &rows).expect("a step"));
    }
    relative_l2(&found, &prompt.logits.values)
}

fn graphs(checkpoint: &Checkpoint, dtype: Element) -> [(&'static str, Graph); 2] {
    let config = &checkpoint.description.config;
    let plain = build_graph(
        config,
        &GraphOptions { dtype, storage: WeightStorage::Elements, context: 64, slots: 1, layers: None },
    );
    let target = TargetDescription {
        vector_lanes: 8,
        multiplies_integers: true,
        multiplies_bf16_pairs: true,
        splits_attention: true,
        ..TargetDescription::default()
    };
    let run = |disabled: &BTreeSet<&str>| {
        let mut graph = plain.clone();
        let context = PassContext { config, target: &target, max_rows: 8 };
        run_passes(&mut graph, &context, disabled, &mut |_, _, _| {})
            .expect("the passes keep the graph valid");
        graph
    };
    let optional = PASSES.iter().filter(|pass| pass.optional).map(|pass| pass.name).collect();
    [("without optional passes", run(&optional)), ("fused", run(&BTreeSet::new()))]
}

fn assert_error(dtype: Element, tolerance: f64) {
    for name in GOLDENS {
        let golden = Golden::load(name);
        let checkpoint = Checkpoint::open(&golden.model()).unwrap_or_else(|error| panic!("{name}: {error}"));
        for (what, graph) in graphs(&checkpoint, dtype) {
            for &length in golden.prompts.keys().filter(|length| **length <= LONGEST_PROMPT) {
                let error = error_of(&graph, &checkpoint, &golden, length);
                assert!(error <= tolerance, "{name}, {dtype}, {what}, {length} tokens: off by {error:.3e}");
            }
        }
    }
}

#[test]
fn f32_agrees_with_the_reference() {
    assert_error(Element::F32, 1e-5);
}

#[test]
fn bf16_agrees_with_the_reference() {
    assert_error(Element::Bf16, 2e-2);
}

use std::collections::BTreeSet;

use qwen2c_request::{Element, WeightLayout};

use super::fake_target::{ALTERNATING, FakeTarget, PANELS};
use super::{ListSpec, Schedule, ScheduleError, print_schedule, schedule};
use crate::ModelConfig;
use crate::passes::tests::{passed, tiny_config, tiny_experts_config};

fn list(config: &ModelConfig, name: &str, max_rows: u64) -> ListSpec {
    let mut graph = passed(config, Element::Bf16, max_rows, &BTreeSet::new());
    name.clone_into(&mut graph.name);
    ListSpec { name: name.to_owned(), graph, max_rows, max_logit_rows: max_rows.min(4) }
}

fn lists(config: &ModelConfig) -> Vec<ListSpec> {
    vec![list(config, "decode", 1), list(config, "prefill", 8)]
}

fn layout_of(schedule: &Schedule, name: &str) -> Option<WeightLayout> {
    schedule.weights.iter().find(|weight| weight.name == name).expect("a weight of the model").layout
}

#[test]
fn schedules_of_both_families() {
    for (name, config) in [("dense", tiny_config()), ("experts", tiny_experts_config())] {
        let schedule = schedule(lists(&config), &FakeTarget::new()).expect("the fake target serves all");
        insta::assert_snapshot!(format!("schedule_{name}"), print_schedule(&schedule));
    }
}

#[test]
fn layers_share_their_kernels() {
    let kernels = |layers| {
        let config = ModelConfig { layers, ..tiny_config() };
        schedule(lists(&config), &FakeTarget::new()).expect("served").kernels.len()
    };
    assert_eq!(kernels(1), kernels(6));
}

#[test]
fn lists_share_what_the_target_would_make_alike() {
    let config = tiny_config();
    let mut lists = lists(&config);
    lists.push(list(&config, "prefill_16", 16));
    let schedule = schedule(lists, &FakeTarget::new()).expect("served");
    let names: Vec<&str> = schedule.kernels.iter().map(|kernel| kernel.name.as_str()).collect();
    let kernels_for_16 = |operation: &str| {
        names.iter().filter(|name| name.starts_with(operation) && name.ends_with("_rows16")).count()
    };
    assert_eq!(kernels_for_16("rms_norm"), 0, "{names:?}");
    assert_ne!(kernels_for_16("matmul"), 0, "{names:?}");
}

#[test]
fn the_head_s_norm_is_the_body_s() {
    let schedule = schedule(lists(&tiny_config()), &FakeTarget::new()).expect("served");
    let names: Vec<&str> = schedule.kernels.iter().map(|kernel| kernel.name.as_str()).collect();
    assert_eq!(names.iter().filter(|name| name.starts_with("rms_norm_36_rows1")).count(), 1, "{names:?}");
}

#[test]
fn names_are_unique_identifiers() {
    let schedule = schedule(lists(&tiny_experts_config()), &FakeTarget::new()).expect("served");
    let names: BTreeSet<&str> = schedule.kernels.iter().map(|kernel| kernel.name.as_str()).collect();
    assert_eq!(names.len(), schedule.kernels.len());
    for name in names {
        assert!(name.starts_with(|letter: char| letter.is_ascii_lowercase()), "{name}");
        assert!(name.chars().all(|letter| letter.is_ascii_alphanumeric() || "_.".contains(letter)), "{name}");
    }
}

#[test]
fn equal_names_are_told_apart() {
    let config = tiny_config();
    let mut lists = lists(&config);
    let mut other = list(&config, "half", 1);
    other.graph = passed(&config, Element::F16, 1, &BTreeSet::new());
    for weight in &mut other.graph.weights {
        weight.name.push_str(".half");
    }
    lists.push(other);
    let schedule = schedule(lists, &FakeTarget::new()).expect("served");
    let names: Vec<&str> = schedule.kernels.iter().map(|kernel| kernel.name.as_str()).collect();
    assert!(names.contains(&"embed_101x36_rows1"), "{names:?}");
    assert!(names.contains(&"embed_101x36_rows1.2"), "{names:?}");
}

#[test]
fn readers_of_a_weight_agree_on_a_layout() {
    let dense = schedule(lists(&tiny_config()), &FakeTarget::new()).expect("served");
    // Embed would rather read rows, but the tied head loses more by that.
    assert_eq!(layout_of(&dense, "embedding"), Some(PANELS));
    assert_eq!(layout_of(&dense, "layers.0.gate_up.weight"), Some(ALTERNATING));
    assert_eq!(layout_of(&dense, "layers.0.attention_norm"), Some(WeightLayout::RowMajor));
    let untied = ModelConfig { tied_embedding: false, ..tiny_config() };
    let untied = schedule(lists(&untied), &FakeTarget::new()).expect("served");
    assert_eq!(layout_of(&untied, "embedding"), Some(WeightLayout::RowMajor));
    // The graphs carry the choice too.
    let graph = &untied.lists[1].graph;
    assert!(graph.weights.iter().all(|weight| weight.layout.is_some()));
}

#[test]
fn readers_without_a_common_layout_are_named() {
    let mut lists = lists(&tiny_config());
    // Prefill reads a weight that decode reads in alternating panels.
    let graph = &mut lists[1].graph;
    let gate_up = graph.weights.iter().position(|weight| weight.name == "layers.0.gate_up.weight");
    let id = crate::WeightId(gate_up.expect("a merged weight") as u32);
    for op in &mut graph.operations {
        if op.weights == [id] {
            op.operation = qwen2c_request::Operation::Matmul {
                norm: None,
                bias: false,
                residual: false,
                silu_multiply: false,
            };
        }
    }
    let error = schedule(lists, &FakeTarget::new()).expect_err("no common layout");
    let ScheduleError::NoCommonLayout { weight, readers } = &error else { panic!("{error}") };
    assert_eq!(weight, "layers.0.gate_up.weight");
    assert_eq!(readers.len(), 2);
    assert_eq!(readers[0], "`matmul layers.0.product` of list `decode` reads panels(8, 2, separate_halves)");
}

#[test]
fn a_refused_operation_is_named() {
    let target = FakeTarget { refused: Some("attention"), ..FakeTarget::new() };
    let error = schedule(lists(&tiny_config()), &target).expect_err("refused");
    assert_eq!(
        error.to_string(),
        "target `fake` cannot serve `attention layers.0.attention` of list `decode`: there is no kernel for \
         `attention`"
    );
}

#[test]
fn lists_that_disagree_on_a_weight_are_named() {
    let mut lists = lists(&tiny_config());
    for weight in &mut lists[1].graph.weights {
        if weight.name == "layers.1.down.weight" {
            weight.source_columns -= 1;
        }
    }
    let error = schedule(lists, &FakeTarget::new()).expect_err("two weights of one name");
    let lists = ["decode".to_owned(), "prefill".to_owned()];
    assert_eq!(error, ScheduleError::WeightMismatch { weight: "layers.1.down.weight".to_owned(), lists });
}

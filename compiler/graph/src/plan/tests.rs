use std::collections::BTreeSet;

use proptest::prelude::*;
use qwen2c_request::Element;

use super::place_buffers::{Interval, pack};
use super::{
    ALIGNMENT_BYTES, CostSummary, Plan, PlanError, PlanViolation, Region, plan, print_plan, verify_plan,
};
use crate::ModelConfig;
use crate::passes::tests::{passed, tiny_config, tiny_experts_config};
use crate::schedule::fake_target::FakeTarget;
use crate::schedule::{ListSpec, RowAxis, Schedule, schedule};

/// Decode and a prompt of 8 rows.
fn lists(config: &ModelConfig, disabled: &BTreeSet<&str>) -> Vec<ListSpec> {
    [("decode", 1, 1), ("prefill", 8, 4)]
        .into_iter()
        .map(|(name, max_rows, max_logit_rows)| {
            let mut graph = passed(config, Element::Bf16, max_rows, disabled);
            name.clone_into(&mut graph.name);
            ListSpec { name: name.to_owned(), graph, max_rows, max_logit_rows }
        })
        .collect()
}

fn tiny_schedule(config: &ModelConfig) -> Schedule {
    schedule(lists(config, &BTreeSet::new()), &FakeTarget::new()).expect("the fake target serves all")
}

fn tiny_plan(config: &ModelConfig) -> Plan {
    plan(&tiny_schedule(config), &FakeTarget::new()).expect("a complete schedule")
}

#[test]
fn plans_of_both_families() {
    for (name, config) in [("dense", tiny_config()), ("experts", tiny_experts_config())] {
        let plan = tiny_plan(&config);
        assert_eq!(verify_plan(&plan), Ok(()));
        insta::assert_snapshot!(format!("plan_{name}"), print_plan(&plan));
    }
}

#[test]
fn steps_carry_their_operands_in_order() {
    let config = tiny_config();
    let schedule = tiny_schedule(&config);
    let plan = tiny_plan(&config);
    let decode = &plan.lists[0];
    assert_eq!(decode.body.len() + decode.head.len(), schedule.lists[0].graph.operations.len());
    // gather_rows, rms_norm, matmul, top_k
    assert_eq!(decode.head.len(), 4);
    assert!(decode.head.iter().all(|step| step.row_axis == RowAxis::LogitRows && step.layer.is_none()));
    assert!(decode.body.iter().all(|step| step.row_axis == RowAxis::Rows));

    let embed = &decode.body[0];
    let regions: Vec<Region> = embed.operands.iter().map(|operand| operand.region).collect();
    assert_eq!(regions, [Region::Arena, Region::Weights, Region::Arena]);
    assert_eq!(embed.operands[0].offset, plan.inputs.token);
    assert_eq!(embed.operands[0].bytes, 4);

    // input, position, slot, table, bias, two caches, output, and the fake target's workspace.
    let rotate = &decode.body[3];
    assert_eq!(schedule.kernels[rotate.kernel].request.operation.name(), "rotate_and_write_cache");
    assert_eq!(rotate.operands.len(), 9);
    assert_eq!(rotate.operands[8].bytes, 96);
    assert_eq!(rotate.layer, Some(0));

    let logits = decode.head[2].operands.last().expect("an output");
    assert_eq!(logits.offset, plan.inputs.logits);
    assert_eq!(logits.bytes, 4 * 101);
    let candidates = plan.inputs.candidates.expect("the decode list leaves them");
    assert_eq!(candidates.count, 64);
    let places: Vec<(u64, u64)> =
        decode.head[3].operands.iter().map(|operand| (operand.offset, operand.bytes)).collect();
    assert_eq!(places[..3], [(logits.offset, 4 * 101), (candidates.values, 256), (candidates.ids, 256)]);
    // One copy takes both.
    assert_eq!(candidates.ids, candidates.values + 256);
}

#[test]
fn shared_buffers_serve_the_largest_list() {
    let plan = tiny_plan(&tiny_config());
    let shared = |name: &str| {
        let mut found = plan.buffers.iter().filter(|buffer| buffer.name == name);
        let buffer = found.next().expect("a shared buffer");
        assert!(found.next().is_none(), "`{name}` is there once");
        assert_eq!(buffer.list, None);
        buffer
    };
    assert_eq!(shared("token").bytes, 8 * 4);
    assert_eq!(shared("logit_rows").bytes, 4 * 4);
    assert_eq!(shared("logits").bytes, 4 * 101 * 4);
    // Two layers with keys and values: a block of 256 positions, 2 heads of 6 elements, 2 bytes.
    assert_eq!(shared("layers.1.value").bytes, 256 * 2 * 6 * 2);
    assert_eq!(plan.kv_cache_bytes, 4 * 256 * 2 * 6 * 2);
}

#[test]
fn activations_of_the_lists_lie_over_each_other() {
    let plan = tiny_plan(&tiny_config());
    let end = |list: usize| {
        let ends = plan.buffers.iter().filter(|buffer| buffer.list == Some(list));
        ends.map(|buffer| buffer.offset + buffer.bytes).max().expect("buffers")
    };
    let first = |list: usize| {
        let offsets = plan.buffers.iter().filter(|buffer| buffer.list == Some(list));
        offsets.map(|buffer| buffer.offset).min().expect("buffers")
    };
    assert_eq!(first(0), first(1));
    assert_eq!(plan.arena_bytes, end(1).next_multiple_of(ALIGNMENT_BYTES));
    assert!(end(0) < end(1));
}

#[test]
fn prompts_have_phases_where_their_steps_run_together() {
    let mut target = FakeTarget::new();
    let schedule = tiny_schedule(&tiny_experts_config());
    let together = plan(&schedule, &target).expect("a complete schedule");
    target.description.joins_steps_of_prompts = false;
    let apart = plan(&schedule, &target).expect("a complete schedule");
    assert_eq!(verify_plan(&apart), Ok(()));
    let steps = |plan: &Plan, list: usize| plan.lists[list].body.len() + plan.lists[list].head.len();
    assert!(together.lists[1].phases() < steps(&together, 1));
    assert_eq!(apart.lists[1].phases(), steps(&apart, 1));
    assert_eq!(apart.lists[0], together.lists[0]);
    let in_use = |plan: &Plan| -> usize {
        let of_prompt = plan.buffers.iter().filter(|buffer| buffer.list == Some(1));
        of_prompt.map(|buffer| buffer.last_step - buffer.first_step).sum()
    };
    assert!(in_use(&apart) < in_use(&together), "{} steps", in_use(&apart));
}

#[test]
fn what_the_head_reads_stays_in_use_to_its_end() {
    let plan = tiny_plan(&tiny_config());
    for (index, list) in plan.lists.iter().enumerate() {
        let last = list.body.len() + list.head.len() - 1;
        let carried: Vec<&str> = plan
            .buffers
            .iter()
            .filter(|buffer| buffer.list == Some(index))
            .filter(|buffer| buffer.first_step < list.body.len() && buffer.last_step >= list.body.len())
            .map(|buffer| {
                assert_eq!(buffer.last_step, last);
                buffer.name.as_str()
            })
            .collect();
        assert_eq!(carried, ["layers.1.mlp_residual"]);
    }
}

#[test]
fn weights_lie_in_the_order_of_first_use() {
    let plan = tiny_plan(&tiny_config());
    let names: Vec<&str> = plan.weights.iter().map(|placed| placed.weight.name.as_str()).collect();
    assert_eq!(names[..3], ["embedding", "layers.0.attention_norm", "layers.0.qkv.weight"]);
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    let last = plan.weights.last().expect("weights");
    assert_eq!(plan.weight_bytes, last.offset + last.bytes);
}

#[test]
fn large_weights_begin_at_a_page() {
    let config = ModelConfig { vocabulary: 20_011, tied_embedding: false, ..tiny_config() };
    let plan = tiny_plan(&config);
    let head = plan.weights.iter().find(|placed| placed.weight.name == "head").expect("an untied head");
    assert!(head.bytes >= 1 << 20);
    assert_eq!(head.offset % 4096, 0);
}

#[test]
fn a_verifier_that_sees_nothing_would_pass_these() {
    let good = tiny_plan(&tiny_config());
    let activations: Vec<usize> =
        (0..good.buffers.len()).filter(|index| good.buffers[*index].list == Some(0)).collect();
    let (first, second) = (activations[0], activations[1]);

    let mut broken = good.clone();
    broken.buffers[second].offset = broken.buffers[first].offset;
    assert!(matches!(verify_plan(&broken), Err(PlanViolation::Overlap { .. })));

    let mut broken = good.clone();
    broken.buffers[first].offset = broken.inputs.logits;
    assert!(matches!(verify_plan(&broken), Err(PlanViolation::Overlap { .. })));

    let mut broken = good.clone();
    broken.buffers[first].offset += 4;
    assert!(matches!(verify_plan(&broken), Err(PlanViolation::Misaligned { .. })));

    let mut broken = good.clone();
    broken.arena_bytes -= ALIGNMENT_BYTES;
    assert!(matches!(verify_plan(&broken), Err(PlanViolation::OutOfRegion { .. })));

    let mut broken = good.clone();
    broken.weights[1].offset = 0;
    assert!(matches!(verify_plan(&broken), Err(PlanViolation::Overlap { .. })));

    let mut broken = good.clone();
    broken.buffers[first].last_step = 0;
    let violation = verify_plan(&broken);
    assert_eq!(
        violation,
        Err(PlanViolation::UnbackedOperand { list: "decode".to_owned(), step: 1, operand: 0 })
    );

    let mut broken = good.clone();
    let carried = broken.buffers.iter_mut().find(|buffer| buffer.name == "layers.1.mlp_residual");
    carried.expect("read by the head").last_step -= 1;
    assert!(matches!(verify_plan(&broken), Err(PlanViolation::LostInHead { .. })));

    let mut broken = good.clone();
    broken.lists[0].body[1].joins_previous = true;
    assert!(matches!(verify_plan(&broken), Err(PlanViolation::Race { steps: [0, 1], .. })));

    let mut broken = good.clone();
    broken.lists[0].body[0].joins_previous = true;
    let violation = verify_plan(&broken);
    assert_eq!(violation, Err(PlanViolation::JoinsNothing { list: "decode".to_owned(), step: 0 }));

    let mut broken = good.clone();
    let step = broken.lists[0].body.len();
    broken.lists[0].head[0].joins_previous = true;
    let violation = verify_plan(&broken);
    assert_eq!(violation, Err(PlanViolation::JoinsNothing { list: "decode".to_owned(), step }));

    let mut broken = good;
    broken.buffers[first].list = Some(9);
    assert!(matches!(verify_plan(&broken), Err(PlanViolation::UnknownList { .. })));
}

#[test]
fn a_list_without_the_runtime_s_inputs_is_refused() {
    let mut lists = lists(&tiny_config(), &BTreeSet::new());
    let token = lists[1].graph.inputs[2];
    lists[1].graph.values[token.0 as usize].name = "other".to_owned();
    let schedule = schedule(lists, &FakeTarget::new()).expect("the fake target serves all");
    let error = plan(&schedule, &FakeTarget::new()).expect_err("no slot");
    assert_eq!(error, PlanError::MissingInput { name: "slot", list: "prefill".to_owned() });
}

#[test]
fn a_cache_of_two_sizes_is_refused() {
    let mut lists = lists(&tiny_config(), &BTreeSet::new());
    lists[1].graph.caches[2].ty.context = 512;
    let schedule = schedule(lists, &FakeTarget::new()).expect("the fake target serves all");
    let error = plan(&schedule, &FakeTarget::new()).expect_err("two sizes");
    let (name, list) = ("layers.1.key".to_owned(), "prefill".to_owned());
    assert_eq!(error, PlanError::SharedBufferMismatch { name, list });
}

#[test]
fn costs_add_up_over_body_and_head() {
    let plan = tiny_plan(&tiny_config());
    let list = &plan.lists[0];
    let summary = CostSummary::new(list);
    let steps = || list.body.iter().chain(&list.head);
    let fixed: u64 = steps().map(|step| step.cost.fixed_bytes).sum();
    let per_row: u64 = steps().map(|step| step.cost.bytes_per_row).sum();
    let per_position: u64 = steps().map(|step| step.cost.bytes_per_row_and_position).sum();
    assert!(per_position > 0);
    assert_eq!(summary.bytes(1, 1, 10), fixed + per_row + 10 * per_position);
    assert_eq!(summary.bytes(1, 0, 0) - summary.bytes(0, 0, 0), summary.body.bytes_per_row);
}

fn share_a_step(first: &Interval, second: &Interval) -> bool {
    first.first_step.max(second.first_step) <= first.last_step.min(second.last_step)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// No two intervals that share a step share a byte, and the arena is no larger than their sum and no
    /// smaller than what one step needs.
    #[test]
    fn packed_intervals_never_overlap(
        drawn in proptest::collection::vec((0_u64..5000, 0_usize..40, 0_usize..20), 0..60)
    ) {
        let intervals: Vec<Interval> = drawn
            .into_iter()
            .map(|(bytes, first_step, length)| Interval { bytes, first_step, last_step: first_step + length })
            .collect();
        let offsets = pack(&intervals).expect("small numbers");
        for (index, first) in intervals.iter().enumerate() {
            prop_assert!(offsets[index].is_multiple_of(ALIGNMENT_BYTES));
            for (other, second) in intervals.iter().enumerate().skip(index + 1) {
                let is_apart = offsets[index] + first.bytes <= offsets[other]
                    || offsets[other] + second.bytes <= offsets[index];
                prop_assert!(is_apart || !share_a_step(first, second) || first.bytes == 0 || second.bytes == 0);
            }
        }
        let end = intervals.iter().zip(&offsets).map(|(interval, offset)| offset + interval.bytes).max();
        let sum: u64 = intervals.iter().map(|interval| interval.bytes.next_multiple_of(ALIGNMENT_BYTES)).sum();
        prop_assert!(end.unwrap_or(0) <= sum);
    }

    /// Any subset of the passes gives graphs that can be scheduled and planned.
    #[test]
    fn any_subset_of_passes_can_be_planned(selection: u32, is_sparse: bool) {
        let config = if is_sparse { tiny_experts_config() } else { tiny_config() };
        let optional = crate::passes::PASSES.iter().filter(|pass| pass.optional).enumerate();
        let disabled: BTreeSet<&str> =
            optional.filter(|(index, _)| selection >> index & 1 == 1).map(|(_, pass)| pass.name).collect();
        let schedule = schedule(lists(&config, &disabled), &FakeTarget::new()).expect("served");
        let plan = plan(&schedule, &FakeTarget::new()).expect("a complete schedule");
        prop_assert_eq!(verify_plan(&plan), Ok(()));
    }
}

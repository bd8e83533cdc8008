//! The plan in the terms of the program format.
//!
//! Graph and format do not know each other: what a plan says is translated here, one to one.

use qwen2c_checkpoint::{ModelDescription, parameter_count};
use qwen2c_format::{
    CandidateOffsets, DeviceCode, DeviceImage, ImageKind, InputOffsets, KernelInfo, Launch, Manifest,
    ModelSummary, Operand, PassRecord, PersistentKernel, Region, RowAxis, SelfTestRecord, Step, StepCost,
    StepList, StepLists, WeightEntry,
};
use qwen2c_graph::passes::PassReport;
use qwen2c_graph::plan::{self, PlacedWeight, Plan, PlannedList, PlannedOperand, PlannedStep};
use qwen2c_graph::schedule::{self, Schedule};
use qwen2c_request::{Cost, Element, TargetDescription};
use qwen2c_targets::CompiledKernels;

use crate::quant::Quant;

/// Compiler name and version, as in the manifest.
pub(crate) const BUILD: &str = concat!("qwen2c ", env!("CARGO_PKG_VERSION"));

/// Sequences served at once.
pub(crate) const SLOTS: u64 = 1;

/// The step lists, the names of their kernels, and how a device runs them.
pub(crate) fn step_lists(schedule: &Schedule, plan: &Plan, compiled: &CompiledKernels) -> StepLists {
    let launches = |index: usize| {
        let of_kernel = compiled.launches.get(index).into_iter().flatten();
        of_kernel.map(launch).collect()
    };
    let kernels = schedule.kernels.iter().enumerate();
    StepLists {
        kernels: kernels
            .map(|(index, kernel)| KernelInfo { name: kernel.name.clone(), launches: launches(index) })
            .collect(),
        lists: plan.lists.iter().map(step_list).collect(),
        persistent: compiled.persistent.as_ref().map(|kernel| PersistentKernel {
            symbol: kernel.symbol.clone(),
            threads: kernel.threads,
            shared_bytes: kernel.shared_bytes,
            row_words: kernel.row_words,
        }),
    }
}

fn launch(launch: &qwen2c_targets::Launch) -> Launch {
    Launch {
        symbol: launch.symbol.clone(),
        blocks: launch.blocks,
        rows_per_block: launch.rows_per_block,
        threads: launch.threads,
        shared_bytes: launch.shared_bytes,
    }
}

/// What a device can run.
pub(crate) fn device_code(compiled: &CompiledKernels) -> DeviceCode {
    let image = |image: &qwen2c_targets::DeviceImage| DeviceImage {
        architecture: image.architecture,
        kind: ImageKind::Ptx,
        bytes: image.ptx.clone().into_bytes(),
    };
    DeviceCode { images: compiled.images.iter().map(image).collect() }
}

fn step_list(list: &PlannedList) -> StepList {
    StepList {
        name: list.name.clone(),
        max_rows: narrow(list.max_rows),
        max_logit_rows: narrow(list.max_logit_rows),
        body: list.body.iter().map(step).collect(),
        head: list.head.iter().map(step).collect(),
    }
}

fn step(step: &PlannedStep) -> Step {
    Step {
        kernel: narrow(step.kernel as u64),
        layer: step.layer.map(narrow),
        row_axis: match step.row_axis {
            schedule::RowAxis::Rows => RowAxis::Rows,
            schedule::RowAxis::LogitRows => RowAxis::LogitRows,
        },
        operands: step.operands.iter().map(operand).collect(),
        joins_previous: step.joins_previous,
        cost: step_cost(&step.cost),
    }
}

fn operand(operand: &PlannedOperand) -> Operand {
    Operand {
        region: match operand.region {
            plan::Region::Arena => Region::Arena,
            plan::Region::Weights => Region::Weights,
        },
        offset: operand.offset,
        bytes: operand.bytes,
    }
}

fn step_cost(cost: &Cost) -> StepCost {
    StepCost {
        fixed_bytes: cost.fixed_bytes,
        bytes_per_row: cost.bytes_per_row,
        bytes_per_row_and_position: cost.bytes_per_row_and_position,
        operations_per_row: cost.operations_per_row,
        operations_per_row_and_position: cost.operations_per_row_and_position,
    }
}

/// Counts of rows, kernels and layers, all of them far below 2³².
fn narrow(count: u64) -> u32 {
    u32::try_from(count).expect("rows, kernels and layers are fewer than 2^32")
}

/// A weight's entry in the table.
pub(crate) fn weight_entry(placed: &PlacedWeight, sha256: [u8; 32]) -> WeightEntry {
    WeightEntry {
        name: placed.weight.name.clone(),
        ty: placed.weight.ty.to_string(),
        layout: placed.layout.to_string(),
        offset: placed.offset,
        bytes: placed.bytes,
        sha256,
    }
}

/// Facts of a build that come from different stages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ManifestParts<'a> {
    /// The checkpoint.
    pub(crate) description: &'a ModelDescription,
    /// The target.
    pub(crate) target: &'a TargetDescription,
    /// Type of activations.
    pub(crate) dtype: Element,
    /// How the weights are stored.
    pub(crate) quant: Quant,
    /// Positions served.
    pub(crate) context: u64,
    /// What the passes did to the decode list.
    pub(crate) passes: &'a [PassReport],
    /// The plan.
    pub(crate) plan: &'a Plan,
}

/// The manifest.
pub(crate) fn manifest(parts: &ManifestParts<'_>, self_test: Option<SelfTestRecord>) -> Manifest {
    let ManifestParts { description, target, dtype, quant, context, passes, plan } = *parts;
    Manifest {
        build: BUILD.to_owned(),
        model: model_summary(description),
        target: target.name.clone(),
        family: target.family.to_owned(),
        required_features: target.required_features.iter().map(|&feature| feature.to_owned()).collect(),
        quant: quant.to_string(),
        dtype: dtype.name().to_owned(),
        context,
        slots: SLOTS,
        weight_bytes: plan.weight_bytes,
        kv_cache_bytes: plan.kv_cache_bytes,
        arena_bytes: plan.arena_bytes,
        inputs: InputOffsets {
            token: plan.inputs.token,
            position: plan.inputs.position,
            slot: plan.inputs.slot,
            logit_rows: plan.inputs.logit_rows,
            logits: plan.inputs.logits,
            candidates: plan.inputs.candidates.map(|candidates| CandidateOffsets {
                count: candidates.count,
                values: candidates.values,
                ids: candidates.ids,
            }),
        },
        generation: description.generation.clone(),
        chat_template: description.chat_template.clone(),
        template_tokens: description.template_tokens.clone(),
        passes: passes.iter().map(pass_record).collect(),
        self_test,
    }
}

fn model_summary(description: &ModelDescription) -> ModelSummary {
    let config = &description.config;
    let experts = config.experts.as_ref();
    ModelSummary {
        name: config.name.clone(),
        architecture: config.family.name().to_owned(),
        parameters: parameter_count(config),
        hidden: config.hidden,
        layers: config.layers,
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        vocabulary: config.vocabulary,
        experts: experts.map_or(0, |experts| experts.experts),
        experts_per_token: experts.map_or(0, |experts| experts.experts_per_token),
    }
}

fn pass_record(report: &PassReport) -> PassRecord {
    PassRecord {
        name: report.name.to_owned(),
        rewrites: report.rewrites,
        bytes_saved: report.bytes_saved,
        enabled: report.enabled,
    }
}

/// The manifest for people, as `--emit manifest` and `inspect` show it: without the self-test's logits,
/// which are hundreds of numbers that say nothing.
pub(crate) fn manifest_text(manifest: &Manifest) -> String {
    let self_test =
        manifest.self_test.as_ref().map(|record| SelfTestRecord { logits: Vec::new(), ..record.clone() });
    let manifest = Manifest { self_test, ..manifest.clone() };
    serde_json::to_string_pretty(&manifest).expect("a manifest has no maps with odd keys") + "\n"
}

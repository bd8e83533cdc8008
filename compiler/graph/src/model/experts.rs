//! Mixture of experts: each row goes through the `k` experts that the router finds most probable, and
//! through a shared expert scaled by a gate of its own:
//! `h + Σ p_e · expert_e(x) + sigmoid(shared_gate(x)) · shared(x)`.

use qwen2c_request::{Dimension, Element, Operation, TensorType};

use super::builder::{Builder, MATMUL};
use super::mlp;
use crate::{ExpertConfig, ValueId};

/// Adds the sparse MLP half of a block; returns the residual stream behind it.
///
/// A configuration without experts, which no sparse layer has, gives a dense MLP.
pub(super) fn block(builder: &mut Builder<'_>, hidden: ValueId) -> ValueId {
    let Some(experts) = &builder.config.experts else {
        return mlp::block(builder, hidden);
    };
    let x = builder.norm("mlp_norm", hidden, "post_attention_layernorm.weight");
    let (weights, chosen) = route(builder, x, experts);
    let routed = routed_experts(builder, x, weights, chosen, experts);
    let shared = shared_expert(builder, x, experts);
    let sum = builder.add("experts_and_shared", routed, shared);
    builder.add("mlp_residual", hidden, sum)
}

/// Softmax over all experts, then the `k` largest: their probabilities and numbers, `[rows, k]`.
fn route(builder: &mut Builder<'_>, x: ValueId, experts: &ExpertConfig) -> (ValueId, ValueId) {
    let all = ("experts", experts.experts);
    let k = experts.experts_per_token;
    let weight = builder.exact_matrix("router", [all, ("hidden", builder.config.hidden)], "mlp.gate.weight");
    let ty = builder.rows_of(all.0, all.1);
    let logits = builder.apply("router", MATMUL, &[x], &[weight], ty.clone());
    let probabilities = builder.apply("router.probabilities", Operation::Softmax, &[logits], &[], ty);
    let weights = builder.rows_of("choices", k);
    let chosen = TensorType { element: Element::I32, ..weights.clone() };
    let results = builder.apply_to_caches(
        Operation::TopK { k, normalize: experts.normalize_weights },
        &[probabilities],
        &[],
        &[],
        &[("router.weights", weights), ("router.experts", chosen)],
    );
    (results[0], results[1])
}

/// `Σ p_e · down_e(silu(gate_e(x)) * up_e(x))` over the chosen experts of each row.
fn routed_experts(
    builder: &mut Builder<'_>,
    x: ValueId,
    weights: ValueId,
    chosen: ValueId,
    experts: &ExpertConfig,
) -> ValueId {
    let (all, hidden) = (("experts", experts.experts), ("hidden", builder.config.hidden));
    let width = ("intermediate", experts.intermediate);
    let product_of = Operation::ExpertMatmul { grouped: false, silu_multiply: false };
    let choices_of = |(name, size): (&str, u64)| TensorType {
        dimensions: vec![
            Dimension::rows(),
            Dimension::constant("choices", experts.experts_per_token),
            Dimension::constant(name, size),
        ],
        element: Element::F32,
    };
    let tensor = |name: &'static str| move |expert: u64| format!("mlp.experts.{expert}.{name}.weight");

    let gate = builder.expert_matrices("experts.gate", [all, width, hidden], tensor("gate_proj"));
    let up = builder.expert_matrices("experts.up", [all, width, hidden], tensor("up_proj"));
    let down = builder.expert_matrices("experts.down", [all, hidden, width], tensor("down_proj"));

    let ty = choices_of(width);
    let gate = builder.apply("experts.gate", product_of.clone(), &[x, chosen], &[gate], ty.clone());
    let up = builder.apply("experts.up", product_of.clone(), &[x, chosen], &[up], ty.clone());
    let activated = builder.apply("experts.gate.activated", Operation::Silu, &[gate], &[], ty.clone());
    let rounded = builder.rounded(ty);
    let product = builder.apply("experts.product", Operation::Multiply, &[activated, up], &[], rounded);
    let down = builder.apply("experts.down", product_of, &[product, chosen], &[down], choices_of(hidden));
    let combine = Operation::CombineExperts { residual: false };
    let ty = builder.rows_of(hidden.0, hidden.1);
    builder.apply("experts.sum", combine, &[down, weights], &[], ty)
}

/// `sigmoid(shared_gate(x)) · shared(x)`
fn shared_expert(builder: &mut Builder<'_>, x: ValueId, experts: &ExpertConfig) -> ValueId {
    let hidden = ("hidden", builder.config.hidden);
    let width = ("intermediate", experts.shared_intermediate);
    let down = mlp::gated(builder, "shared.", x, width, "mlp.shared_expert");
    let weight =
        builder.exact_matrix("shared_gate", [("factor", 1), hidden], "mlp.shared_expert_gate.weight");
    let factor_ty = builder.rows_of("factor", 1);
    let gate = builder.apply("shared_gate", MATMUL, &[x], &[weight], factor_ty.clone());
    let factor = builder.apply("shared_gate.factor", Operation::Sigmoid, &[gate], &[], factor_ty);
    let ty = builder.rows_of(hidden.0, hidden.1);
    builder.apply("shared.scaled", Operation::ScaleRows, &[down, factor], &[], ty)
}

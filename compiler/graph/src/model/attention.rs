//! Attention with rotary positions and shared key and value heads:
//! `h + output(softmax(rotate(q) · rotate(k)ᵀ / √head_dim) · v)`.

use qwen2c_request::{CacheKind, Dimension, Element, Operation, Real, TensorType};

use super::builder::{Builder, Extent};
use crate::ValueId;

/// Adds the attention half of a block; returns the residual stream behind it.
pub(super) fn block(builder: &mut Builder<'_>, hidden: ValueId) -> ValueId {
    let config = builder.config;
    let (heads, head_dim) = (config.heads, config.head_dim);
    let (position, slot) = (builder.position, builder.slot);
    let query_width = ("query", heads * head_dim);

    let x = builder.norm("attention_norm", hidden, "input_layernorm.weight");
    let query = projection(builder, "query", x, query_width, "self_attn.q_proj");
    let key = projection(builder, "key", x, ("key", config.kv_heads * head_dim), "self_attn.k_proj");
    let value = projection(builder, "value", x, ("value", config.kv_heads * head_dim), "self_attn.v_proj");
    let query = rotate(builder, "query.rotated", query, query_width);
    let key = rotate(builder, "key.rotated", key, ("key", config.kv_heads * head_dim));

    let key_cache = builder.cache("key", CacheKind::Key);
    let value_cache = builder.cache("value", CacheKind::Value);
    builder.apply_to_caches(Operation::WriteCache, &[key, position, slot], &[], &[key_cache], &[]);
    builder.apply_to_caches(Operation::WriteCache, &[value, position, slot], &[], &[value_cache], &[]);

    let factor = Real((1.0 / (head_dim as f64).sqrt()) as f32);
    let ty = builder.rows_of(query_width.0, query_width.1);
    let query = builder.apply("query.scaled", Operation::Scale { factor }, &[query], &[], ty.clone());

    let scores_ty = scores_type(builder);
    let scores = builder.apply_to_caches(
        Operation::AttentionScores { heads, scale: Real(1.0) },
        &[query, position, slot],
        &[],
        &[key_cache],
        &[("scores", scores_ty.clone())],
    )[0];
    let probabilities =
        builder.apply("probabilities", Operation::CausalSoftmax, &[scores, position], &[], scores_ty);
    let attention_ty = builder.rounded(ty);
    let attention = builder.apply_to_caches(
        Operation::AttentionValues { heads, rounded: false },
        &[probabilities, position, slot],
        &[],
        &[value_cache],
        &[("attention", attention_ty)],
    )[0];

    let extents = [("hidden", config.hidden), query_width];
    let output = builder.linear("output", attention, extents, "self_attn.o_proj.weight");
    builder.add("attention_residual", hidden, output)
}

/// `x · wᵀ (+ bias)`
fn projection(builder: &mut Builder<'_>, name: &str, x: ValueId, width: Extent, tensor: &str) -> ValueId {
    let extents = [width, ("hidden", builder.config.hidden)];
    let product = builder.linear(name, x, extents, &format!("{tensor}.weight"));
    if !builder.config.qkv_bias {
        return product;
    }
    let bias = builder.vector(&format!("{name}.bias"), width, &format!("{tensor}.bias"));
    let ty = builder.rows_of(width.0, width.1);
    builder.apply(&format!("{name}.biased"), Operation::AddBias, &[product], &[bias], ty)
}

fn rotate(builder: &mut Builder<'_>, name: &str, x: ValueId, width: Extent) -> ValueId {
    let operation = Operation::Rotate { head_dim: builder.config.head_dim };
    let ty = builder.rows_of(width.0, width.1);
    builder.apply(name, operation, &[x, builder.position], &[builder.rope], ty)
}

/// `f32[rows, heads, context]`
fn scores_type(builder: &Builder<'_>) -> TensorType {
    let context = builder.graph.weight(builder.rope).ty.dimensions[0].clone();
    let heads = Dimension::constant("heads", builder.config.heads);
    TensorType { dimensions: vec![Dimension::rows(), heads, context], element: Element::F32 }
}

//! The gated MLP (Shazeer 2020): `h + down(silu(gate(x)) * up(x))`.

use qwen2c_request::Operation;

use super::builder::{Builder, Extent};
use crate::ValueId;

/// Adds the dense MLP half of a block; returns the residual stream behind it.
pub(super) fn block(builder: &mut Builder<'_>, hidden: ValueId) -> ValueId {
    let x = builder.norm("mlp_norm", hidden, "post_attention_layernorm.weight");
    let down = gated(builder, "", x, ("intermediate", builder.config.intermediate), "mlp");
    builder.add("mlp_residual", hidden, down)
}

/// `down(silu(gate(x)) * up(x))`; names start with `prefix`, tensors with `tensor`.
pub(super) fn gated(
    builder: &mut Builder<'_>,
    prefix: &str,
    x: ValueId,
    width: Extent,
    tensor: &str,
) -> ValueId {
    let hidden = ("hidden", builder.config.hidden);
    let name = |name: &str| format!("{prefix}{name}");
    let gate = builder.linear(&name("gate"), x, [width, hidden], &format!("{tensor}.gate_proj.weight"));
    let up = builder.linear(&name("up"), x, [width, hidden], &format!("{tensor}.up_proj.weight"));
    let ty = builder.rows_of(width.0, width.1);
    let activated = builder.apply(&name("gate.activated"), Operation::Silu, &[gate], &[], ty.clone());
    let rounded = builder.rounded(ty);
    let product = builder.apply(&name("product"), Operation::Multiply, &[activated, up], &[], rounded);
    builder.linear(&name("down"), product, [hidden, width], &format!("{tensor}.down_proj.weight"))
}

//! The tensors that a configuration calls for.

use qwen2c_graph::ModelConfig;

/// Called with a tensor's canonical name and shape.
pub(crate) type Visit<'a, E> = dyn FnMut(&str, &[u64]) -> Result<(), E> + 'a;

/// Calls `visit` with the canonical name and the shape of every tensor of the model, in the order of the
/// forward pass, and stops at the first error.
///
/// The names are not collected: a mixture of experts has tens of thousands.
pub(crate) fn each_expected_tensor<E>(config: &ModelConfig, visit: &mut Visit<'_, E>) -> Result<(), E> {
    visit("model.embed_tokens.weight", &[config.vocabulary, config.hidden])?;
    for layer in 0..config.layers {
        let prefix = format!("model.layers.{layer}");
        visit(&format!("{prefix}.input_layernorm.weight"), &[config.hidden])?;
        each_attention_tensor(config, &prefix, visit)?;
        visit(&format!("{prefix}.post_attention_layernorm.weight"), &[config.hidden])?;
        match &config.experts {
            Some(_) if config.is_sparse(layer) => each_expert_tensor(config, &prefix, visit)?,
            _ => each_mlp_tensor(&format!("{prefix}.mlp"), config.hidden, config.intermediate, visit)?,
        }
    }
    visit("model.norm.weight", &[config.hidden])?;
    if !config.tied_embedding {
        visit("lm_head.weight", &[config.vocabulary, config.hidden])?;
    }
    Ok(())
}

/// Projections of a block's attention.
fn each_attention_tensor<E>(config: &ModelConfig, prefix: &str, visit: &mut Visit<'_, E>) -> Result<(), E> {
    let query = config.heads * config.head_dim;
    let key_value = config.kv_heads * config.head_dim;
    for (projection, rows) in [("q_proj", query), ("k_proj", key_value), ("v_proj", key_value)] {
        visit(&format!("{prefix}.self_attn.{projection}.weight"), &[rows, config.hidden])?;
        if config.qkv_bias {
            visit(&format!("{prefix}.self_attn.{projection}.bias"), &[rows])?;
        }
    }
    visit(&format!("{prefix}.self_attn.o_proj.weight"), &[config.hidden, query])
}

/// The three projections of an MLP.
fn each_mlp_tensor<E>(
    prefix: &str,
    hidden: u64,
    intermediate: u64,
    visit: &mut Visit<'_, E>,
) -> Result<(), E> {
    visit(&format!("{prefix}.gate_proj.weight"), &[intermediate, hidden])?;
    visit(&format!("{prefix}.up_proj.weight"), &[intermediate, hidden])?;
    visit(&format!("{prefix}.down_proj.weight"), &[hidden, intermediate])
}

/// Router, routed experts and shared expert.
fn each_expert_tensor<E>(config: &ModelConfig, prefix: &str, visit: &mut Visit<'_, E>) -> Result<(), E> {
    let Some(experts) = &config.experts else {
        return Ok(());
    };
    visit(&format!("{prefix}.mlp.gate.weight"), &[experts.experts, config.hidden])?;
    for expert in 0..experts.experts {
        let expert_prefix = format!("{prefix}.mlp.experts.{expert}");
        each_mlp_tensor(&expert_prefix, config.hidden, experts.intermediate, visit)?;
    }
    let shared_prefix = format!("{prefix}.mlp.shared_expert");
    each_mlp_tensor(&shared_prefix, config.hidden, experts.shared_intermediate, visit)?;
    visit(&format!("{prefix}.mlp.shared_expert_gate.weight"), &[1, config.hidden])
}

//! Sizes that no model of the family has: a configuration beyond them is damaged or hostile.

use qwen2c_format::Diagnostic;
use qwen2c_graph::ModelConfig;

/// Largest context that is believed.
pub(crate) const MAX_CONTEXT: u64 = 1 << 24;

/// Checks every size against its limits, and the sizes against each other.
pub(crate) fn check_limits(config: &ModelConfig, place: &str) -> Result<(), Diagnostic> {
    let ranges = [
        ("hidden_size", config.hidden, 1 << 16),
        ("num_hidden_layers", config.layers, 512),
        ("num_attention_heads", config.heads, 1024),
        ("num_key_value_heads", config.kv_heads, 1024),
        ("head_dim", config.head_dim, 1024),
        ("intermediate_size", config.intermediate, 1 << 20),
        ("vocab_size", config.vocabulary, 1 << 22),
        ("max_position_embeddings", config.max_context, MAX_CONTEXT),
    ];
    check_ranges(&ranges, place)?;
    let wrong = |title: &str, found: String, needed: &str| {
        Err(Diagnostic::new(title).at(place).found(found).needed(needed))
    };
    if !config.heads.is_multiple_of(config.kv_heads) {
        return wrong(
            "the query heads cannot be shared out over the key and value heads",
            format!("`num_attention_heads` {}, `num_key_value_heads` {}", config.heads, config.kv_heads),
            "a multiple",
        );
    }
    if !config.head_dim.is_multiple_of(2) {
        return wrong(
            "`head_dim` is odd, but rotation pairs its halves",
            config.head_dim.to_string(),
            "an even number",
        );
    }
    if !(config.epsilon > 0.0 && config.epsilon <= 0.1) {
        return wrong("`rms_norm_eps` is out of range", config.epsilon.to_string(), "above 0, at most 0.1");
    }
    if !(config.rope.theta >= 1.0 && config.rope.theta <= 1e12) {
        return wrong("`rope_theta` is out of range", config.rope.theta.to_string(), "1 to 1e12");
    }
    check_experts(config, place)
}

/// Sizes of a mixture of experts.
fn check_experts(config: &ModelConfig, place: &str) -> Result<(), Diagnostic> {
    let Some(experts) = &config.experts else {
        return Ok(());
    };
    let ranges = [
        ("num_experts", experts.experts, 1024),
        ("num_experts_per_tok", experts.experts_per_token, 1024),
        ("moe_intermediate_size", experts.intermediate, 1 << 20),
        ("shared_expert_intermediate_size", experts.shared_intermediate, 1 << 20),
        ("decoder_sparse_step", experts.sparse_step, 1 << 20),
    ];
    check_ranges(&ranges, place)?;
    if experts.experts_per_token > experts.experts {
        return Err(Diagnostic::new("more experts are chosen for a token than there are")
            .at(place)
            .found(format!(
                "`num_experts_per_tok` {}, `num_experts` {}",
                experts.experts_per_token, experts.experts
            ))
            .needed("at most as many"));
    }
    if let Some(layer) = experts.dense_layers.iter().find(|&&layer| layer >= config.layers) {
        return Err(Diagnostic::new("`mlp_only_layers` names a layer that does not exist")
            .at(place)
            .found(layer.to_string())
            .needed(format!("below `num_hidden_layers` {}", config.layers)));
    }
    Ok(())
}

fn check_ranges(ranges: &[(&str, u64, u64)], place: &str) -> Result<(), Diagnostic> {
    for (key, value, most) in ranges {
        if *value == 0 || value > most {
            return Err(Diagnostic::new(format!("`{key}` is out of range"))
                .at(place)
                .found(value.to_string())
                .needed(format!("1 to {most}")));
        }
    }
    Ok(())
}

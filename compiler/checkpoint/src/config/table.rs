//! The `config` stage: every resolved value and where it came from.

use std::fmt::Write as _;

use qwen2c_graph::{ModelConfig, RopeScaling};

/// A resolved value of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigField {
    /// Name of the value: `kv_heads`.
    pub name: String,
    /// The value in text.
    pub value: String,
    /// Where it came from: a key, a formula, a default.
    pub origin: String,
}

/// The configuration as a table of three columns.
pub fn print_config_table(fields: &[ConfigField]) -> String {
    let width = |text: fn(&ConfigField) -> &str, title: &str| {
        fields.iter().map(|field| text(field).chars().count()).chain([title.len()]).max().unwrap_or(0)
    };
    let names = width(|field| &field.name, "name");
    let values = width(|field| &field.value, "value");
    let mut text = format!("{:names$}  {:values$}  origin\n", "name", "value");
    for ConfigField { name, value, origin } in fields {
        writeln!(text, "{name:names$}  {value:values$}  {origin}").expect("writing to a string cannot fail");
    }
    text
}

/// Fields of a configuration that comes from the table of sizes.
pub(crate) fn table_fields(config: &ModelConfig) -> Vec<ConfigField> {
    config_fields(config, &|_| "table of sizes".to_owned())
}

/// All values of a configuration; `origin_of` is asked for each name.
pub(crate) fn config_fields(config: &ModelConfig, origin_of: &dyn Fn(&str) -> String) -> Vec<ConfigField> {
    let mut fields = Vec::new();
    let mut add = |name: &str, value: String| {
        fields.push(ConfigField { name: name.to_owned(), value, origin: origin_of(name) });
    };
    add("name", config.name.clone());
    add("family", config.family.name().to_owned());
    add("hidden", config.hidden.to_string());
    add("layers", config.layers.to_string());
    add("heads", config.heads.to_string());
    add("kv_heads", config.kv_heads.to_string());
    add("head_dim", config.head_dim.to_string());
    add("intermediate", config.intermediate.to_string());
    add("vocabulary", config.vocabulary.to_string());
    add("qkv_bias", config.qkv_bias.to_string());
    add("tied_embedding", config.tied_embedding.to_string());
    add("epsilon", format!("{:?}", config.epsilon));
    add("rope_theta", config.rope.theta.to_string());
    match &config.rope.scaling {
        RopeScaling::None => add("rope_scaling", "none".to_owned()),
        RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor } => {
            add("rope_scaling", "yarn".to_owned());
            add("yarn_factor", factor.to_string());
            add("yarn_original_context", original_context.to_string());
            add("yarn_beta_fast", beta_fast.to_string());
            add("yarn_beta_slow", beta_slow.to_string());
            add("yarn_attention_factor", attention_factor.to_string());
        }
    }
    add("max_context", config.max_context.to_string());
    if let Some(experts) = &config.experts {
        add("experts", experts.experts.to_string());
        add("experts_per_token", experts.experts_per_token.to_string());
        add("expert_intermediate", experts.intermediate.to_string());
        add("shared_expert_intermediate", experts.shared_intermediate.to_string());
        add("normalize_expert_weights", experts.normalize_weights.to_string());
        add("sparse_step", experts.sparse_step.to_string());
        add("dense_layers", format!("{:?}", experts.dense_layers));
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let field = |name: &str, value: &str, origin: &str| ConfigField {
            name: name.to_owned(),
            value: value.to_owned(),
            origin: origin.to_owned(),
        };
        let fields = [field("heads", "14", "`num_attention_heads`"), field("head_dim", "64", "derived")];
        assert_eq!(
            print_config_table(&fields),
            "name      value  origin\nheads     14     `num_attention_heads`\nhead_dim  64     derived\n"
        );
    }
}

//! Configuration → graph: one operation per mathematical operation, element types explicit.
//!
//! The graph reads like the model's definition: embedding, blocks of attention and MLP on a residual
//! stream, head. Fusing is left to the passes; whoever runs this graph as it stands computes exactly
//! what the family's reference code computes, with the residual stream in f32 and one rounding at the
//! end of each normalization, attention and MLP product.

mod attention;
mod builder;
mod experts;
mod mlp;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use qwen2c_request::{Element, Operation, Quantization, Real};

use crate::{Graph, ModelConfig, ValueId};
use builder::Builder;

/// How linear weights are stored. Routers, norms and biases are elements in f32 anyway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightStorage {
    /// As elements.
    Elements,
    /// Quantized alike: the blocks in this way, embedding and head to 8 bits in the same groups.
    Quantized(Quantization),
    /// As its tensors are named here, by canonical name; as elements where they are not, or not alike.
    ByTensor(BTreeMap<String, Quantization>),
}

/// What a graph depends on beside the model's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphOptions {
    /// Type of activations, linear weights, embedding and caches: not [`Element::I32`].
    pub dtype: Element,
    /// How linear weights are stored.
    pub storage: WeightStorage,
    /// Positions of a slot's cache.
    pub context: u64,
    /// Sequences served at once.
    pub slots: u64,
    /// The blocks to build, by their number in the model, in order; all of them where `None`. A few
    /// blocks make the graph of the self-test.
    pub layers: Option<Vec<u64>>,
}

/// Builds the graph of a model.
///
/// Its inputs are `token`, `position` and `slot` of each row, and `logit_rows`, the rows that go
/// through the head; its output is `logits`, `f32[logit_rows, vocabulary]`.
pub fn build_graph(config: &ModelConfig, options: &GraphOptions) -> Graph {
    let mut builder = Builder::new(config, options);
    let (embedding, mut hidden) = embed(&mut builder);

    let all = || (0..config.layers).collect();
    for layer in options.layers.clone().unwrap_or_else(all) {
        builder.layer = Some(layer);
        hidden = attention::block(&mut builder, hidden);
        hidden = if config.is_sparse(layer) {
            experts::block(&mut builder, hidden)
        } else {
            mlp::block(&mut builder, hidden)
        };
    }
    builder.layer = None;

    head(&mut builder, embedding, hidden);
    builder.graph
}

/// `h = embedding[token]`
fn embed(builder: &mut Builder<'_>) -> (crate::WeightId, ValueId) {
    let config = builder.config;
    let weight = builder.matrix(
        "embedding",
        [("vocabulary", config.vocabulary), ("hidden", config.hidden)],
        "model.embed_tokens.weight",
    );
    let ty = builder.rows_of("hidden", config.hidden);
    (weight, builder.apply("embedding", Operation::Embed, &[builder.token], &[weight], ty))
}

/// `logits = head(norm(h))`, for the rows that are asked for.
fn head(builder: &mut Builder<'_>, embedding: crate::WeightId, hidden: ValueId) {
    let config = builder.config;
    let ty = builder.logit_rows_of("hidden", config.hidden);
    let gathered =
        builder.apply("gathered", Operation::GatherRows, &[hidden, builder.logit_rows], &[], ty.clone());

    let weight = builder.vector("final_norm", ("hidden", config.hidden), "model.norm.weight");
    let norm = Operation::RmsNorm { epsilon: Real(config.epsilon) };
    let normalized = builder.apply("final_norm", norm, &[gathered], &[weight], builder.rounded(ty));

    let weight = if config.tied_embedding {
        embedding
    } else {
        let extents = [("vocabulary", config.vocabulary), ("hidden", config.hidden)];
        builder.matrix("head", extents, "lm_head.weight")
    };
    let ty = builder.logit_rows_of("vocabulary", config.vocabulary);
    let logits = builder.apply("logits", builder::MATMUL, &[normalized], &[weight], ty);
    builder.graph.outputs.push(logits);
}

//! What quantization loses, by what a weight is for.

use std::collections::BTreeMap;

use qwen2c_graph::{Weight, WeightSource};
use qwen2c_request::{Quantization, QuantizationError};

/// Classes in the order of the report, each with the parts of canonical tensor names that belong to it.
/// The first that fits decides.
const CLASSES: [(&str, &[&str]); 9] = [
    ("embedding", &["embed_tokens."]),
    ("attention qkv", &[".q_proj.", ".k_proj.", ".v_proj."]),
    ("attention output", &[".o_proj."]),
    ("experts", &[".experts."]),
    ("shared expert", &[".shared_expert."]),
    ("gate and up", &[".gate_proj.", ".up_proj."]),
    ("down", &[".down_proj."]),
    ("head", &["lm_head."]),
    ("others", &[""]),
];

/// What quantization loses in one class of weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ClassLoss {
    /// What the weights are for.
    pub(crate) class: &'static str,
    /// How they are stored.
    pub(crate) quantization: Quantization,
    /// Relative L2 error: the norm of the differences over the norm of the weights.
    pub(crate) relative_error: f64,
}

/// Adds up the errors of quantized weights. The sums are taken in the order of the weights, and so do not
/// depend on the order of packing.
pub(crate) fn losses<'a>(
    weights: impl IntoIterator<Item = (&'a Weight, QuantizationError)>,
) -> Vec<ClassLoss> {
    let mut sums: BTreeMap<(usize, Quantization), QuantizationError> = BTreeMap::new();
    for (weight, error) in weights {
        if let Some(quantization) = weight.ty.quantization {
            *sums.entry((class_of(weight), quantization)).or_default() += error;
        }
    }
    sums.into_iter()
        .map(|((class, quantization), error)| ClassLoss {
            class: CLASSES[class].0,
            quantization,
            relative_error: error.relative(),
        })
        .collect()
}

/// The class of a weight's first tensor; passes join only tensors of one class.
fn class_of(weight: &Weight) -> usize {
    let tensor = match &weight.source {
        WeightSource::Tensors(parts) => parts.first().map_or("", |part| part.tensor.as_str()),
        WeightSource::RopeTable(_) | WeightSource::UnresolvedRopeTable => "",
    };
    let fits = |(_, parts): &(&str, &[&str])| parts.iter().any(|part| tensor.contains(part));
    CLASSES.iter().position(fits).unwrap_or(CLASSES.len() - 1)
}

#[cfg(test)]
mod tests {
    use qwen2c_graph::WeightPart;
    use qwen2c_request::{Element, WeightType};

    use super::*;

    fn weight(tensor: &str, bits: Option<u32>) -> Weight {
        let quantization = bits.map(|bits| Quantization::signed(bits, 32));
        Weight {
            name: "w".to_owned(),
            ty: WeightType { dimensions: Vec::new(), element: Element::Bf16, quantization },
            source_columns: 1,
            source: WeightSource::Tensors(vec![WeightPart {
                tensor: tensor.to_owned(),
                rows: 1,
                padded_rows: 1,
            }]),
            layout: None,
        }
    }

    #[test]
    fn errors_are_added_within_a_class() {
        let error = |differences, weights| QuantizationError { differences, weights };
        let weights = [
            (weight("model.embed_tokens.weight", Some(8)), error(1.0, 100.0)),
            (weight("model.layers.0.self_attn.q_proj.weight", Some(4)), error(1.0, 10.0)),
            (weight("model.layers.1.self_attn.k_proj.weight", Some(4)), error(3.0, 15.0)),
            (weight("model.layers.1.mlp.experts.0.gate_proj.weight", Some(4)), error(0.0, 0.0)),
            (weight("model.layers.1.mlp.shared_expert.down_proj.weight", Some(4)), error(1.0, 1.0)),
            (weight("model.layers.0.mlp.down_proj.weight", Some(4)), error(1.0, 4.0)),
            (weight("model.norm.weight", None), error(0.0, 0.0)),
        ];
        let found = losses(weights.iter().map(|(weight, error)| (weight, *error)));
        let found: Vec<_> =
            found.iter().map(|loss| (loss.class, loss.quantization.bits, loss.relative_error)).collect();
        let expected = [
            ("embedding", 8, 0.1),
            ("attention qkv", 4, 0.4),
            ("experts", 4, 0.0),
            ("shared expert", 4, 1.0),
            ("down", 4, 0.5),
        ];
        assert_eq!(found, expected);
    }
}

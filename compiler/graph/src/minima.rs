//! Decides which weights get a minimum for each group, by trying both ways on some of their rows.
//!
//! A minimum is worth its bytes where it spares more squared error than finer integers of as many bytes
//! would. A bit more for each weight divides that error by four, and the 16 bits of a minimum are half a bit
//! for each weight of a group of 32: there the error must be halved. Trained weights lie around zero and
//! gain a sixth; weights that were once rounded to such groups (a file made of Q4_1 blocks, say) are found
//! again exactly.
//!
//! All weights of one projection, in all layers, are decided together: few kernels serve them, and passes
//! merge projections that are stored alike.

use std::collections::BTreeMap;
use std::fmt;

use qwen2c_request::{Element, Quantization, QuantizationError, QuantizedBlock, quantize_weights};

use crate::{
    GraphOptions, ModelConfig, SourceError, TensorSource, Weight, WeightSource, WeightStorage, build_graph,
};

/// Rows that are tried of every weight.
const SAMPLED_ROWS: u64 = 8;

/// A weight that could not be read.
#[derive(Debug)]
pub struct SampleError {
    /// Its name in the graph.
    pub weight: String,
    /// What its source says.
    pub cause: SourceError,
}

impl fmt::Display for SampleError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "weight `{}` could not be read: {}", self.weight, self.cause)
    }
}

impl std::error::Error for SampleError {}

/// Bits of a minimum.
const MINIMUM_BITS: f64 = 16.0;

/// What both ways lose.
#[derive(Clone, Copy, Default)]
struct Tried {
    /// Bits of a group's minimum for each of its weights.
    bits_a_weight: f64,
    without: QuantizationError,
    with: QuantizationError,
}

impl Tried {
    /// Whether minima are worth their bytes.
    fn wants_minima(self) -> bool {
        let most = libm::exp2(-2.0 * self.bits_a_weight) * self.without.differences;
        self.without.differences > 0.0 && self.with.differences <= most
    }
}

/// The storage with minima where they are worth their bytes. Storage that is no rounding of the compiler's
/// stays as it is.
///
/// # Errors
///
/// When a tensor cannot be read.
pub fn settle_minima(
    config: &ModelConfig,
    storage: WeightStorage,
    source: &dyn TensorSource,
) -> Result<WeightStorage, SampleError> {
    if !matches!(storage, WeightStorage::Quantized(_)) {
        return Ok(storage);
    }
    let options =
        GraphOptions { dtype: Element::F32, storage: storage.clone(), context: 1, slots: 1, layers: None };
    let graph = build_graph(config, &options);
    let quantized = || graph.weights.iter().filter_map(|weight| Some((weight, weight.ty.quantization?)));
    let mut tried: BTreeMap<&str, Tried> = BTreeMap::new();
    for (weight, quantization) in quantized() {
        let sample = try_both(weight, quantization, source)
            .map_err(|cause| SampleError { weight: weight.name.clone(), cause })?;
        let of_projection = tried.entry(projection(weight)).or_default();
        of_projection.bits_a_weight = sample.bits_a_weight;
        of_projection.without += sample.without;
        of_projection.with += sample.with;
    }
    if !tried.values().any(|tried| tried.wants_minima()) {
        return Ok(storage);
    }
    let mut by_tensor = BTreeMap::new();
    for (weight, quantization) in quantized() {
        let has_minimum = tried.get(projection(weight)).is_some_and(|tried| tried.wants_minima());
        let WeightSource::Tensors(parts) = &weight.source else { continue };
        for part in parts {
            by_tensor.insert(part.tensor.clone(), Quantization { has_minimum, ..quantization });
        }
    }
    Ok(WeightStorage::ByTensor(by_tensor))
}

/// The name that a weight shares with those of other layers, and with the projections it may be merged with:
/// the three of an attention, or gate and up.
fn projection(weight: &Weight) -> &str {
    let of_layer = weight.name.strip_prefix("layers.").and_then(|name| name.split_once('.'));
    let name = of_layer.map_or(weight.name.as_str(), |(_, name)| name);
    let name = name.strip_suffix(".weight").unwrap_or(name);
    match name {
        "query" | "key" | "value" => "attention",
        _ => name.strip_suffix("gate").or_else(|| name.strip_suffix("up")).unwrap_or(name),
    }
}

/// Quantizes some rows, spread evenly over the weight, both ways.
fn try_both(
    weight: &Weight,
    quantization: Quantization,
    source: &dyn TensorSource,
) -> Result<Tried, SourceError> {
    let columns = weight.ty.columns() as usize;
    let (rows, mut row) = (weight.rows(), vec![0.0; columns]);
    let group = columns.min(quantization.group as usize).max(1);
    let mut tried = Tried { bits_a_weight: MINIMUM_BITS / group as f64, ..Tried::default() };
    for sample in 0..SAMPLED_ROWS.min(rows) {
        weight.read_rows(source, sample * rows / SAMPLED_ROWS.min(rows), &mut row)?;
        let lost = |has_minimum| {
            let quantization = Quantization { has_minimum, ..quantization };
            let mut block = QuantizedBlock::new(quantization, 1, columns);
            quantize_weights(quantization, columns, &row, &mut block.rows(0..1))
        };
        tried.without += lost(false);
        tried.with += lost(true);
    }
    Ok(tried)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ExpertConfig, Family, Rope, RopeScaling};

    const INT4: Quantization = Quantization::signed(4, 32);

    fn model() -> ModelConfig {
        ModelConfig {
            name: "tiny".to_owned(),
            family: Family::Qwen2Moe,
            hidden: 64,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            intermediate: 96,
            vocabulary: 100,
            qkv_bias: true,
            tied_embedding: false,
            epsilon: 1e-6,
            rope: Rope { theta: 1e6, scaling: RopeScaling::None },
            max_context: 64,
            experts: Some(ExpertConfig {
                experts: 3,
                experts_per_token: 2,
                intermediate: 32,
                shared_intermediate: 64,
                normalize_weights: false,
                sparse_step: 2,
                dense_layers: Vec::new(),
            }),
        }
    }

    /// Numbers like noise around zero; tensors whose name holds `on_grid` are on 16 values in each group,
    /// most of them positive.
    struct Grids {
        on_grid: &'static [&'static str],
    }

    impl TensorSource for Grids {
        fn read_rows(
            &self,
            tensor: &str,
            columns: u64,
            first_row: u64,
            out: &mut [f32],
        ) -> Result<(), SourceError> {
            let is_on_grid = self.on_grid.iter().any(|part| tensor.contains(part));
            for (index, element) in out.iter_mut().enumerate() {
                let place = first_row * columns + index as u64;
                let noise = place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
                *element = if is_on_grid {
                    ((place * 7 + place / 32) % 16) as f32 * 0.01 - 0.03
                } else {
                    noise as f32 / 8_388_608.0 - 1.0
                };
            }
            Ok(())
        }
    }

    fn settle(on_grid: &'static [&'static str]) -> WeightStorage {
        let storage = WeightStorage::Quantized(INT4);
        settle_minima(&model(), storage, &Grids { on_grid }).expect("readable tensors")
    }

    /// Parts of names whose tensors got minima.
    fn with_minima(on_grid: &'static [&'static str]) -> Vec<String> {
        let WeightStorage::ByTensor(tensors) = settle(on_grid) else { return Vec::new() };
        let chosen = tensors.iter().filter(|(_, quantization)| quantization.has_minimum);
        let mut names: Vec<String> = chosen.map(|(name, _)| name.replace("model.layers.", "")).collect();
        names.retain(|name| !name.contains("experts.1.") && !name.contains("experts.2."));
        names
    }

    #[test]
    fn noise_around_zero_wants_no_minima() {
        assert_eq!(settle(&[]), WeightStorage::Quantized(INT4));
    }

    #[test]
    fn projections_of_all_layers_are_decided_together() {
        let expected = ["0.self_attn.o_proj.weight", "1.self_attn.o_proj.weight"];
        assert_eq!(with_minima(&["o_proj"]), expected);
        assert_eq!(with_minima(&["0.self_attn.o_proj"]), [""; 0], "half of the error stays");
        assert_eq!(with_minima(&["shared_expert.down"]), ["1.mlp.shared_expert.down_proj.weight"]);
    }

    #[test]
    fn what_passes_merge_is_decided_together() {
        let gates = ["1.mlp.experts.0.gate_proj.weight", "1.mlp.experts.0.up_proj.weight"];
        assert_eq!(with_minima(&["experts.0.gate", "experts.1.", "experts.2.", "experts.0.up"]), gates);
        assert_eq!(with_minima(&["q_proj", "v_proj"]).len(), 0, "the key's error stays");
        assert_eq!(with_minima(&["q_proj", "k_proj", "v_proj"]).len(), 6);
    }

    #[test]
    fn the_rest_is_stored_as_without() {
        let WeightStorage::ByTensor(tensors) = settle(&["o_proj"]) else { panic!("minima were wanted") };
        assert_eq!(tensors["lm_head.weight"], Quantization::signed(8, 32));
        assert_eq!(tensors["model.layers.0.mlp.up_proj.weight"], INT4);
        assert!(!tensors.contains_key("model.norm.weight"));
        assert!(!tensors.contains_key("model.layers.1.mlp.gate.weight"), "routers stay elements");
        let kept = WeightStorage::ByTensor(tensors);
        let source = Grids { on_grid: &["down_proj"] };
        assert_eq!(settle_minima(&model(), kept.clone(), &source).expect("nothing is read"), kept);
    }

    #[test]
    fn tensors_that_cannot_be_read_are_named() {
        struct Nothing;
        impl TensorSource for Nothing {
            fn read_rows(&self, tensor: &str, _: u64, _: u64, _: &mut [f32]) -> Result<(), SourceError> {
                Err(format!("no tensor `{tensor}`").into())
            }
        }
        let error =
            settle_minima(&model(), WeightStorage::Quantized(INT4), &Nothing).expect_err("unreadable");
        let expected = "weight `embedding` could not be read: no tensor `model.embed_tokens.weight`";
        assert_eq!(error.to_string(), expected);
    }
}

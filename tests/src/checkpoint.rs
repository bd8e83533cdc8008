//! Checkpoints made for a test: a mixture of experts of any widths, as a directory of Hugging Face's or as a
//! GGUF file.

use std::path::{Path, PathBuf};

use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;

/// Ids.
const VOCABULARY: usize = 97;
const CONTEXT: usize = 64;

/// Widths of a model of one layer. Heads are 16 wide; two queries share a key.
#[derive(Clone, Copy, Debug)]
pub struct Widths {
    /// Of the residual stream, a multiple of 32.
    pub hidden: usize,
    /// Of each of 6 experts, of which 2 serve a token; of a dense layer where there are none.
    pub intermediate: usize,
    /// Of the shared expert; 0 for a dense model.
    pub shared: usize,
}

/// How a GGUF file stores its matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocks {
    /// Elements of two bytes.
    F16,
    /// A scale for 32 integers of 8 bits.
    Q8,
}

/// A tensor in both worlds.
struct Tensor {
    /// Hugging Face's name; `{}` stands for the number of the expert.
    name: String,
    /// llama.cpp's.
    gguf: String,
    /// Outermost first.
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// Numbers around a mean, the same for the same name.
fn numbers(name: &str, count: usize, mean: f32, deviation: f32) -> Vec<f32> {
    let mut state = name.bytes().fold(1_u64, |state, byte| state.wrapping_mul(257) + u64::from(byte));
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5
    };
    // Multiples of 2⁻⁸ are the same in f16.
    let round = |value: f32| (value * 256.0).round() / 256.0;
    (0..count).map(|_| round(mean + deviation * (next() + next() + next()) * 2.0)).collect()
}

impl Widths {
    const EXPERTS: usize = 6;

    fn tensors(self) -> Vec<Tensor> {
        let Self { hidden, intermediate, shared } = self;
        let mut tensors = Vec::new();
        let mut add = |name: &str, gguf: &str, shape: &[usize]| {
            let deviation = match shape {
                [_] => 0.1,
                [.., columns] => 1.2 / (*columns as f32).sqrt(),
                [] => 0.0,
            };
            let mean = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
            tensors.push(Tensor {
                name: name.replace("layer.", "model.layers.0."),
                gguf: gguf.replace("block.", "blk.0."),
                shape: shape.to_vec(),
                values: numbers(name, shape.iter().product(), mean, deviation),
            });
        };
        add("model.embed_tokens.weight", "token_embd.weight", &[VOCABULARY, hidden]);
        add("model.norm.weight", "output_norm.weight", &[hidden]);
        add("lm_head.weight", "output.weight", &[VOCABULARY, hidden]);
        add("layer.input_layernorm.weight", "block.attn_norm.weight", &[hidden]);
        add("layer.post_attention_layernorm.weight", "block.ffn_norm.weight", &[hidden]);
        for (part, rows) in [("q", hidden), ("k", hidden / 2), ("v", hidden / 2)] {
            let (name, gguf) = (format!("layer.self_attn.{part}_proj"), format!("block.attn_{part}"));
            add(&format!("{name}.weight"), &format!("{gguf}.weight"), &[rows, hidden]);
            add(&format!("{name}.bias"), &format!("{gguf}.bias"), &[rows]);
        }
        add("layer.self_attn.o_proj.weight", "block.attn_output.weight", &[hidden, hidden]);
        let mut add_mlp = |prefix: &str, suffix: &str, experts: &[usize], width: usize| {
            for (part, shape) in
                [("gate", [width, hidden]), ("up", [width, hidden]), ("down", [hidden, width])]
            {
                let shape = [experts, &shape].concat();
                let name = format!("layer.mlp.{prefix}{part}_proj.weight");
                add(&name, &format!("block.ffn_{part}{suffix}.weight"), &shape);
            }
        };
        if shared == 0 {
            add_mlp("", "", &[], intermediate);
            return tensors;
        }
        add_mlp("experts.{}.", "_exps", &[Self::EXPERTS], intermediate);
        add_mlp("shared_expert.", "_shexp", &[], shared);
        add("layer.mlp.gate.weight", "block.ffn_gate_inp.weight", &[Self::EXPERTS, hidden]);
        add("layer.mlp.shared_expert_gate.weight", "block.ffn_gate_inp_shexp.weight", &[1, hidden]);
        tensors
    }

    /// Writes `config.json` and a safetensors file with a tensor for each expert; returns the directory.
    pub fn write_folder(self, folder: &Path) -> PathBuf {
        let Self { hidden, intermediate, shared } = self;
        let is_dense = shared == 0;
        let mut config = json!({
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
            "hidden_size": hidden, "intermediate_size": if is_dense { intermediate } else { 64 },
            "num_hidden_layers": 1, "num_attention_heads": hidden / 16, "num_key_value_heads": hidden / 32,
            "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "tie_word_embeddings": false, "vocab_size": VOCABULARY,
        });
        if !is_dense {
            let experts = json!({
                "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe",
                "num_experts": Self::EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": intermediate,
                "shared_expert_intermediate_size": shared, "norm_topk_prob": false, "decoder_sparse_step": 1,
                "mlp_only_layers": [],
            });
            let object = config.as_object_mut().expect("an object");
            object.extend(experts.as_object().expect("an object").clone());
        }
        std::fs::write(folder.join("config.json"), config.to_string()).expect("a writable directory");
        let mut stored: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        for tensor in self.tensors() {
            let experts = if tensor.name.contains("{}") { Self::EXPERTS } else { 1 };
            let shape = tensor.shape[usize::from(experts > 1)..].to_vec();
            let each = tensor.values.len() / experts;
            for (expert, values) in tensor.values.chunks(each).enumerate() {
                let name = tensor.name.replace("{}", &expert.to_string());
                stored.push((
                    name,
                    shape.clone(),
                    values.iter().flat_map(|value| value.to_le_bytes()).collect(),
                ));
            }
        }
        let views = stored.iter().map(|(name, shape, bytes)| {
            (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("as many bytes as elements"))
        });
        let bytes = safetensors::serialize(views, None).expect("a checkpoint");
        std::fs::write(folder.join("model.safetensors"), bytes).expect("a writable directory");
        folder.to_owned()
    }

    /// Writes a GGUF file in which all experts of a projection are one tensor; returns its path.
    pub fn write_gguf(self, folder: &Path, blocks: Blocks) -> PathBuf {
        let Self { hidden, intermediate, shared } = self;
        let architecture = if shared == 0 { "qwen2" } else { "qwen2moe" };
        let mut metadata = GgufPart::default();
        metadata.text("general.architecture").number(8).text(architecture).entries += 1;
        let mut count = |key: &str, value: usize| {
            metadata.text(&format!("{architecture}.{key}")).number(4).number(value as u32).entries += 1;
        };
        count("block_count", 1);
        count("context_length", CONTEXT);
        count("embedding_length", hidden);
        count("feed_forward_length", if shared == 0 { intermediate } else { 64 });
        count("attention.head_count", hidden / 16);
        count("attention.head_count_kv", hidden / 32);
        if shared != 0 {
            count("expert_count", Self::EXPERTS);
            count("expert_used_count", 2);
            count("expert_feed_forward_length", intermediate);
            count("expert_shared_feed_forward_length", shared);
        }
        for (key, value) in [("rope.freq_base", 1e4_f32), ("attention.layer_norm_rms_epsilon", 1e-6)] {
            metadata.text(&format!("{architecture}.{key}")).number(6).number(value.to_bits()).entries += 1;
        }
        let (mut infos, mut data) = (GgufPart::default(), Vec::new());
        for tensor in self.tensors() {
            // The shared expert's gate is a vector there, and what chooses experts is not rounded.
            let shape = if tensor.shape[0] == 1 { &tensor.shape[1..] } else { &tensor.shape[..] };
            let is_exact = shape.len() == 1 || tensor.gguf.contains("gate_inp");
            let kind = match blocks {
                _ if is_exact => 0,
                Blocks::F16 => 1,
                Blocks::Q8 => 8,
            };
            infos.text(&tensor.gguf).number(shape.len() as u32);
            shape.iter().rev().for_each(|extent| infos.bytes.extend((*extent as u64).to_le_bytes()));
            infos.number(kind).bytes.extend((data.len() as u64).to_le_bytes());
            infos.entries += 1;
            match kind {
                0 => data.extend(tensor.values.iter().flat_map(|value| value.to_le_bytes())),
                1 => data.extend(tensor.values.iter().flat_map(|value| f16_bits(*value).to_le_bytes())),
                _ => tensor.values.chunks(32).for_each(|block| put_q8(block, &mut data)),
            }
            data.resize(data.len().next_multiple_of(32), 0);
        }
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(infos.entries.to_le_bytes());
        file.extend(metadata.entries.to_le_bytes());
        file.extend([metadata.bytes, infos.bytes].concat());
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(data);
        let path = folder.join("model.gguf");
        std::fs::write(&path, file).expect("a writable directory");
        path
    }
}

/// A list of a GGUF file's header.
#[derive(Default)]
struct GgufPart {
    entries: u64,
    bytes: Vec<u8>,
}

impl GgufPart {
    fn text(&mut self, text: &str) -> &mut Self {
        self.bytes.extend((text.len() as u64).to_le_bytes());
        self.bytes.extend(text.as_bytes());
        self
    }

    fn number(&mut self, number: u32) -> &mut Self {
        self.bytes.extend(number.to_le_bytes());
        self
    }
}

/// An f16 that holds this multiple of 2⁻⁸ exactly, or loses bits of it beyond 8.
fn f16_bits(value: f32) -> u16 {
    if value == 0.0 {
        return 0;
    }
    let bits = value.to_bits();
    let exponent = ((bits >> 23) & 0xff) as i32 - 112;
    assert!((1..31).contains(&exponent), "{value} is no normal f16");
    (bits >> 16 & 0x8000) as u16 | (exponent as u16) << 10 | (bits >> 13 & 0x3ff) as u16
}

/// A block of Q8_0, whose scale is a power of two.
fn put_q8(weights: &[f32], data: &mut Vec<u8>) {
    let largest = weights.iter().fold(0.0_f32, |largest, weight| largest.max(weight.abs()));
    let mut scale = 1.0 / 256.0;
    while largest > 127.0 * scale {
        scale *= 2.0;
    }
    data.extend(f16_bits(scale).to_le_bytes());
    data.extend(weights.iter().map(|weight| (weight / scale).round() as i8 as u8));
}

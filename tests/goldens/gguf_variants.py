"""Tiny GGUF files with every tensor type that is read, and the weights HF transformers gets from them.

The `gguf` package quantizes to Q4_0, Q4_1 and Q8_0; for the K types, which it can only widen, the
blocks themselves are random.
"""

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy
import torch
from gguf import GGMLQuantizationType as Type

from variants import dense, mixture

# Standard deviation of one value over the block's scale `d`, for random blocks.
Q4_K_DEVIATION = 240.0
Q6_K_DEVIATION = 1365.0


@dataclass(frozen=True)
class GgufVariant:
    """A GGUF file to generate."""

    name: str
    # `general.architecture`.
    architecture: str
    # `config.json` of the same model.
    config: dict
    # Tensor type by the last part of the GGUF name (`attn_q`); vectors are always F32.
    types: dict[str, Type]


VARIANTS = [
    GgufVariant(
        "gguf-llama",
        "llama",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": 256,
            "intermediate_size": 256,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-05,
            "rope_theta": 100000.0,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "vocab_size": 257,
        },
        {
            "token_embd": Type.Q6_K,
            "attn_q": Type.Q4_K,
            "attn_k": Type.Q4_1,
            "attn_v": Type.Q6_K,
            "attn_output": Type.Q4_0,
            "ffn_gate": Type.Q8_0,
            "ffn_up": Type.F16,
            "ffn_down": Type.Q4_K,
        },
    ),
    GgufVariant(
        "gguf-qwen2",
        "qwen2",
        dense(
            hidden_size=64,
            intermediate_size=96,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=False,
        ),
        {
            "token_embd": Type.BF16,
            "output": Type.Q8_0,
            "attn_q": Type.Q4_1,
            "attn_k": Type.Q4_0,
            "attn_v": Type.F32,
            "attn_output": Type.Q8_0,
            "ffn_gate": Type.Q4_0,
            "ffn_up": Type.Q8_0,
            "ffn_down": Type.Q4_1,
        },
    ),
    GgufVariant(
        "gguf-qwen2moe",
        "qwen2moe",
        mixture(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_experts=8,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            shared_expert_intermediate_size=64,
        ),
        {
            "token_embd": Type.F16,
            "output": Type.F16,
            "attn_q": Type.Q8_0,
            "attn_k": Type.Q8_0,
            "attn_v": Type.Q8_0,
            "attn_output": Type.Q8_0,
            "ffn_gate_inp": Type.F32,
            "ffn_gate_exps": Type.Q4_0,
            "ffn_up_exps": Type.Q8_0,
            "ffn_down_exps": Type.Q4_1,
            "ffn_gate_shexp": Type.Q8_0,
            "ffn_up_shexp": Type.Q4_1,
            "ffn_down_shexp": Type.Q8_0,
        },
    ),
]


def random_blocks(kind: Type, shape: tuple[int, ...], deviation: float, seed: int) -> numpy.ndarray:
    """Bytes of a K type, `[..., bytes of a row]`, whose values have about this standard deviation."""
    generator = numpy.random.default_rng(seed)
    block_values, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    rows, blocks = int(numpy.prod(shape[:-1])), shape[-1] // block_values
    data = generator.integers(0, 256, (rows, blocks, block_bytes), dtype=numpy.uint8)
    factor = generator.uniform(0.7, 1.3, (rows, blocks, 1))
    if kind == Type.Q4_K:
        scale = (factor * deviation / Q4_K_DEVIATION).astype(numpy.float16)
        # The mean of scale · nibble is 7.5 times that of the minimum's 6 bits.
        data[..., 0:2] = scale.view(numpy.uint8)
        data[..., 2:4] = (scale * numpy.float16(7.5)).astype(numpy.float16).view(numpy.uint8)
    else:
        data[..., 208:210] = (factor * deviation / Q6_K_DEVIATION).astype(numpy.float16).view(numpy.uint8)
    return data.reshape(*shape[:-1], blocks * block_bytes)


def unpermute(weight: numpy.ndarray, heads: int) -> numpy.ndarray:
    """From the row order of a `llama` GGUF (pairs side by side) to Hugging Face's (halves)."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write(variant: GgufVariant, path: Path, random_tensor, seed_of) -> dict[str, torch.Tensor]:
    """Writes the file and returns what it holds, in f32 under the published names."""
    config = variant.config
    writer = gguf.GGUFWriter(path, variant.architecture)
    writer.add_name(variant.name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    if variant.architecture == "llama":
        writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    if "num_experts" in config:
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])

    tensors: dict[str, torch.Tensor] = {}

    def add(name: str, published: str, shape: tuple[int, ...]) -> numpy.ndarray:
        """Adds one tensor to the file; returns it widened."""
        key = name.removesuffix(".weight").split(".")[-1]
        seed_name = f"{variant.name}/{published}"
        kind = Type.F32 if len(shape) == 1 else variant.types[key]
        if kind in (Type.Q4_K, Type.Q6_K):
            deviation = 0.1 if key == "token_embd" else 1.1 / numpy.sqrt(shape[-1])
            data = random_blocks(kind, shape, float(deviation), seed_of(seed_name))
        else:
            values = random_tensor(seed_name, torch.Size(shape), config["tie_word_embeddings"]).numpy()
            data = gguf.quants.quantize(values, kind)
        native = kind in (Type.F32, Type.F16)
        writer.add_tensor(name, data, raw_dtype=None if native else kind)
        return numpy.ascontiguousarray(gguf.quants.dequantize(data, kind).reshape(shape).astype(numpy.float32))

    def keep(published: str, values: numpy.ndarray) -> None:
        tensors[published] = torch.from_numpy(numpy.ascontiguousarray(values))

    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = hidden // heads
    keep("model.embed_tokens.weight", add("token_embd.weight", "model.embed_tokens.weight", (vocabulary, hidden)))
    keep("model.norm.weight", add("output_norm.weight", "model.norm.weight", (hidden,)))
    if not config["tie_word_embeddings"]:
        keep("lm_head.weight", add("output.weight", "lm_head.weight", (vocabulary, hidden)))
    for layer in range(config["num_hidden_layers"]):
        prefix, block = f"model.layers.{layer}", f"blk.{layer}"

        def plain(name: str, published: str, shape: tuple[int, ...]) -> None:
            keep(f"{prefix}.{published}", add(f"{block}.{name}", f"{prefix}.{published}", shape))

        plain("attn_norm.weight", "input_layernorm.weight", (hidden,))
        plain("ffn_norm.weight", "post_attention_layernorm.weight", (hidden,))
        for part, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            published = f"{prefix}.self_attn.{part}_proj"
            weight = add(f"{block}.attn_{part}.weight", f"{published}.weight", (count * head_dim, hidden))
            if variant.architecture == "llama" and part != "v":
                weight = unpermute(weight, count)
            keep(f"{published}.weight", weight)
            if variant.architecture != "llama":
                keep(f"{published}.bias", add(f"{block}.attn_{part}.bias", f"{published}.bias", (count * head_dim,)))
        plain("attn_output.weight", "self_attn.o_proj.weight", (hidden, heads * head_dim))
        if "num_experts" not in config:
            width = config["intermediate_size"]
            plain("ffn_gate.weight", "mlp.gate_proj.weight", (width, hidden))
            plain("ffn_up.weight", "mlp.up_proj.weight", (width, hidden))
            plain("ffn_down.weight", "mlp.down_proj.weight", (hidden, width))
            continue
        experts, width = config["num_experts"], config["moe_intermediate_size"]
        plain("ffn_gate_inp.weight", "mlp.gate.weight", (experts, hidden))
        for part, shape in (("gate", (width, hidden)), ("up", (width, hidden)), ("down", (hidden, width))):
            published = f"{prefix}.mlp.experts"
            stacked = add(f"{block}.ffn_{part}_exps.weight", f"{published}.{part}", (experts, *shape))
            for expert in range(experts):
                keep(f"{published}.{expert}.{part}_proj.weight", stacked[expert])
        width = config["shared_expert_intermediate_size"]
        plain("ffn_gate_shexp.weight", "mlp.shared_expert.gate_proj.weight", (width, hidden))
        plain("ffn_up_shexp.weight", "mlp.shared_expert.up_proj.weight", (width, hidden))
        plain("ffn_down_shexp.weight", "mlp.shared_expert.down_proj.weight", (hidden, width))
        gate = add(f"{block}.ffn_gate_inp_shexp.weight", f"{prefix}.mlp.shared_expert_gate.weight", (hidden,))
        keep(f"{prefix}.mlp.shared_expert_gate.weight", gate.reshape(1, hidden))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors

"""The tiny checkpoints of the parity tests: one entry for each corner of the family.

Sizes are odd on purpose: a prime vocabulary, 9 heads over 3, intermediate sizes that no vector width
divides, 30 experts.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Variant:
    """A checkpoint to generate."""

    name: str
    # Keys of `config.json` as Hugging Face spells them.
    config: dict
    # Element type of the tensors in the file: F32, F16, BF16.
    storage: str
    # Number of safetensors files.
    shards: int = 1
    # Merges of the byte-level tokenizer that goes with it; none for a checkpoint of bare ids.
    tokenizer_merges: int | None = None
    # Keys of `generation_config.json`.
    generation: dict = field(default_factory=dict)


def dense(**changes) -> dict:
    """`config.json` of a small dense Qwen2, in the spelling of the published checkpoints."""
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": 72,
        "intermediate_size": 107,
        "num_hidden_layers": 2,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 512,
        "max_window_layers": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 512,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "bos_token_id": 255,
        "eos_token_id": 256,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 257,
    }
    config.update(changes)
    return {key: value for key, value in config.items() if value is not None}


def mixture(**changes) -> dict:
    """`config.json` of a small Qwen2-MoE."""
    return dense(
        **{
            "architectures": ["Qwen2MoeForCausalLM"],
            "model_type": "qwen2_moe",
            "hidden_size": 48,
            "intermediate_size": 59,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "num_experts": 30,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 13,
            "shared_expert_intermediate_size": 37,
            "norm_topk_prob": False,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "router_aux_loss_coef": 0.001,
            "output_router_logits": False,
            "tie_word_embeddings": False,
            **changes,
        }
    )


VARIANTS = [
    Variant("dense-gqa", dense(), "BF16"),
    Variant(
        "dense-mha",
        dense(
            hidden_size=48,
            intermediate_size=67,
            num_attention_heads=6,
            num_key_value_heads=6,
            tie_word_embeddings=False,
            vocab_size=499,
            torch_dtype="float32",
        ),
        "F32",
        shards=3,
    ),
    Variant(
        "dense-head80",
        dense(
            hidden_size=48,
            intermediate_size=113,
            num_attention_heads=3,
            num_key_value_heads=1,
            head_dim=80,
            rope_theta=10000.0,
            torch_dtype="float16",
        ),
        "F16",
    ),
    Variant(
        "dense-yarn",
        dense(
            hidden_size=64,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            rope_theta=None,
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            },
            torch_dtype=None,
            dtype="bfloat16",
        ),
        "BF16",
    ),
    Variant(
        "llama",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": 64,
            "intermediate_size": 107,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-05,
            "rope_theta": 100000.0,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": 255,
            "eos_token_id": 256,
            "torch_dtype": "bfloat16",
            "vocab_size": 257,
        },
        "BF16",
    ),
    Variant("moe-sparse-step", mixture(decoder_sparse_step=2), "BF16"),
    Variant(
        "moe-normalized",
        mixture(norm_topk_prob=True, mlp_only_layers=[1], qkv_bias=False),
        "BF16",
    ),
    Variant(
        "talking",
        dense(vocab_size=499, bos_token_id=357, eos_token_id=359),
        "BF16",
        tokenizer_merges=101,
        generation={
            "bos_token_id": 357,
            "pad_token_id": 357,
            "do_sample": True,
            "eos_token_id": [359, 357],
            "repetition_penalty": 1.1,
            "temperature": 0.7,
            "top_k": 20,
            "top_p": 0.8,
        },
    ),
]

# Prompt lengths; logits of the long ones are kept for every `KEEP_EVERY`th and the last 4 positions.
PROMPT_LENGTHS = [1, 5, 33, 200, 300]
KEEP_EVERY = 25
GREEDY_TOKENS = 16

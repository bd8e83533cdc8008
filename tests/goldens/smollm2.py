"""What HF transformers answers greedily on SmolLM2-135M-Instruct's weights, widened from the GGUF.

    pip install torch transformers numpy gguf
    python tests/goldens/smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf

Writes `tests/goldens/smollm2.json`: for each prompt its ids, 60 greedy ids and the gap of the two best
logits at each step, in f32 from `Qwen2ForCausalLM` with zero biases (a Llama block is a Qwen2 block
without biases) on the weights of the file, widened by the `gguf` package.
"""

import hashlib
import json
import sys
from pathlib import Path

import gguf
import numpy
import torch
import transformers

from gguf_variants import unpermute

TOKENS = 60
# Ids, not text: the tokenizer has tests of its own. Texts as SmolLM2's tokenizer splits them.
PROMPTS = {
    "sky": (
        "<|im_start|>user\nExplain in three sentences why the sky is blue.<|im_end|>\n<|im_start|>assistant\n"
    ),
    "story": "Once upon a time, in a small village by the sea,",
    "code": "def fibonacci(n):\n    ",
    "numbers": "1, 2, 3, 5, 8, 13, 21,",
    "french": "La capitale de la France est",
}


def tokenizer_of(reader: gguf.GGUFReader) -> transformers.PreTrainedTokenizerFast:
    """The tokenizer that the file's metadata describes: single digits, then byte-level BPE."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    def texts(key: str) -> list[str]:
        field = reader.fields[key]
        return [bytes(field.parts[index]).decode() for index in field.data]

    tokens, merges = texts("tokenizer.ggml.tokens"), texts("tokenizer.ggml.merges")
    kinds = reader.fields["tokenizer.ggml.token_type"]
    control = [tokens[i] for i, part in enumerate(kinds.data) if kinds.parts[part][0] == 3]
    tokenizer = Tokenizer(
        models.BPE({token: index for index, token in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer


def load(reader: gguf.GGUFReader) -> transformers.Qwen2ForCausalLM:
    """`Qwen2ForCausalLM` with the file's widened weights and zero biases."""

    def number(key: str):
        field = reader.fields[f"llama.{key}"]
        return field.parts[field.data[0]][0].item()

    weights = {
        tensor.name: numpy.ascontiguousarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        .reshape(tuple(int(extent) for extent in reversed(tensor.shape)))
        .astype(numpy.float32)
        for tensor in reader.tensors
    }
    heads, kv_heads = number("attention.head_count"), number("attention.head_count_kv")
    config = transformers.Qwen2Config(
        hidden_size=number("embedding_length"),
        intermediate_size=number("feed_forward_length"),
        num_hidden_layers=number("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=number("context_length"),
        rms_norm_eps=number("attention.layer_norm_rms_epsilon"),
        rope_theta=number("rope.freq_base"),
        vocab_size=weights["token_embd.weight"].shape[0],
        tie_word_embeddings="output.weight" not in weights,
        attn_implementation="eager",
    )
    parameters = {
        "model.embed_tokens.weight": weights["token_embd.weight"],
        "model.norm.weight": weights["output_norm.weight"],
    }
    parts = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    for layer in range(config.num_hidden_layers):
        for stored, published in parts.items():
            values = weights[f"blk.{layer}.{stored}.weight"]
            if stored in ("attn_q", "attn_k"):
                values = unpermute(values, heads if stored == "attn_q" else kv_heads)
            parameters[f"model.layers.{layer}.{published}.weight"] = values
            if stored in ("attn_q", "attn_k", "attn_v"):
                parameters[f"model.layers.{layer}.{published}.bias"] = numpy.zeros(values.shape[0], numpy.float32)
    model = transformers.Qwen2ForCausalLM(config).eval()
    state = {name: torch.from_numpy(numpy.ascontiguousarray(values)) for name, values in parameters.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise RuntimeError(f"missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model


@torch.no_grad()
def main(path: Path) -> None:
    reader = gguf.GGUFReader(path)
    model, tokenizer = load(reader), tokenizer_of(reader)
    answers = {}
    for name, text in PROMPTS.items():
        prompt = tokenizer.encode(text).ids
        output = model(torch.tensor([prompt]), use_cache=True)
        ids, gaps = [], []
        for _ in range(TOKENS):
            best = torch.topk(output.logits[0, -1], 2)
            ids.append(int(best.indices[0]))
            gaps.append(round(float(best.values[0] - best.values[1]), 6))
            output = model(torch.tensor([ids[-1:]]), past_key_values=output.past_key_values, use_cache=True)
        answers[name] = {"tokens": prompt, "greedy": ids, "gaps": gaps}
        print(f"{name}: smallest gap {min(gaps)}: {tokenizer.decode(ids)!r}")
    result = {
        "file": {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
        "reference": type(model).__name__,
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "gguf": "0.19.0",
            "numpy": numpy.__version__,
        },
        "prompts": answers,
    }
    target = Path(__file__).resolve().parent / "smollm2.json"
    target.write_text(json.dumps(result, separators=(",", ":")).replace('"prompts"', '\n"prompts"') + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Generates the tiny checkpoints of the parity tests and what HF transformers computes from them.

    pip install torch transformers safetensors numpy gguf
    python tests/goldens/generate.py [NAME...]

For each variant of `variants.py` it writes `tests/goldens/<name>/`:

    config.json, generation_config.json, model*.safetensors   the checkpoint
    expected.json         versions, prompts, greedy continuations with the gap of the two best logits
    expected.safetensors  `logits_<length>` f32 [kept positions, vocabulary], `positions_<length>` i32

and for each entry of `gguf_variants.py` a `model.gguf` in place of the checkpoint. Everything is seeded
by name; logits come from f32 weights (widened from the stored type), f32 arithmetic, eager attention.

Prompts of a mixture of experts avoid near ties: where the last chosen and the first refused expert lie
within bf16's rounding error, a bf16 program may rightly choose the other one.
"""

import copy
import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy
import torch
import transformers
from safetensors.torch import save_file

import gguf_variants
import tiny_tokenizer
from variants import GREEDY_TOKENS, KEEP_EVERY, PROMPT_LENGTHS, VARIANTS, Variant

HERE = Path(__file__).resolve().parent
STORAGE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Smallest relative distance of the last chosen and the first refused expert's probability.
ROUTING_MARGIN = 0.1
# Deviation of the embedding's elements. Where the head is tied they are small against what the blocks
# add: the head would otherwise only repeat its input.
EMBEDDING_DEVIATION = {True: 0.1, False: 0.5}


def seed_of(text: str) -> int:
    """A seed that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def random_tensor(name: str, shape: torch.Size, tied: bool) -> torch.Tensor:
    """f32 values large enough that a wrong element shows in the logits."""
    generator = numpy.random.default_rng(seed_of(name))
    values = generator.standard_normal(tuple(shape))
    if name.endswith("norm.weight"):
        values = 1.0 + 0.2 * values
    elif name.endswith(".bias"):
        values = 0.3 * values
    elif "embed_tokens" in name:
        values = EMBEDDING_DEVIATION[tied] * values
    else:
        values = values * 1.1 / numpy.sqrt(shape[-1])
    return torch.from_numpy(values.astype(numpy.float32))


def checkpoint_tensors(variant: Variant) -> dict[str, torch.Tensor]:
    """All tensors of the checkpoint under their published names (experts one by one)."""
    config = variant.config
    hidden = config["hidden_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim", hidden // heads)
    shapes = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)

    def add_mlp(prefix: str, width: int) -> None:
        shapes[f"{prefix}.gate_proj.weight"] = (width, hidden)
        shapes[f"{prefix}.up_proj.weight"] = (width, hidden)
        shapes[f"{prefix}.down_proj.weight"] = (hidden, width)

    has_bias = config["model_type"] != "llama" and config.get("qkv_bias", True)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        for part, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            shapes[f"{prefix}.self_attn.{part}_proj.weight"] = (count * head_dim, hidden)
            if has_bias:
                shapes[f"{prefix}.self_attn.{part}_proj.bias"] = (count * head_dim,)
        shapes[f"{prefix}.self_attn.o_proj.weight"] = (hidden, heads * head_dim)
        experts = config.get("num_experts", 0)
        sparse = (
            experts > 0
            and layer not in config["mlp_only_layers"]
            and (layer + 1) % config["decoder_sparse_step"] == 0
        )
        if not sparse:
            add_mlp(f"{prefix}.mlp", config["intermediate_size"])
            continue
        shapes[f"{prefix}.mlp.gate.weight"] = (experts, hidden)
        shapes[f"{prefix}.mlp.shared_expert_gate.weight"] = (1, hidden)
        add_mlp(f"{prefix}.mlp.shared_expert", config["shared_expert_intermediate_size"])
        for expert in range(experts):
            add_mlp(f"{prefix}.mlp.experts.{expert}", config["moe_intermediate_size"])
    storage = STORAGE[variant.storage]
    return {
        name: random_tensor(f"{variant.name}/{name}", torch.Size(shape), config["tie_word_embeddings"]).to(storage)
        for name, shape in sorted(shapes.items())
    }


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_checkpoint(variant: Variant, directory: Path) -> None:
    tensors = checkpoint_tensors(variant)
    write_json(directory / "config.json", variant.config)
    if variant.generation:
        write_json(directory / "generation_config.json", variant.generation)
    if variant.tokenizer_merges is not None:
        tiny_tokenizer.write(directory, variant.tokenizer_merges)
    metadata = {"format": "pt"}
    if variant.shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata)
        return
    names = list(tensors)
    weight_map = {}
    for shard in range(variant.shards):
        file = f"model-{shard + 1:05}-of-{variant.shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard :: variant.shards]}
        save_file(part, directory / file, metadata)
        weight_map.update(dict.fromkeys(part, file))
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    write_json(
        directory / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
    )


def routing_margin(model, output, last_only: bool) -> float:
    """Smallest relative distance of the last chosen and the first refused expert over the positions."""
    margin = numpy.inf
    for logits in output.router_logits or ():
        if logits is None or logits.shape[-1] != model.config.num_experts:
            continue
        probability = torch.softmax(logits.float(), -1)
        if last_only:
            probability = probability[-1:]
        chosen = model.config.num_experts_per_tok
        best = probability.sort(-1, descending=True).values
        last, refused = best[:, chosen - 1], best[:, chosen]
        margin = min(margin, float(((last - refused) / last).min()))
    return margin


def choose_prompt(model, name: str, length: int, vocabulary: int) -> list[int]:
    """A random prompt; for a mixture of experts token by token such that no routing is a near tie."""
    generator = numpy.random.default_rng(seed_of(f"{name}/prompt/{length}"))
    if not getattr(model.config, "num_experts", 0):
        return [int(token) for token in generator.integers(0, vocabulary, length)]
    prompt: list[int] = []
    cache = None
    while len(prompt) < length:
        for _ in range(200):
            token = int(generator.integers(0, vocabulary))
            trial = model(
                torch.tensor([[token]]),
                past_key_values=transformers.DynamicCache() if cache is None else cache,
                use_cache=True,
                output_router_logits=True,
            )
            if routing_margin(model, trial, last_only=True) >= ROUTING_MARGIN:
                prompt.append(token)
                cache = trial.past_key_values
                break
            trial.past_key_values.crop(-1)
            cache = trial.past_key_values if prompt else None
        else:
            raise RuntimeError(f"{name}: no token keeps the routing margin at position {len(prompt)}")
    return prompt


def greedy(model, prompt: list[int], count: int, known: int) -> tuple[list[int], list[float]]:
    """Greedy ids among the first `known`, and how far the best logit lies above the second at each step."""
    ids, gaps = list(prompt), []
    for _ in range(count):
        logits = model(torch.tensor([ids])).logits[0, -1, :known]
        best = torch.topk(logits, 2)
        ids.append(int(best.indices[0]))
        gaps.append(float(best.values[0] - best.values[1]))
    return ids[len(prompt) :], gaps


def kept_positions(length: int) -> list[int]:
    if length <= 33:
        return list(range(length))
    return sorted(set(range(0, length, KEEP_EVERY)) | set(range(length - 4, length)))


@torch.no_grad()
def write_expected(name: str, model, directory: Path, known: int | None = None) -> None:
    """Runs the reference and writes `expected.json` and `expected.safetensors`.

    Programs never choose an id beyond the tokenizer: of the vocabulary the first `known` may be chosen.
    """
    vocabulary = model.config.vocab_size
    # For orientation only: how far the reference itself is off in bf16 (rotary frequencies kept in f32).
    half = copy.deepcopy(model).to(torch.bfloat16)
    half.model.rotary_emb = copy.deepcopy(model.model.rotary_emb)
    tensors, prompts = {}, {}
    for length in PROMPT_LENGTHS:
        prompt = choose_prompt(model, name, length, vocabulary)
        logits = model(torch.tensor([prompt])).logits[0]
        positions = kept_positions(length)
        tensors[f"logits_{length}"] = logits[positions].contiguous()
        tensors[f"positions_{length}"] = torch.tensor(positions, dtype=torch.int32)
        prompts[str(length)] = {"tokens": prompt}
        if length in (5, 33, 300):
            ids, gaps = greedy(model, prompt, GREEDY_TOKENS, known or vocabulary)
            prompts[str(length)] |= {"greedy": ids, "gaps": [round(gap, 6) for gap in gaps]}
        reduced = half.forward(torch.tensor([prompt])).logits[0].float()
        error = float((reduced - logits).norm() / logits.norm())
        print(f"{name}: {length} tokens, logits' deviation {float(logits.std()):.3f}, bf16 off by {error:.5f}")
    save_file(tensors, directory / "expected.safetensors")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": numpy.__version__}
    write_json(directory / "expected.json", {"reference": type(model).__name__, "versions": versions, "prompts": prompts})


def load(directory: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()


def fresh(name: str) -> Path:
    directory = HERE / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    return directory


def main(names: list[str]) -> None:
    for variant in VARIANTS:
        if not names or variant.name in names:
            directory = fresh(variant.name)
            write_checkpoint(variant, directory)
            known = variant.tokenizer_merges and tiny_tokenizer.size(variant.tokenizer_merges)
            write_expected(variant.name, load(directory), directory, known)
    for variant in gguf_variants.VARIANTS:
        if not names or variant.name in names:
            directory = fresh(variant.name)
            tensors = gguf_variants.write(variant, directory / "model.gguf", random_tensor, seed_of)
            with tempfile.TemporaryDirectory() as scratch:
                write_json(Path(scratch) / "config.json", variant.config)
                save_file(tensors, Path(scratch) / "model.safetensors", {"format": "pt"})
                model = load(Path(scratch))
            write_expected(variant.name, model, directory)


if __name__ == "__main__":
    main(sys.argv[1:])

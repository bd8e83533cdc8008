"""Writes a small byte-level BPE tokenizer in the form of Qwen2's published one.

256 bytes, a few merges, and the three special tokens of the family; its chat template is ChatML with
Qwen2's default system prompt.
"""

import json
from pathlib import Path

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# What the merges are learned from: greedy pair counts over these words.
TEXT = (
    "the sky is blue because the air scatters the short waves of the light of the sun more than the "
    "long ones and what reaches our eyes from every side is the light that was scattered on its way "
    "through the air while the sun itself looks a little more yellow than it does from outside "
)


def byte_symbols() -> list[str]:
    """The printable stand-in of each byte, as every byte-level BPE has it (GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols, extra = {byte: chr(byte) for byte in printable}, 0
    for byte in range(256):
        if byte not in symbols:
            symbols[byte] = chr(256 + extra)
            extra += 1
    return [symbols[byte] for byte in range(256)]


def learn_merges(symbols: list[str], count: int) -> list[tuple[str, str]]:
    """The `count` most frequent merges one after the other; the smallest pair first where equal."""
    words = [[symbols[byte] for byte in (" " + word).encode()] for word in TEXT.split()]
    merges = []
    for _ in range(count):
        pairs: dict[tuple[str, str], int] = {}
        for word in words:
            for pair in zip(word, word[1:]):
                pairs[pair] = pairs.get(pair, 0) + 1
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for index, word in enumerate(words):
            merged, position = [], 0
            while position < len(word):
                if tuple(word[position : position + 2]) == best:
                    merged.append(best[0] + best[1])
                    position += 2
                else:
                    merged.append(word[position])
                    position += 1
            words[index] = merged
    return merges


def size(merge_count: int) -> int:
    """Number of ids."""
    return 256 + merge_count + len(SPECIALS)


def write(directory: Path, merge_count: int) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`."""
    symbols = byte_symbols()
    merges = learn_merges(symbols, merge_count)
    vocabulary = {symbol: index for index, symbol in enumerate(sorted(symbols))}
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    added = [
        {
            "id": len(vocabulary) + index,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for index, content in enumerate(SPECIALS)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}, "behavior": "Isolated", "invert": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }
    fields = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    configuration = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(token["id"]): {field: token[field] for field in fields} for token in added},
        "additional_special_tokens": SPECIALS[1:],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": SPECIALS[2],
        "errors": "replace",
        "model_max_length": 512,
        "pad_token": SPECIALS[0],
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    for name, value in (("tokenizer.json", tokenizer), ("tokenizer_config.json", configuration)):
        (directory / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")

"""Writes golden_blocks.json: blocks of random bytes with the values that the package `gguf` decodes.

Run: python golden_blocks.py > golden_blocks.json      (gguf 0.19)
"""

import json

import numpy as np
from gguf import GGMLQuantizationType, dequantize
from gguf.constants import GGML_QUANT_SIZES

# Byte offsets of the f16 factors, which must be finite numbers.
FACTOR_OFFSETS = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}
# An ordinary number, a negative one, a subnormal one.
FACTORS = [0.0371, -1.25, 3.0e-6]

generator = np.random.default_rng(20240607)
golden = []
for name, offsets in FACTOR_OFFSETS.items():
    kind = GGMLQuantizationType[name]
    _, block_bytes = GGML_QUANT_SIZES[kind]
    for turn, factor in enumerate(FACTORS):
        block = generator.integers(0, 256, block_bytes, dtype=np.uint8)
        for place, offset in enumerate(offsets):
            value = np.float16(FACTORS[(turn + place) % len(FACTORS)])
            block[offset : offset + 2] = np.frombuffer(value.tobytes(), dtype=np.uint8)
        values = dequantize(block.reshape(1, -1), kind).astype(np.float32).ravel()
        golden.append({"type": name, "bytes": block.tobytes().hex(), "bits": values.view(np.uint32).tobytes().hex()})
print("[\n" + ",\n".join(json.dumps(entry) for entry in golden) + "\n]")

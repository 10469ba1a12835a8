"""Snapshots of any size that take no disk: every weight is zero, in a hole of the file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from transformers import GPTJConfig, GPTJForCausalLM

from gptj_predictor.demo import DEMO_SNAPSHOT

BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def write_sparse_snapshot(folder: Path, dtype: str, **shape: Any) -> int:
    """Write configuration, the demo's tokenizer and weights; return the weights' size in bytes."""
    config = GPTJConfig(**({"rotary_dim": 64} | shape))
    config.architectures = ["GPTJForCausalLM"]
    config.save_pretrained(folder)
    for file in DEMO_SNAPSHOT.glob("tokenizer*"):
        shutil.copy(file, folder)
    with init_empty_weights():
        tensors = GPTJForCausalLM(config).state_dict()
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as weights:
        weights.write(len(text).to_bytes(8, "little") + text)
        weights.truncate(8 + len(text) + end)
    return end

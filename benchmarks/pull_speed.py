"""How long does a pull take, and how much memory, from a hub on this machine?

    .venv/bin/python benchmarks/pull_speed.py FOLDER [--layers 28] [--precision bfloat16]

The checkpoint is as the published one: a single fp32 pickle, 24.2 GB unless told otherwise. The
folder needs room for two of it and for what is made of it, which stays there, with its manifest.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch
from accelerate import init_empty_weights
from transformers import GPTJConfig, GPTJForCausalLM

from gptj_predictor.cli import main as gptj_predictor
from gptj_predictor.demo import DEMO_SNAPSHOT
from processes import run_in_new_process

# The tests' hub: tests/ is not installed, and lies beside this folder.
sys.path.append(str(Path(__file__).parents[1]))
from tests.support.hub import HubServer


def main() -> None:
    """Make the checkpoint, pull it, pull it again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--precision", default="bfloat16")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    config = GPTJConfig(n_layer=arguments.layers, n_embd=arguments.hidden, n_head=arguments.heads)
    config.architectures = ["GPTJForCausalLM"]
    pickle = arguments.folder / "pytorch_model.bin"
    write_pickle(pickle, config)
    print(f"{pickle.stat().st_size / 1e9:.2f} GB pickle", flush=True)
    files: dict[str, bytes | Path] = {
        **{file.name: file for file in DEMO_SNAPSHOT.glob("tokenizer*")},
        "config.json": config.to_json_string().encode(),
        pickle.name: pickle,
    }
    with HubServer() as hub:
        hub.add("EleutherAI/gpt-j-6B", files)
        os.environ["HF_ENDPOINT"] = hub.endpoint  # read by the new processes' hub client
        cache = str(arguments.folder / "cache")
        command = ["snapshot", "pull", "--dest", cache, "--precision", arguments.precision]
        for what in ("pull", "again"):
            began = time.perf_counter()
            code, peak = run_in_new_process(gptj_predictor, command)
            if code:
                raise SystemExit(code)
            seconds = time.perf_counter() - began
            print(f"{what}: {seconds:.1f} s, peak memory {peak / 1e9:.2f} GB", flush=True)
    pickle.unlink()


def write_pickle(file: Path, config: GPTJConfig) -> None:
    """Random values, the same in every tensor: mapped from one file, so that none is in memory."""
    with init_empty_weights():
        shapes = {name: t.shape for name, t in GPTJForCausalLM(config).state_dict().items()}
    values = file.with_suffix(".values")
    largest = max(shape.numel() for shape in shapes.values())
    values.write_bytes(torch.randn(largest).mul_(0.02).numpy().tobytes())
    tensors = {
        name: torch.from_file(str(values), size=shape.numel()).view(shape)
        for name, shape in shapes.items()
    }
    torch.save(tensors, file)
    values.unlink()


if __name__ == "__main__":
    main()

"""Write a snapshot of made-up weights, GPT-J-6B's size unless told otherwise.

    .venv/bin/python benchmarks/make_snapshot.py FOLDER [--layers 28] [--hidden 4096]

For measuring: the text it generates is noise. The tokenizer is the demo's, in which most token ids
have no text, or one that ``--tokenizer`` names. Needs the snapshot's size on disk (12.1 GB) and one
shard's in memory.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from transformers import AutoTokenizer, GPTJConfig, GPTJForCausalLM

from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.snapshot.folder import INDEX_FILE

SHARD_BYTES = 2 * 10**9


def main() -> None:
    """Write the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--tokenizer", default=str(DEMO_SNAPSHOT), help="folder or model id")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    dtype = getattr(torch, arguments.dtype)
    config = GPTJConfig(
        n_layer=arguments.layers, n_embd=arguments.hidden, n_head=arguments.heads, dtype=dtype
    )
    config.architectures = ["GPTJForCausalLM"]
    arguments.folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(arguments.folder)
    AutoTokenizer.from_pretrained(arguments.tokenizer).save_pretrained(arguments.folder)
    generator = torch.Generator().manual_seed(arguments.seed)
    write_weights(arguments.folder, config, dtype, generator)


def write_weights(
    folder: Path, config: GPTJConfig, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Write all tensors in shards, drawn from the distribution that GPT-J starts training from."""
    with init_empty_weights():
        shapes = {name: t.shape for name, t in GPTJForCausalLM(config).state_dict().items()}
    weight_map: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    total = 0
    for position, (name, shape) in enumerate(shapes.items()):
        tensor = torch.empty(shape, dtype=dtype)
        if ".ln_" in name:
            tensor.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            tensor.normal_(std=config.initializer_range, generator=generator)
        shard[name] = tensor
        total += tensor.nbytes
        full = sum(t.nbytes for t in shard.values()) >= SHARD_BYTES
        if full or position == len(shapes) - 1:
            file = f"model-{len(set(weight_map.values())) + 1:05}.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(shard, file)
            print(f"{file}: {len(shard)} tensors", flush=True)
            shard = {}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2))
    print(f"{total / 1e9:.2f} GB in {folder}")


if __name__ == "__main__":
    main()

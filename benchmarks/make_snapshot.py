"""Write a snapshot of made-up weights, GPT-J-6B's size unless told otherwise.

    .venv/bin/python benchmarks/make_snapshot.py FOLDER [--layers 28] [--hidden 4096]
    .venv/bin/python benchmarks/make_snapshot.py FOLDER --quantization int8

For measuring: the text it generates is noise. The tokenizer is the demo's, in which most token ids
have no text, or one that ``--tokenizer`` names. The same seed gives the same weights, rounded to
the dtype, and with int8 quantized as a pull does it. Needs the snapshot's size on disk (12.1 GB,
with int8 6.3) and a few shards' in memory.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import init_empty_weights
from transformers import AutoTokenizer, GPTJConfig, GPTJForCausalLM

from gptj_predictor.common.dtypes import dtype_name
from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.pull.build import describe_weights
from gptj_predictor.pull.convert import PIECE_BYTES, Source, Storage, convert
from gptj_predictor.pull.resolve import scale_sharers
from gptj_predictor.snapshot.folder import read_config


class Drawn(Source):
    """A tensor drawn from the distribution that GPT-J starts training from."""

    def __init__(self, name: str, shape: tuple[int, ...], std: float, seed: int) -> None:
        """Draw nothing yet; the same ``seed`` draws the same."""
        self.dtype, self.shape = torch.float32, shape
        self._std, self._seed = std, seed
        self._constant = float(name.endswith("weight")) if ".ln_" in name else None

    def pieces(self) -> Iterator[torch.Tensor]:
        """Flat pieces of ``PIECE_BYTES``."""
        generator = torch.Generator().manual_seed(self._seed)
        left = torch.Size(self.shape).numel()
        while left:
            piece = torch.empty(min(left, PIECE_BYTES // self.dtype.itemsize))
            if self._constant is None:
                yield piece.normal_(std=self._std, generator=generator)
            else:
                yield piece.fill_(self._constant)
            left -= len(piece)


def main() -> None:
    """Write the folder that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--quantization", default="none", choices=["none", "int8"])
    parser.add_argument("--tokenizer", default=str(DEMO_SNAPSHOT), help="folder or model id")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    folder: Path = arguments.folder
    if any(folder.glob("*.safetensors")):
        raise SystemExit(f"{folder} has weights already; name another folder")
    dtype = getattr(torch, arguments.dtype)
    config = GPTJConfig(
        n_layer=arguments.layers, n_embd=arguments.hidden, n_head=arguments.heads, dtype=dtype
    )
    config.architectures = ["GPTJForCausalLM"]
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(arguments.tokenizer).save_pretrained(folder)
    is_int8 = arguments.quantization == "int8"
    storage = Storage(dtype, scale_sharers(read_config(folder)) if is_int8 else {})
    convert(draw(config, arguments.seed), folder, storage, lambda: None)
    describe_weights(folder / "config.json", storage)
    total = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    print(f"{total / 1e9:.2f} GB of {dtype_name(dtype)} {arguments.quantization} in {folder}")


def draw(config: GPTJConfig, seed: int) -> dict[str, Drawn]:
    """All tensors of a checkpoint in the order of transformers, each with a seed of its own."""
    with init_empty_weights():
        shapes = {name: t.shape for name, t in GPTJForCausalLM(config).state_dict().items()}
    return {
        name: Drawn(name, tuple(shape), config.initializer_range, seed * 10**6 + number)
        for number, (name, shape) in enumerate(shapes.items())
    }


if __name__ == "__main__":
    main()

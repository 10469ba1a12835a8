"""How fast is our engine beside transformers' ``generate`` and CTranslate2?

    THP_MEM_ALLOC_ENABLE=1 .venv/bin/python benchmarks/compare_with_peers.py --output results.json
    .venv/bin/python benchmarks/compare_with_peers.py --cases decode --dtype bfloat16 --batch 1 8
    .venv/bin/python benchmarks/compare_with_peers.py --cases decode --dtype bfloat16 \
        --skip generate --quantization none int8 --batch 1 8 32 64 --rounds 9  # and CTranslate2's
    .venv/bin/python benchmarks/compare_with_peers.py --layers 2 --hidden 256 --heads 1 \
        --prompt-tokens 8 --new-tokens 8 --prefix-tokens 64 --page-context 64  # does it all run?
    PYTHONPATH=src python3 benchmarks/compare_with_peers.py --device cuda --output results.json

``THP_MEM_ALLOC_ENABLE`` gives torch's memory huge pages, as ``gptj-predictor serve`` does. On a CPU
the model has 609 M parameters, in bf16 and then in fp32. On a GPU it has GPT-J-6B's size in bf16
and is made on the device; the cases are those of a fixed table (``--preset h200``), and torch,
transformers, numpy and triton are all that is needed. Weights and prompts are random: the text is
noise.

``--quantization none int8`` measures our engine twice, with the weights as they are and as int8.
CTranslate2 is there on a CPU: in int8 beside bf16 and fp32, in fp32 beside fp32 (it has no 16-bit
types on CPUs). A note has its version and the compute type that it says it has. A batch of 64 in
``decode`` is 64 requests at once: "tok/s all" is their throughput, prompts included.

Everyone measured gets the same weights, prompts and lengths, and greedy sampling without an early
end. In each round they are measured one after the other, so that other load on the machine hits
all of them. The cases:

* ``decode``: a batch starts together. A step takes (total - first token) / (new tokens - 1). All
  three tell when each token came: ``generate`` to a stopping criterion, CTranslate2 to a callback.
  With several sequences the first token is there when all have theirs. "% of limit" compares a step
  with one read of all weights but the embedding, in the form in which they are held, at the
  bandwidth of a plain read. That is measured in every round, and the fastest so far counts; the
  bytes of the KV cache are not counted. "x ct2 int8" is by the steps, "all x ct2 int8" by the
  whole time.
  "slowest" is by the longest pause between two tokens. On a CPU in 16 bit, ``generate`` may take
  seconds for the first tokens of several prompts: the product of its head has a strided input
  there, which torch 2.13 computes slowly.
* ``concurrent``: requests that come at once to us, and one by one to ``generate``.
* ``prefix``: the first token of a prompt, and of another that begins alike. Also what prefix
  caching costs prompts that share nothing, against an engine without it.
* ``page``: decode steps by the page size of the KV cache.

Figures are medians over the rounds, ratios the median of each round's ratio; ``--output`` gets
every sample. The exit code is 1 if something failed, or if our tokens in fp32 are not
``generate``'s and no tie explains it.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from pathlib import Path
from typing import Any, get_args

import torch

from gptj_predictor.model.quantization import WeightQuantization
from peers.plan import measure_dtype
from peers.tables import Tables

CASES = ["decode", "concurrent", "prefix", "page"]
PEERS = ["generate", "ct2"]
QUANTIZATIONS = get_args(WeightQuantization)

#: What a flag is when it is not given: on a CPU, on a GPU.
DEFAULTS: dict[str, tuple[Any, Any]] = {
    "preset": ("plain", "h200"),
    "dtype": (["bfloat16", "float32"], ["bfloat16"]),
    "batch": ([1, 8], [1, 8, 64]),
    "prompt_tokens": (32, 128),
    "new_tokens": (32, 128),
    "layers": (8, 28),
    "hidden": (2048, 4096),
    "heads": (8, 16),
    "requests": (16, 64),
    "one_by_one": (16, 4),
    "max_prefill_tokens": (256, 2048),
    "budget": (None, 450.0),
}


def parse() -> argparse.Namespace:
    """The command line, with the device's defaults filled in."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--device", default="cpu", choices=["cpu", "cuda"])
    add("--preset", choices=["plain", "h200"], help="plain: by these flags; default on cuda: h200")
    add("--cases", nargs="+", default=CASES, choices=CASES)
    add("--skip", nargs="+", default=[], choices=PEERS)
    add("--dtype", nargs="+", choices=["bfloat16", "float32", "float16"])
    add("--quantization", nargs="+", default=["none"], choices=QUANTIZATIONS, help="of ours")
    add("--batch", nargs="+", type=int, help="of decode")
    add("--prompt-tokens", type=int, help="of decode and concurrent")
    add("--new-tokens", type=int, help="of decode and concurrent")
    add("--layers", type=int)
    add("--hidden", type=int)
    add("--heads", type=int)
    add("--rounds", type=int, default=3)
    add("--requests", type=int, help="of concurrent")
    add("--one-by-one", type=int, help="how many of the requests generate really gets")
    add("--prefix-tokens", type=int, default=1536, help="that prefix's prompts share")
    add("--tail-tokens", type=int, default=32, help="that they do not")
    add("--unshared-pairs", type=int, default=20, help="of runs with prefix caching and without")
    add("--page-context", type=int, default=512, help="prompt tokens of page")
    add("--max-prefill-tokens", type=int, help="of a step; the server's defaults")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--budget", type=float, help="seconds after which no case and no round begins")
    add("--output", type=Path, help="JSON file for every sample")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and len(arguments.quantization) > 1:
        parser.error("--quantization takes one value with --device cuda")
    for name, (on_cpu, on_gpu) in DEFAULTS.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, on_gpu if arguments.device == "cuda" else on_cpu)
    return arguments


def main() -> None:
    """Measure what the command line asks for."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    tables = Tables(arguments)
    versions = ", ".join(f"{name} {version}" for name, version in tables.facts["versions"].items())
    print(f"{tables.place}\n{versions}\n{tables.facts['environment'] or ''}", flush=True)
    for dtype in arguments.dtype:
        measure_dtype(tables, arguments, dtype)
        gc.collect()
    tables.note(f"{time.perf_counter() - tables.started:.0f} s, {len(tables.failures)} failures")
    for failure in tables.failures:
        print(f"FAILED: {failure}")
    tables.save()
    sys.exit(1 if tables.failures else 0)


if __name__ == "__main__":
    main()

"""Does one card reach the goals? One command, correctness first, within eight minutes on an H200.

    PYTHONPATH=src python3 benchmarks/gpu_day.py --output gpu_day.json
    PYTHONPATH=src python3 benchmarks/gpu_day.py --device cpu --dry-run  # does it all run?

It needs torch from 2.11 on, transformers, numpy and triton, and the source tree; nothing has to be
installed or downloaded. The weights have GPT-J-6B's size, are random, and are made on the device in
bf16 (fp16 before compute capability 8.0), where transformers' model reads the same memory. So the
texts are noise, and the speed is the real one.

In this order, each printed and saved as soon as it is known:

* A small network in fp32: greedy tokens against transformers' ``generate``, sampled ones alone and
  in a crowd. In 16 bit: the largest error of a log-probability against fp32, beside transformers'.
* ``generate`` itself: four requests one by one, from which 64 are extrapolated.
* What prefix caching costs where nothing is shared.
* Batches of 128 tokens in and 128 out, greedy and with top-k and top-p; the first token of 128 and
  2,047 prompt tokens; a shared prefix; 64 requests at once; 120 texts of 1,920 tokens.
* The kernels of a decode step at batch 1 and 256.
* The same weights as int8: log-probabilities of the small network against fp32 with the values that
  they stand for, and greedy batches beside those in 16 bit. It is skipped when the time is up.

At the end stands every figure beside its goal. The goals are for an H200 and scale with the copy
bandwidth that was measured; ratios do not. What does not fit the card is skipped with a line. The
exit code is 1 if tokens are wrong, a case fails, or a GPU does not use our kernels and graphs;
goals that are missed do not change it.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from gptj_predictor.bench.machine import (
    ask_nvidia_smi,
    cpu_name,
    measure_bandwidth,
    utc_now,
    versions,
)
from gptj_predictor.engine.engine import Engine
from gptj_predictor.engine.graphs import ladder
from gptj_predictor.model.product_choice import describe
from one_card import cases
from one_card.correctness import compare, compare_int8
from one_card.engines import free_all, pages_for
from one_card.goals import goals_of
from one_card.plan import DRY, FULL, Plan
from one_card.record import Record
from one_card.weights import RandomWeights, int8_network

#: From here on a GPU computes in bfloat16; see devices/precision.py.
BFLOAT16_CAPABILITY = (8, 0)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--device", default="cuda", choices=["cpu", "cuda"])
    add("--dry-run", action="store_true", help="everything once and tiny; the figures mean nothing")
    add("--budget", type=float, default=420, help="seconds after which no case begins")
    add("--output", type=Path, help="JSON file for everything")
    return parser.parse_args()


def main() -> None:
    """Compare, measure, and say what came of the goals."""
    arguments = parse()
    device = torch.device("cuda:0" if arguments.device == "cuda" else "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here")
    plan = DRY if arguments.dry_run else FULL
    record = Record(find_facts(device, plan), goals_of(plan), arguments.output, arguments.budget)
    with counted_compilations(record):
        measure(record, plan, device)
    print(f"\n{record.table()}\n")
    for failure in record.failures:
        print(f"FAILED: {failure}")
    record.note(f"{len(record.failures)} failures")
    sys.exit(1 if record.failures else 0)


def measure(record: Record, plan: Plan, device: torch.device) -> None:
    """Everything, in order; what fails does not keep the rest from running."""
    dtype = dtype_for(device)
    record.bandwidth = measure_bandwidth(device, torch.get_num_threads())
    record.figure("copy bandwidth", record.bandwidth / 1e12, "TB/s")
    attempt(record, "correctness", lambda: compare(record, plan, device, dtype))
    measure_16_bit(record, plan, device, dtype)
    free_all()
    if record.is_late:
        record.note("skipped: int8 weights: the time is up")
    else:
        attempt(record, "int8 weights", lambda: measure_int8(record, plan, device, dtype))


def measure_16_bit(record: Record, plan: Plan, device: torch.device, dtype: torch.dtype) -> None:
    """All that has a goal; the weights are gone afterwards."""
    weights = attempt(record, "weights", lambda: RandomWeights(plan.config, dtype, device))
    if weights is None:
        return
    card = cases.Card(record, plan, weights.network)
    record.note(f"{dtype}: {card.step_bytes / 1e9:.2f} GB of weights are read a step")
    attempt(record, "generate", lambda: cases.measure_generate(card, weights.transformers_model()))
    free_all()
    attempt(record, "prefix caching", lambda: cases.measure_unshared(card))
    free_all()
    attempt(record, "the engine", lambda: measure_with_engine(card))


def measure_int8(record: Record, plan: Plan, device: torch.device, dtype: torch.dtype) -> None:
    """Batches with int8 weights, made on the device of the same values."""
    compare_int8(record, plan, device, dtype)
    card = cases.Card(record, plan, int8_network(plan.config, dtype, device))
    record.note(f"int8: {card.step_bytes / 1e9:.2f} GB of weights are read a step")
    batch = max(plan.int8_batches)
    fitting = card.fitting(batch)
    if fitting < 1:
        record.note("skipped: int8 weights: no memory is left for the KV cache")
        return
    wanted = pages_for(batch, plan.prompt + plan.new)
    with card.engine(batch=batch, pages=min(wanted, fitting)) as engine:
        say_engine(record, engine)
        cases.measure_int8_batches(card, engine)


def measure_with_engine(card: cases.Card) -> None:
    """What one engine with all the memory is measured for."""
    plan, record = card.plan, card.record
    batch = max(*plan.batches, plan.at_once, plan.long[0])
    fitting = card.fitting(batch)
    longest = [(plan.long[0], sum(plan.long[1:])), (batch, plan.prompt + plan.new)]
    wanted = max(pages_for(*one) for one in longest) + pages_for(4, plan.config.n_positions)
    if fitting < 1:
        record.fail("no memory is left for the KV cache")
        return
    started = record.seconds
    with card.engine(batch=batch, pages=min(wanted, fitting)) as engine:
        record.figure("engine's start, graphs captured", record.seconds - started, "s")
        say_engine(record, engine)
        steps: tuple[tuple[str, Callable[[cases.Card, Engine], None]], ...] = (
            ("batches", cases.measure_batches),
            ("first tokens", cases.measure_first_tokens),
            ("shared prefix", cases.measure_prefix),
            ("requests at once", cases.measure_at_once),
            ("profile", cases.measure_profile),
            ("long texts", cases.measure_long),
        )
        for name, run in steps:
            if record.is_late:
                record.fail(f"{name}: not begun, the time is up")
                continue
            attempt(record, name, partial(run, card, engine))


@contextmanager
def counted_compilations(record: Record) -> Iterator[None]:
    """Say at the end how many kernels Triton had to compile, and how long that took."""
    if find_spec("triton") is None:
        yield
        return
    triton: Any = import_module("triton")
    seconds: dict[str, list[float]] = {}

    def listen(*, src: Any, times: Any, cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            seconds.setdefault(src.fn.__name__, []).append(times.total / 1e6)

    triton.knobs.compilation.listener = listen
    try:
        yield
    finally:
        triton.knobs.compilation.listener = None
        taken = [one for each in seconds.values() for one in each]
        record.detail("seconds of compilations by kernel", seconds)
        record.figure("kernels compiled", len(taken), "")
        record.figure("kernels compiled, seconds of all", sum(taken), "s")


def say_engine(record: Record, engine: Engine) -> None:
    """What the engine uses; on a GPU it has to be our kernels and graphs."""
    info = engine.info()
    rungs = len(ladder(info.config.max_batch_size)) if info.captures else 0
    attention = ", ".join(info.attention.values())
    products = [vars(one) for one in info.products]
    name = "engine" if info.quantization == "none" else f"engine, {info.quantization} weights"
    record.detail(
        name,
        {
            "attention": attention,
            "graphs": rungs,
            "products": products,
            "config": vars(info.config),
        },
    )
    if products:
        record.note(f"products: {describe(info.products)}")
    record.note(
        f"{name}: {info.kv_cache_tokens} tokens of KV cache; attention: {attention}; "
        f"graphs: {rungs}"
    )
    if info.devices[0].type == "cuda" and not (info.captures and "Triton" in attention):
        record.fail(f"not our kernels and graphs: {attention}, graphs: {info.captures}")


def attempt(record: Record, what: str, run: Callable[[], Any]) -> Any:
    """Run it; what it returned, or ``None`` if it failed, which is kept."""
    try:
        return run()
    except Exception as error:
        traceback.print_exc()
        record.fail(f"{what}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
        return None


def dtype_for(device: torch.device) -> torch.dtype:
    """What the server takes with ``--precision auto`` on a GPU; on a CPU bfloat16."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < BFLOAT16_CAPABILITY:
        return torch.float16
    return torch.bfloat16


def find_facts(device: torch.device, plan: Plan) -> dict[str, Any]:
    """What was run where."""
    facts: dict[str, Any] = {
        "date": utc_now(),
        "versions": versions("triton"),
        "cpu": cpu_name(),
        "plan": vars(plan),
        "dtype": str(dtype_for(device)).removeprefix("torch."),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu": properties.name,
            "capability": torch.cuda.get_device_capability(device),
            "memory": properties.total_memory,
            "processors": properties.multi_processor_count,
            "driver and clocks": ask_nvidia_smi(str(getattr(properties, "uuid", ""))),
        }
    print(", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    print(facts.get("gpu", facts["cpu"]), flush=True)
    return facts


if __name__ == "__main__":
    main()

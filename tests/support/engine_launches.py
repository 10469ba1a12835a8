"""Which variants of the kernels an engine launches, beside those that kernel_variants.py lists.

Run as a program, because nothing may interpret kernels in its process. It prints JSON. The engine
is real and on the CPU; the kernels are noted instead of launched, so its numbers mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import cycle
from typing import Any

import torch

from gptj_predictor.engine.core import EngineConfig, EngineCore
from gptj_predictor.engine.kernel_variants import KernelShape, launches
from gptj_predictor.engine.sequence import Sequence
from gptj_predictor.model.ahead_of_time import noted_launches, pretend_card
from gptj_predictor.model.attention import Attention
from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.network import GPTJNetwork, Placement
from gptj_predictor.model.product_choice import CallTimer
from gptj_predictor.model.quantization import WeightQuantization
from gptj_predictor.model.triton_attention import TritonAttention
from gptj_predictor.model.triton_check import add_one
from gptj_predictor.model.triton_linear.cuts import Card
from gptj_predictor.model.triton_linear.projection import Workspace
from gptj_predictor.sampling.params import SamplingParams
from gptj_predictor.snapshot.layout import NetworkLayout
from tests.support.projections import triton_projections
from tests.support.quantized import with_int8

CPU = torch.device("cpu")
CONFIG = NetworkConfig(
    n_embd=128, n_head=2, n_layer=2, rotary_dim=32, vocab_size=97, n_positions=256
)
#: So that two heads need all splits from 32 to 1 as the batch grows to this many.
PROCESSORS, SEQUENCES = 24, 38
CAPABILITY, DTYPE = 90, torch.bfloat16
QUANTIZATIONS: tuple[WeightQuantization, ...] = ("none", "int8")


def main() -> None:
    """Note both and print the difference."""
    pretend_card(CAPABILITY)
    with noted_launches() as listed:
        for quantization in QUANTIZATIONS:
            for launch in launches(KernelShape(CONFIG, DTYPE, CAPABILITY, quantization)):
                launch()
    # What no kernel writes to is to be the same in every run, and to end no sequence.
    vars(torch).update(empty=torch.zeros, empty_like=torch.zeros_like)
    tensor: Any = torch.Tensor
    tensor.new_empty = tensor.new_zeros
    with noted_launches() as launched:
        add_one(torch.zeros(32))  # the trial of a start
        for quantization in QUANTIZATIONS:
            network = make_network(quantization)
            run_engine(network, capture=None)
            run_engine(network, capture=lambda run: run)
    print(
        json.dumps(
            {
                "kernels": sorted({name for name, _ in listed}),
                "not listed": sorted(launched - listed),
                "not launched": sorted(listed - launched),
            }
        )
    )


def make_network(quantization: WeightQuantization) -> GPTJNetwork:
    """A network as a GPU has it."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.empty(parameter.shape).normal_(std=0.02, generator=generator).to(DTYPE)
        for name, parameter in NetworkLayout(CONFIG).parameters.items()
    }
    if quantization == "int8":
        weights = with_int8(weights)
    card = Card("any", CAPABILITY, PROCESSORS)
    make = triton_projections(Workspace(card, CPU))
    attentions: dict[torch.device, Attention] = {CPU: TritonAttention(PROCESSORS)}
    placement = Placement.on(CPU, CONFIG.n_layer)
    return GPTJNetwork(CONFIG, DTYPE, placement, weights, attentions, make)


def run_every_call() -> CallTimer:
    """A clock by which every second way is the quickest so far, after all were tried."""
    times = cycle([2.0, 1.0, 3.0])

    def measure(calls: list[Callable[[], object]]) -> float:
        for call in calls:
            call()
        return next(times)

    return measure


def run_engine(
    network: GPTJNetwork,
    capture: Callable[[Callable[[], torch.Tensor]], Callable[[], torch.Tensor]] | None,
) -> None:
    """Prompts of all lengths that come one after the other, so that every batch size occurs."""
    config = EngineConfig(
        max_batch_size=SEQUENCES, max_prefill_tokens=64, page_size=16, num_pages=400
    )
    core = EngineCore(network, config, capture, run_every_call())
    core.prepare()
    for number in range(SEQUENCES):
        params = SamplingParams(
            min_length=0,
            max_length=90,
            temperature=number % 2,
            top_k=5,
            top_p=0.9,
            repetition_penalty=1.0,
            seed=number,
            ignore_eos=True,
        )
        core.add(Sequence([1 + (number + place) % 90 for place in range(1 + number)], params))
        core.step()
    while core.has_work:
        core.step()


if __name__ == "__main__":
    main()

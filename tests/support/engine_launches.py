"""Which variants of the kernels an engine launches, beside those that kernel_variants.py lists.

Run as a program, because nothing may interpret kernels in its process. It prints JSON. The engine
is real and on the CPU; the kernels are noted instead of launched, so its numbers mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import torch

from gptj_predictor.engine.core import EngineConfig, EngineCore
from gptj_predictor.engine.kernel_variants import KernelShape, launches
from gptj_predictor.engine.sequence import Sequence
from gptj_predictor.model.ahead_of_time import noted_launches, pretend_card
from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.network import Placement
from gptj_predictor.model.triton_attention import TritonAttention
from gptj_predictor.model.triton_check import add_one
from gptj_predictor.sampling.params import SamplingParams
from gptj_predictor.snapshot.builder import NetworkBuilder

CPU = torch.device("cpu")
CONFIG = NetworkConfig(
    n_embd=128, n_head=2, n_layer=2, rotary_dim=32, vocab_size=97, n_positions=256
)
#: So that two heads need all splits from 32 to 1 as the batch grows to this many.
PROCESSORS, SEQUENCES = 24, 38


def main() -> None:
    """Note both and print the difference."""
    pretend_card(90)
    shape = KernelShape(CONFIG, torch.float32)
    with noted_launches() as listed:
        for launch in launches(shape):
            launch()
    # What no kernel writes to is to be the same in every run, and to end no sequence.
    vars(torch).update(empty=torch.zeros, empty_like=torch.zeros_like)
    with noted_launches() as launched:
        add_one(torch.zeros(32))  # the trial of a start
        run_engine(capture=None)
        run_engine(capture=lambda run: run)
    print(
        json.dumps(
            {
                "kernels": sorted({name for name, _ in listed}),
                "not listed": sorted(launched - listed),
                "not launched": sorted(listed - launched),
            }
        )
    )


def run_engine(
    capture: Callable[[Callable[[], torch.Tensor]], Callable[[], torch.Tensor]] | None,
) -> None:
    """Prompts of all lengths that come one after the other, so that every batch size occurs."""
    builder = NetworkBuilder(CONFIG, torch.float32, Placement.on(CPU, CONFIG.n_layer))
    generator = torch.Generator().manual_seed(0)
    for name in builder.layout.parameters:
        memory = builder.allocate(name)
        builder.put(name, memory.normal_(std=0.02, generator=generator))
    network = builder.finish()
    network.attentions[CPU] = TritonAttention(PROCESSORS)
    config = EngineConfig(
        max_batch_size=SEQUENCES, max_prefill_tokens=64, page_size=16, num_pages=400
    )
    core = EngineCore(network, config, capture)
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

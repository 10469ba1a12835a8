"""What does choosing the next tokens cost in a step, by what the sequences ask for?

    .venv/bin/python benchmarks/sampling_cost.py [--batch 1 8 64] [--device cuda]

Times the sampler on random logits of GPT-J-6B's vocabulary, without a network, for a batch whose
sequences all ask for the same, and for one in which one sequence asks and the others do not.
Logits are copied before each call, since processors change them; the copy's time is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from gptj_predictor.engine.sequence import ScheduledChunk
from gptj_predictor.engine.step_logprobs import RawLogits
from gptj_predictor.sampling.params import SamplingParams
from gptj_predictor.sampling.sampler import Sampler

VOCABULARY, CONTEXT, EOS = 50400, 2048, 50256
#: Tokens of each sequence, and how many of them are its prompt's.
LENGTH, PROMPT = 400, 100
CALLS = 20

GREEDY = SamplingParams(
    min_length=0,
    max_length=CONTEXT,
    temperature=0.0,
    top_k=0,
    top_p=1.0,
    repetition_penalty=1.0,
    seed=0,
)
DEFAULTS = replace(GREEDY, temperature=1.0, top_k=50, top_p=0.9)  # V1's
PLAIN = replace(GREEDY, temperature=1.0)  # OpenAI's

CASES = {
    "greedy": GREEDY,
    "top-k 50, top-p 0.9": DEFAULTS,
    "temperature alone": PLAIN,
    "repetition penalty": replace(DEFAULTS, repetition_penalty=1.2),
    "presence and frequency penalty": replace(
        DEFAULTS, presence_penalty=0.5, frequency_penalty=0.5
    ),
    "a bias on 300 tokens": replace(DEFAULTS, logit_bias=tuple((i, -1.0) for i in range(300))),
    "min-p": replace(DEFAULTS, min_p=0.05),
    "typical-p": replace(DEFAULTS, typical_p=0.9),
    "typical-p of all tokens": replace(PLAIN, typical_p=0.9),
    "5 log-probabilities": replace(DEFAULTS, logprobs=5),
}


def main() -> None:
    """Measure and print a line per case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--calls", type=int, default=CALLS, help="of each case, after a tenth more")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    for batch in arguments.batch:
        step = Step(batch, device)
        for name, params in CASES.items():
            everyone = step.milliseconds([params] * batch, arguments.calls)
            line = f"batch {batch}, {name}: {everyone:.2f} ms"
            if batch > 1 and params is not DEFAULTS:
                mixed = step.milliseconds([params] + [DEFAULTS] * (batch - 1), arguments.calls)
                line += f", {mixed:.2f} ms if one asks and the others have top-k and top-p"
            print(line)


class Step:
    """What the sampler gets from a batch of decoding sequences."""

    def __init__(self, batch: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        self._logits = (torch.randn(batch, VOCABULARY, generator=generator) * 3).to(device)
        table = torch.randint(0, VOCABULARY, (batch, CONTEXT), generator=generator)
        self._table = table.to(device)
        self._lengths = np.full(batch, LENGTH)
        self._places = torch.tensor([list(range(batch)), [LENGTH] * batch]).to(device)
        self._sampler = Sampler((EOS,))
        self._device = device

    def milliseconds(self, params: list[SamplingParams], calls: int) -> float:
        """Median of a call."""
        chunks: Any = [SimpleNamespace(sequence=SimpleNamespace(params=p)) for p in params]
        seconds = []
        for number in range(-calls // 10, calls):
            logits = self._logits.clone()
            self._wait()
            started = time.perf_counter()
            raw = RawLogits(logits, params)
            tokens = self._sampler.sample(
                logits, params, self._lengths, [PROMPT] * len(params), self._table, self._places
            )
            raw.logprobs(cast("list[ScheduledChunk]", chunks), tokens)
            self._wait()
            if number >= 0:
                seconds.append(time.perf_counter() - started)
        return statistics.median(seconds) * 1000

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


if __name__ == "__main__":
    main()

"""How long a replica takes: a step by its batch size, and a prompt by its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptj_predictor.bench.results import read_results

#: GPT-J-6B at 16 bit: bytes that a step reads of the weights, bytes of a token in the KV cache, and
#: floating-point operations for a token.
STEP_WEIGHT_BYTES = 11.69e9
WEIGHT_BYTES = 12.1e9
KV_BYTES_PER_TOKEN = 448 * 1024
FLOP_PER_TOKEN = 2 * 6.05e9
#: The server's defaults.
MAX_BATCH_SIZE = 256
KV_CACHE_SHARE = 0.9


@dataclass(frozen=True)
class Card:
    """A GPU, for limits that are computed.

    Attributes:
        bandwidth: Of its memory, in bytes a second. A100 and A40 by data sheet, H200 of a copy.
        flops: Floating-point operations a second at 16 bit, dense, by data sheet.
        memory: In bytes.
    """

    name: str
    bandwidth: float
    flops: float
    memory: float


CARDS = {
    "a40": Card("A40", 0.70e12, 149.7e12, 48e9),
    "a100": Card("A100-80", 2.03e12, 312e12, 80e9),
    "h200": Card("H200", 4.30e12, 989e12, 141e9),
}


@dataclass(frozen=True)
class ServiceTimes:
    """What the simulation needs to know of a replica.

    Attributes:
        source: Where the figures are from, for the reader.
        step_seconds: Seconds of a decode step; the index is the number of sequences, from 0 to the
            largest batch.
        prefill_seconds: Seconds for a token of a prompt.
    """

    source: str
    step_seconds: tuple[float, ...]
    prefill_seconds: float

    @property
    def max_batch(self) -> int:
        """The most sequences that are decoded together."""
        return len(self.step_seconds) - 1

    def throughput(self, sequences: int, prompt_tokens: float, new_tokens: float) -> float:
        """Requests a second that a replica ends while its batch always has so many sequences.

        For each text that ends another begins, and the prompt of each pauses all others.
        """
        prompts = sequences * prompt_tokens * self.prefill_seconds
        return sequences / (prompts + (new_tokens - 1) * self.step_seconds[sequences])


def computed(card: Card, prompt_tokens: int, new_tokens: int) -> ServiceTimes:
    """The limits of a card for GPT-J-6B at 16 bit. Nothing of this is measured.

    A step reads the weights and the KV cache of all sequences once. A prompt takes its operations
    at the card's peak. A real server is slower.

    Args:
        card: The GPU.
        prompt_tokens: Mean tokens of a prompt.
        new_tokens: Mean tokens of a text. With geometric lengths, a running text has this many at
            a random moment, on average.
    """
    context = prompt_tokens + new_tokens
    room = (card.memory - WEIGHT_BYTES) * KV_CACHE_SHARE / KV_BYTES_PER_TOKEN
    sequences = np.arange(min(MAX_BATCH_SIZE, int(room / context)) + 1)
    steps = (STEP_WEIGHT_BYTES + sequences * context * KV_BYTES_PER_TOKEN) / card.bandwidth
    return ServiceTimes(
        f"computed limits for GPT-J-6B on {card.name}, not measured",
        tuple(steps.tolist()),
        FLOP_PER_TOKEN / card.flops,
    )


def measured(path: Path) -> ServiceTimes:
    """The times in a ``results.json`` of ``gptj-predictor benchmark``.

    The batch ends where the measurement ended: nothing is extrapolated. Of each batch the longest
    length counts. A prompt token takes what the first token of the largest batch took, by prompt
    token.

    Raises:
        PlanError: the file cannot be read.
        ValueError: a batch size is missing, or has one new token only.
    """
    results = read_results(path)
    steps = [0.0]
    prefill = 0.0
    longest = max(results.settings.lengths)
    for batch in range(1, results.settings.batch_size + 1):
        cell = results.cell(batch, longest)
        if cell is None or cell.seconds is None or cell.first_token_seconds is None:
            raise ValueError(f"{path} has no times for batch {batch} and {longest} tokens")
        if cell.new_tokens < 2:
            raise ValueError(f"{path} was measured with one new token: that is no decode step")
        steps.append((cell.seconds - cell.first_token_seconds) / (cell.new_tokens - 1))
        prefill = cell.first_token_seconds / (batch * results.settings.prompt_tokens)
    device = results.run.device
    names = "an unknown device" if device is None else ", ".join(device.names)
    size = f"{results.run.parameters / 1e9:.2f} billion parameters"
    return ServiceTimes(f"measured on {names}, {size}", tuple(steps), prefill)

"""How much of everything is measured: the real thing, and one of seconds that shows it runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gptj_predictor.model.config import NetworkConfig


@dataclass(frozen=True)
class Plan:
    """Sizes of everything.

    Attributes:
        config: The network that speed is measured with.
        small: The network that tokens are compared with.
        batches: Sequences that start together.
        int8_batches: Those that are measured with int8 weights too.
        prompt: Tokens of their prompts.
        new: Tokens that each of them gets.
        first: Prompt lengths whose first token is timed.
        long: A batch, its prompt tokens and its new ones.
        at_once: Requests that come at once; ``one_by_one`` of them are given to ``generate``.
        one_by_one: See ``at_once``.
        shared: Tokens that two prompts share, and those that they do not.
        unshared: Prompt tokens, new tokens and pairs of runs with prefix caching and without.
        profiled: Batches of which steps are profiled.
        profiled_steps: How many of them.
        compared: Prompt lengths of the small network's sequences, and their new tokens.
        rounds: Of each measurement.
        max_prefill_tokens: Prompt tokens of one step.
    """

    config: NetworkConfig
    small: NetworkConfig
    batches: tuple[int, ...]
    int8_batches: tuple[int, ...]
    prompt: int
    new: int
    first: tuple[int, ...]
    long: tuple[int, int, int]
    at_once: int
    one_by_one: int
    shared: tuple[int, int]
    unshared: tuple[int, int, int]
    profiled: tuple[int, ...]
    profiled_steps: int
    compared: tuple[tuple[int, ...], int]
    rounds: int
    max_prefill_tokens: int


#: GPT-J-6B. 2,047 prompt tokens are the most: the context of 2,048 needs a place for a new one.
FULL = Plan(
    config=NetworkConfig(),
    small=NetworkConfig(
        vocab_size=1000, n_positions=512, n_embd=512, n_layer=3, n_head=2, eos_token_ids=(7,)
    ),
    batches=(1, 8, 32, 64, 256, 512),
    int8_batches=(1, 8, 32, 64),
    prompt=128,
    new=128,
    first=(128, 2047),
    long=(120, 128, 1920),
    at_once=64,
    one_by_one=4,
    shared=(1536, 32),
    unshared=(256, 16, 20),
    profiled=(1, 256),
    profiled_steps=8,
    compared=((1, 15, 16, 17, 100, 200, 333), 64),
    rounds=3,
    max_prefill_tokens=2048,
)

_TINY = NetworkConfig(
    vocab_size=96,
    n_positions=96,
    n_embd=64,
    n_layer=2,
    n_head=2,
    rotary_dim=16,
    eos_token_ids=(7,),
)

#: Everything once, on a network of one layer; the figures mean nothing.
DRY = Plan(
    config=replace(_TINY, n_layer=1, n_head=1),
    small=_TINY,
    batches=(1, 3, 64),
    int8_batches=(1, 3),
    prompt=8,
    new=6,
    first=(8, 47),
    long=(2, 8, 12),
    at_once=64,
    one_by_one=2,
    shared=(32, 4),
    unshared=(16, 4, 2),
    profiled=(1, 3),
    profiled_steps=2,
    compared=((1, 15, 17, 33), 6),
    rounds=2,
    max_prefill_tokens=64,
)

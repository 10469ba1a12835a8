"""How one sequence's tokens are chosen: plain values, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class SamplingParams:
    """How one sequence's tokens are chosen; lengths are totals, prompt included."""

    min_length: int  # what ends the text is not chosen before the sequence has this many tokens
    max_length: int  # the sequence ends when it has this many; the prompt's: it is only computed
    temperature: float  # divides the logits; 0 takes the most likely token
    top_k: int  # keep the k most likely tokens; 0 keeps all
    top_p: float  # keep the fewest most likely tokens whose probabilities reach p
    repetition_penalty: float  # Keskar et al., CTRL (2019), section 4.1, over prompt and output
    seed: int  # 64 bits; with the token's position it decides every random choice
    min_p: float = 0.0  # drop tokens less likely than this share of the likeliest
    typical_p: float = 1.0  # Meister et al., Locally Typical Sampling (2022), section 3
    presence_penalty: float = 0.0  # OpenAI's formula, over generated tokens
    frequency_penalty: float = 0.0  # the same
    logit_bias: tuple[tuple[int, float], ...] = ()  # token ids, each once, and what is added
    stop_token_ids: tuple[int, ...] = ()  # the sequence ends with one of them
    ignore_eos: bool = False  # end of text does not end the sequence
    logprobs: int | None = None  # log-probabilities: of each new token, and of so many likeliest
    prompt_logprobs: int | None = None  # the same for the prompt's tokens from the second on

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0

    @cached_property
    def adjusts_logits(self) -> bool:
        """Whether it has a bias or a penalty."""
        return bool(self.logit_bias) or self.repetition_penalty != 1 or self.penalizes_output

    @cached_property
    def penalizes_output(self) -> bool:
        """Whether it has a penalty over generated tokens alone."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0

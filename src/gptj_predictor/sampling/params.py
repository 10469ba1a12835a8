"""How one sequence's tokens are chosen: plain values, no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingParams:
    """How one sequence's tokens are chosen; lengths are totals, prompt included."""

    min_length: int  # end of text is not chosen before the sequence has this many tokens
    max_length: int  # the sequence ends when it has this many tokens
    temperature: float  # divides the logits; 0 takes the most likely token
    top_k: int  # keep the k most likely tokens; 0 keeps all
    top_p: float  # keep the fewest most likely tokens whose probabilities reach p
    repetition_penalty: float  # Keskar et al., CTRL (2019), section 4.1, over prompt and output
    seed: int  # 64 bits; with the token's position it decides every random choice

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0

"""Sampling parameters of which a test names only those that it is about."""

from __future__ import annotations

from typing import Any

from gptj_predictor.sampling.params import SamplingParams

#: Tokens of the longest sequence.
CONTEXT = 100


def params(**given: Any) -> SamplingParams:
    """Those given, and else from all tokens as likely as they are."""
    plain: dict[str, Any] = {
        "min_length": 0,
        "max_length": CONTEXT,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "seed": 0,
    }
    return SamplingParams(**(plain | given))

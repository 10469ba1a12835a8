"""How a text came about: the same ``details`` in every protocol with JSON."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from gptj_predictor.engine.request import FinishReason
from gptj_predictor.server.generation_call import GeneratedText


class Details(BaseModel):
    """How a text came about."""

    finish_reason: FinishReason = Field(
        description="eos_token, length, stop_sequence, deadline (the request's time was over) or "
        "shutdown (the server stopped)."
    )
    prompt_tokens: int = Field(description="Tokens of the prompt.")
    generated_tokens: int = Field(description="Tokens that were generated.")
    cached_tokens: int = Field(description="Tokens of the prompt that the prefix cache had.")
    seed: int = Field(description="Gives the same text again.")


def details_of(text: GeneratedText) -> dict[str, Any]:
    """A text's details as JSON."""
    details = Details(
        finish_reason=text.finish_reason,
        prompt_tokens=text.timeline.num_prompt_tokens,
        generated_tokens=text.num_generated_tokens,
        cached_tokens=text.timeline.num_cached_tokens,
        seed=text.seed,
    )
    return details.model_dump()

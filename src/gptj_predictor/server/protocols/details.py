"""How a text came about: the same ``details`` in every protocol with JSON."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from gptj_predictor.engine.request import FinishReason, TokenLogprobs
from gptj_predictor.server.generation_call import GeneratedText

#: Stands for what is less likely still: JSON has no infinity. OpenAI and vLLM use it too.
MIN_LOGPROB = -9999.0


class LikelyToken(BaseModel):
    """How likely a token was, before any parameter had its effect."""

    id: int
    text: str = Field(description="Bytes that are no whole character are U+FFFD.")
    logprob: float = Field(description="Natural logarithm of its probability.")


class ChosenToken(LikelyToken):
    """A token of the text."""

    top_logprobs: list[LikelyToken] = Field(description="The likeliest, the likeliest first.")


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
    tokens: list[ChosenToken] | None = Field(
        None, description="With logprobs: those of the text; what a stop string cut away is not."
    )


def details_of(text: GeneratedText) -> dict[str, Any]:
    """A text's details as JSON."""
    details = Details(
        finish_reason=text.finish_reason,
        prompt_tokens=text.timeline.num_prompt_tokens,
        generated_tokens=text.num_generated_tokens,
        cached_tokens=text.timeline.num_cached_tokens,
        seed=text.seed,
    )
    # A text may have thousands of tokens: no model is made of each.
    tokens = {"tokens": [_chosen(text, token.logprobs) for token in text.tokens]}
    return details.model_dump(exclude={"tokens"}) | (tokens if text.has_logprobs else {})


def bounded(logprob: float) -> float:
    """A log-probability that JSON has."""
    return max(logprob, MIN_LOGPROB)


def _chosen(text: GeneratedText, logprobs: TokenLogprobs) -> dict[str, Any]:
    likeliest = [_likely(text, *one) for one in logprobs.top]
    return _likely(text, logprobs.token_id, logprobs.logprob) | {"top_logprobs": likeliest}


def _likely(text: GeneratedText, token_id: int, logprob: float) -> dict[str, Any]:
    return {"id": token_id, "text": text.spell(token_id), "logprob": bounded(logprob)}

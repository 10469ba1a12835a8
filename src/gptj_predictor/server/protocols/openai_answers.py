"""What OpenAI's routes answer, for the OpenAPI document.

Field by field as in OpenAI's reference, https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from gptj_predictor.server.protocols.details import Details


class TokenDetails(BaseModel):
    """Of the prompts' tokens."""

    cached_tokens: int = Field(description="Those that the prefix cache had.")


class Usage(BaseModel):
    """Tokens of a request; a prompt counts once, however many texts it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: TokenDetails


class Logprobs(BaseModel):
    r"""Log-probabilities of a text's tokens; the lists are equally long.

    Bytes that are not a whole character are spelled ``bytes:\xe2\x82``. A token that ends the
    text is there too. What a stop string cut away is not.
    """

    tokens: list[str]
    token_logprobs: list[float | None] = Field(description="null for a prompt's first token.")
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int] = Field(description="Where each token begins in text, in characters.")


class CompletionChoice(BaseModel):
    """A text, or the next part of one."""

    index: int = Field(description="Texts of the first prompt come first.")
    text: str
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None = Field(
        description="stop: at the end of the text or before a stop string; length: it was cut off, "
        "by max_tokens, by its deadline or by the server's end; null: more comes."
    )
    details: Details | None = None


class Completion(BaseModel):
    """An answer, or an event of a streamed one."""

    id: str = Field(description="cmpl- and the request's id, which the server's log has.")
    object: Literal["text_completion"] = "text_completion"
    created: int = Field(description="When the request came, in seconds since 1970.")
    model: str
    system_fingerprint: str = Field(description="Another one may give other texts for a seed.")
    choices: list[CompletionChoice]
    usage: Usage | None = None


class ChatMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatLikelyToken(BaseModel):
    """A token that might have come."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(ChatLikelyToken):
    """A token of a message."""

    top_logprobs: list[ChatLikelyToken]


class ChatLogprobs(BaseModel):
    """Log-probabilities of a message's tokens."""

    content: list[ChatToken]
    refusal: None = None


class ChatChoice(BaseModel):
    """A message to choose."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]
    details: Details | None = None


class ChatCompletion(BaseModel):
    """An answer. An event of a streamed one is a ``chat.completion.chunk`` with ``delta``."""

    id: str = Field(description="chatcmpl- and the request's id, which the server's log has.")
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(description="When the request came, in seconds since 1970.")
    model: str
    system_fingerprint: str = Field(description="Another one may give other texts for a seed.")
    choices: list[ChatChoice]
    usage: Usage


class ModelCard(BaseModel):
    """The served model."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="When it was first served, in seconds since 1970.")
    owned_by: str = "gptj-predictor"
    max_model_len: int = Field(description="Tokens of the longest sequence, prompt included.")


class ModelList(BaseModel):
    """All models: one. ``models`` is V1's list, the rest is OpenAI's."""

    models: list[str]
    object: Literal["list"] = "list"
    data: list[ModelCard]


class OpenAIError(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None = Field(description="The field at fault.")
    code: str | None


class OpenAIErrorResponse(BaseModel):
    """Any error."""

    error: OpenAIError

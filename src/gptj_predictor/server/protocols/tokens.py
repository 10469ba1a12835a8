"""``POST /tokenize`` and ``POST /detokenize``: names and shapes are those of vLLM's calls."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from kserve.errors import InvalidInput, ModelNotFound
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gptj_predictor.server.protocols.json_bodies import cut, parse_json, shown, unknown_name
from gptj_predictor.settings import Limits

#: What the fields may be.
_WORDS = {
    "model": "use this model's name",
    "prompt": "it must be a string",
    "add_special_tokens": "use true or false",
    "tokens": "it must be a list of token ids",
}


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(None, description="This model's name, if any is given.")


class TokenizeRequest(_Request):
    """A text to be made into tokens."""

    prompt: str = Field(description="The text.")
    add_special_tokens: bool = Field(
        False, description="For clients that send it. Nothing is added in either case."
    )


class DetokenizeRequest(_Request):
    """Tokens to be made into a text."""

    tokens: list[Annotated[int, Field(ge=0)]] = Field(description="Token ids.")


class TokenizeResponse(BaseModel):
    """A text's tokens."""

    tokens: list[int] = Field(description="Token ids; none is added at the ends.")
    count: int = Field(description="How many they are.")
    max_model_len: int = Field(description="Tokens of the longest sequence, prompt included.")


class DetokenizeResponse(BaseModel):
    """The text that tokens spell."""

    prompt: str = Field(
        description="With the texts of special tokens; bytes that are not UTF-8 are U+FFFD."
    )


Asked = TypeVar("Asked", bound=_Request)


def max_tokens(limits: Limits) -> int:
    """Token ids in one request: as many as the prompts of a request for texts may have."""
    return limits.context * limits.max_instances


def request_schema(kind: type[_Request], limits: Limits) -> dict[str, Any]:
    """A request's JSON schema, with what this model and server allow."""
    schema = kind.model_json_schema()
    tokens = schema["properties"].get("tokens")
    if tokens is not None:
        tokens["items"]["maximum"] = limits.vocabulary - 1
        tokens["maxItems"] = max_tokens(limits)
    return schema


def parse_request(kind: type[Asked], body: bytes, model_name: str, limits: Limits) -> Asked:
    """Read a body.

    Args:
        kind: What it must be.
        body: JSON in UTF-8, whatever its Content-Type says.
        model_name: The name of the model.
        limits: What the model and the server allow.

    Raises:
        InvalidInput: naming the field, its value and what is allowed.
        ModelNotFound: the request is for another model.
    """
    raw = parse_json(body)
    if not isinstance(raw, dict):
        raise InvalidInput(f"the body is {shown(raw)}; it must be an object")
    try:
        request = kind.model_validate(raw, strict=True)
    except ValidationError as error:
        raise InvalidInput(_explain(error, kind, limits)) from None
    if request.model not in (None, model_name):
        raise ModelNotFound(cut(request.model))
    if isinstance(request, DetokenizeRequest):
        _check_tokens(request.tokens, limits)
    return request


def _check_tokens(tokens: list[int], limits: Limits) -> None:
    if len(tokens) > max_tokens(limits):
        raise InvalidInput(f"tokens: {len(tokens)} of them; allowed are 0 to {max_tokens(limits)}")
    for place, token in enumerate(tokens):
        if token >= limits.vocabulary:
            raise InvalidInput(f"tokens[{place}]: {shown(token)} is not allowed; {_ids(limits)}")


def _explain(error: ValidationError, kind: type[_Request], limits: Limits) -> str:
    """The first problem, in our words."""
    problems = error.errors(include_url=False)
    unknown = (one for one in problems if one["type"] == "extra_forbidden")
    problem = next(unknown, problems[0])  # a name that is wrong, not the one that is missing
    name, *place = problem["loc"]
    if problem["type"] == "extra_forbidden":
        return unknown_name(problem["loc"], list(kind.model_fields))
    allowed = _ids(limits) if place else _WORDS[str(name)]
    if problem["type"] == "missing":
        return f"{name}: missing; {allowed}"
    path = "".join([str(name), *(f"[{index}]" for index in place)])
    return f"{path}: {shown(problem['input'])} is not allowed; {allowed}"


def _ids(limits: Limits) -> str:
    return f"use an integer from 0 to {limits.vocabulary - 1}"

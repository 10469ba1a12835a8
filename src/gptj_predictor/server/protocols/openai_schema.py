"""The fields of requests to OpenAI's routes, and how they are checked.

Field by field as in OpenAI's reference, https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from kserve.errors import InvalidInput
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gptj_predictor.server.protocols.json_bodies import shown, unknown_name
from gptj_predictor.server.protocols.parameters import parameters_schema
from gptj_predictor.settings import GenerationParameters, Limits
from gptj_predictor.settings.metadata import (
    ModelLimit,
    UnsetMeans,
    ZeroMeans,
    allowed_values,
    marker,
)

#: Our parameters that OpenAI has under another name. Two names for one thing could contradict.
RENAMED = {"max_new_tokens": "max_tokens", "num_return_sequences": "n", "return_full_text": "echo"}

#: OpenAI's, and for our other parameters those that change nothing.
DEFAULTS = GenerationParameters(temperature=1, top_k=0, top_p=1, max_new_tokens=16)

#: What a field may be, where its type does not say it.
WORDS = {
    "prompt": "it must be a string, a list of token ids, or a list of strings or of such lists",
    "stream_options": "use an object with include_usage, which is true or false",
    "messages": "it must be a list of objects with role and content",
    "suffix": "leave it out: a text is continued at its end",
}

Fields = TypeVar("Fields", bound=BaseModel)


#: Who may speak in a chat.
ROLES = ("system", "developer", "user", "assistant")

_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
    "additionalProperties": False,
}

_MESSAGES: dict[str, Any] = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {
            "role": {"enum": list(ROLES)},
            "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}]},
            "name": {"type": "string"},
        },
        "required": ["role", "content"],
        "additionalProperties": False,
    },
}


class StreamOptions(BaseModel):
    """What a streamed answer has beside its texts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    include_usage: bool = Field(
        False, description="Whether the last event before [DONE] has the usage."
    )


class CompletionFields(BaseModel):
    """The fields of a request that are OpenAI's alone; the others are ``GenerationParameters``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(
        None, description="The model's name or id. There is one, so it need not be named."
    )
    prompt: Any = Field(
        description="A string, token ids, or a list of either; null begins a new document."
    )
    max_tokens: Annotated[int, ModelLimit("context"), ZeroMeans("with echo")] = Field(
        16, ge=0, description="Maximum number of new tokens; 0 with echo only scores the prompt."
    )
    n: int = Field(1, ge=1, le=8, description="Texts per prompt.")
    best_of: Annotated[int | None, UnsetMeans("as many as n")] = Field(
        None,
        ge=1,
        le=8,
        description="Texts that are generated per prompt, of which the n with the highest mean "
        "log-probability per token are the answer; not streamed.",
    )
    logprobs: Annotated[int | None, UnsetMeans("none")] = Field(
        None,
        ge=0,
        le=5,
        description="Log-probabilities of the tokens and of so many likeliest, before any other "
        "parameter has its effect; with echo, of the prompt's tokens too.",
    )
    echo: bool = Field(False, description="Whether each text begins with its prompt.")
    stream: bool = Field(
        False, description="Whether the answer comes in pieces, as server-sent events."
    )
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")
    suffix: None = Field(None, description="Not there: a text is continued at its end.")
    user: Annotated[str | None, UnsetMeans("none")] = Field(
        None, description="For clients that send it; it changes nothing."
    )


class ChatFields(BaseModel):
    """The fields of a request for a chat that are OpenAI's alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(
        None, description="The model's name or id. There is one, so it need not be named."
    )
    messages: Any = Field(description="The chat so far.", json_schema_extra=_MESSAGES)
    max_completion_tokens: Annotated[int | None, ModelLimit("context"), UnsetMeans("context")] = (
        Field(None, ge=1, description="Maximum number of new tokens.")
    )
    max_tokens: Annotated[int | None, ModelLimit("context"), UnsetMeans("context")] = Field(
        None, ge=1, description="The older name of max_completion_tokens."
    )
    n: int = Field(1, ge=1, le=8, description="Messages to choose from.")
    logprobs: bool = Field(False, description="Whether tokens come with log-probabilities.")
    top_logprobs: Annotated[int | None, UnsetMeans("none")] = Field(
        None, ge=0, le=20, description="With logprobs: of so many likeliest tokens too."
    )
    stream: bool = Field(
        False, description="Whether the answer comes in pieces, as server-sent events."
    )
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")
    user: Annotated[str | None, UnsetMeans("none")] = Field(
        None, description="For clients that send it; it changes nothing."
    )


def completion_schema(limits: Limits) -> dict[str, Any]:
    """A request's JSON schema, with what this model and server allow."""
    schema = _schema(CompletionFields, limits)
    token_ids = {
        "type": "array",
        "items": {"type": "integer", "minimum": 0, "maximum": limits.vocabulary - 1},
    }
    lists = [
        {"type": "array", "items": items, "minItems": 1, "maxItems": limits.max_instances}
        for items in ({"type": "string"}, token_ids)
    ]
    schema["properties"]["prompt"]["anyOf"] = [
        {"type": "string"},
        token_ids | {"minItems": 1},
        *lists,
        {"type": "null"},
    ]
    return schema


def chat_schema(limits: Limits) -> dict[str, Any]:
    """The same of a request for a chat."""
    return _schema(ChatFields, limits)


def _schema(kind: type[BaseModel], limits: Limits) -> dict[str, Any]:
    """Own fields and our parameters in one piece, as OpenAPI looks for references elsewhere."""
    schema = kind.model_json_schema()
    options = schema.pop("$defs")["StreamOptions"]
    ours = parameters_schema(limits, DEFAULTS)["properties"]
    schema["properties"] |= {name: ours[name] for name in own_parameters(kind)}
    schema["properties"]["stream_options"] |= {"anyOf": [options, {"type": "null"}]}
    for name, field in kind.model_fields.items():
        if marker(field, ModelLimit) is not None:
            number = schema["properties"][name]
            number.get("anyOf", [number])[0]["maximum"] = limits.context
    return schema


def own_parameters(fields: type[BaseModel]) -> list[str]:
    """Our parameters that a request may have beside its own fields."""
    return [
        name
        for name in GenerationParameters.model_fields
        if name not in RENAMED and name not in fields.model_fields
    ]


def read_fields(
    raw: dict[str, Any], kind: type[Fields], limits: Limits
) -> tuple[Fields, dict[str, Any]]:
    """Check a body's fields, and leave our parameters, under our names, to be checked.

    As at OpenAI, ``null`` is a field that is not given.

    Raises:
        InvalidInput: naming the field, its value and what is allowed.
    """
    own = kind.model_fields
    known = [*own, *own_parameters(kind)]
    for name in raw:
        if name not in known:
            other = RENAMED.get(name)
            raise InvalidInput(
                f"{name}: unknown here; use {other}"
                if other in own
                else unknown_name([name], known)
            )
    given = {name: value for name, value in raw.items() if value is not None or name in WORDS}
    try:
        fields = kind.model_validate({k: v for k, v in given.items() if k in own}, strict=True)
    except ValidationError as error:
        raise InvalidInput(_explain(error, kind, limits)) from None
    parameters = {name: value for name, value in given.items() if name not in own}
    for name, other in RENAMED.items():
        if other in fields.model_fields_set and other in ("n", "max_tokens"):
            parameters[name] = getattr(fields, other)
    return fields, parameters


def _explain(error: ValidationError, kind: type[BaseModel], limits: Limits) -> str:
    """The first problem, in our words."""
    problem = error.errors(include_url=False)[0]
    name, *inner = (str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"{name}: missing; {WORDS[name]}"
    if problem["type"] == "extra_forbidden":
        return unknown_name([name, *inner], list(StreamOptions.model_fields))
    words = WORDS.get(name) or f"use {_allowed(kind, name, limits)}"
    return f"{'.'.join([name, *inner])}: {shown(problem['input'])} is not allowed; {words}"


def _allowed(kind: type[BaseModel], name: str, limits: Limits) -> str:
    model = {"context": limits.context, "vocabulary": limits.vocabulary}
    return allowed_values(kind.model_fields[name], model)

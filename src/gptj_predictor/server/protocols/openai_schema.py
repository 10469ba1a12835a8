"""What OpenAI's completions look like: requests as they are checked, answers as OpenAPI shows them.

Field by field as in OpenAI's reference, https://platform.openai.com/docs/api-reference/completions.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from kserve.errors import InvalidInput
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gptj_predictor.server.protocols.json_bodies import shown, unknown_name
from gptj_predictor.server.protocols.parameters import parameters_schema
from gptj_predictor.settings import GenerationParameters, Limits
from gptj_predictor.settings.metadata import ModelLimit, UnsetMeans, ZeroMeans, allowed_values

#: Our parameters that OpenAI has under another name. Two names for one thing could contradict.
RENAMED = {"max_new_tokens": "max_tokens", "num_return_sequences": "n", "return_full_text": "echo"}

#: What a field may be, where its type does not say it.
WORDS = {
    "prompt": "it must be a string, a list of token ids, or a list of strings or of such lists",
    "stream_options": "use an object with include_usage, which is true or false",
    "suffix": "leave it out: a text is continued at its end",
}

Fields = TypeVar("Fields", bound=BaseModel)


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
    echo: bool = Field(False, description="Whether each text begins with its prompt.")
    stream: bool = Field(
        False, description="Whether the answer comes in pieces, as server-sent events."
    )
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")
    suffix: None = Field(None, description="Not there: a text is continued at its end.")
    user: Annotated[str | None, UnsetMeans("none")] = Field(
        None, description="For clients that send it; it changes nothing."
    )


class TokenDetails(BaseModel):
    """Of the prompts' tokens."""

    cached_tokens: int = Field(description="Those that the prefix cache had.")


class Usage(BaseModel):
    """Tokens of a request; a prompt counts once, however many texts it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: TokenDetails


class CompletionChoice(BaseModel):
    """A text, or the next part of one."""

    index: int = Field(description="Texts of the first prompt come first.")
    text: str
    logprobs: None = None
    finish_reason: Literal["stop", "length"] | None = Field(
        description="stop: at the end of the text or before a stop string; length: it was cut off, "
        "by max_tokens, by its deadline or by the server's end; null: more comes."
    )


class Completion(BaseModel):
    """An answer, or an event of a streamed one."""

    id: str = Field(description="cmpl- and the request's id, which the server's log has.")
    object: Literal["text_completion"] = "text_completion"
    created: int = Field(description="When the request came, in seconds since 1970.")
    model: str
    system_fingerprint: str = Field(description="Another one may give other texts for a seed.")
    choices: list[CompletionChoice]
    usage: Usage | None = None


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


def _schema(kind: type[BaseModel], limits: Limits) -> dict[str, Any]:
    """Own fields and our parameters in one piece, as OpenAPI looks for references elsewhere."""
    schema = kind.model_json_schema()
    options = schema.pop("$defs")["StreamOptions"]
    ours = parameters_schema(limits)["properties"]
    schema["properties"] |= {name: ours[name] for name in own_parameters(kind)}
    schema["properties"]["stream_options"] |= {"anyOf": [options, {"type": "null"}]}
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
    given = {name: value for name, value in raw.items() if value is not None or name == "prompt"}
    try:
        fields = kind.model_validate({k: v for k, v in given.items() if k in own}, strict=True)
    except ValidationError as error:
        raise InvalidInput(_explain(error, kind, limits)) from None
    parameters = {name: value for name, value in given.items() if name not in own}
    for name, other in RENAMED.items():
        if other in fields.model_fields_set and name != "return_full_text":
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

"""The V1 protocol: ``POST /v1/models/NAME:predict``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from kserve.errors import InvalidInput
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gptj_predictor.server.event_stream import KEEP_ALIVE, KEEP_ALIVE_SECONDS, event
from gptj_predictor.server.generation import Generation
from gptj_predictor.server.generation_call import (
    FieldNames,
    GeneratedText,
    GenerationRequest,
    Piece,
)
from gptj_predictor.server.protocols.details import Details, details_of
from gptj_predictor.server.protocols.json_bodies import parse_json, shown, unknown_name
from gptj_predictor.server.protocols.parameters import (
    check_details,
    explain_parameter,
    parameters_schema,
    settle,
    with_lower_case_names,
)
from gptj_predictor.settings import GenerationParameters, Limits

_NAMES = FieldNames()

#: What the fields beside ``instances`` may be.
_WORDS: dict[tuple[int | str, ...], str] = {
    ("parameters",): "it must be an object",
    ("stream",): "use true or false",
}


class V1Request(BaseModel):
    """A V1 request's body."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    instances: list[str] = Field(min_length=1, description="The prompts.")
    parameters: GenerationParameters = Field(
        GenerationParameters(), description="Names in any letter case."
    )
    stream: bool = Field(
        False, description="Whether the answer comes in pieces, as server-sent events."
    )


class Prediction(BaseModel):
    """One generated sequence; details only if they were asked for."""

    generated_text: str
    details: Details | None = None


class V1Response(BaseModel):
    """A V1 response: one instance's sequences, or a list of them per instance."""

    predictions: list[Prediction] | list[list[Prediction]]


class V1Piece(BaseModel):
    """What has come of one sequence, as an event of a stream."""

    instance: int = Field(description="Number of the prompt, from 0.")
    sequence: int = Field(description="Number among the prompt's texts, from 0.")
    text: str = Field(description="The next part, in whole characters; the prompt is not in it.")


def openapi_schema(limits: Limits, defaults: GenerationParameters) -> dict[str, Any]:
    """The request's JSON schema, with what this model and server allow.

    It is in one piece, as OpenAPI looks for references in another place.
    """
    schema = V1Request.model_json_schema()
    del schema["$defs"]
    schema["properties"]["parameters"] = parameters_schema(limits, defaults)
    schema["properties"]["instances"]["maxItems"] = limits.max_instances
    return schema


def parse_request(body: bytes, defaults: GenerationParameters, limits: Limits) -> GenerationRequest:
    """Read a body, whatever its Content-Type says.

    Args:
        body: JSON in UTF-8.
        defaults: Used where the request says nothing.
        limits: What the model and the server allow.

    Raises:
        InvalidInput: naming the field, its value and what is allowed.
    """
    raw = parse_json(body)
    if not isinstance(raw, dict):
        raise InvalidInput(f"the body is {shown(raw)}; it must be an object with instances")
    if isinstance(raw.get("parameters"), dict):
        raw = raw | {"parameters": with_lower_case_names(raw["parameters"])}
    try:
        request = V1Request.model_validate(raw, strict=True)
    except ValidationError as error:
        raise InvalidInput(_explain(error, limits)) from None
    if len(request.instances) > limits.max_instances:
        raise InvalidInput(
            f"instances: {len(request.instances)} prompts; allowed are 1 to {limits.max_instances}"
        )
    parameters = settle(request.parameters, defaults, limits, _NAMES)
    check_details(parameters, _NAMES)
    return GenerationRequest(tuple(request.instances), parameters, request.stream)


def format_response(request: GenerationRequest, texts: list[list[GeneratedText]]) -> dict[str, Any]:
    """Texts per prompt as a body; a single instance is flat, as the tutorial shows it."""
    predictions = [
        [_prediction(text, request.parameters) for text in sequences] for sequences in texts
    ]
    return {"predictions": predictions[0] if len(predictions) == 1 else predictions}


async def events(request: GenerationRequest, generation: Generation) -> AsyncIterator[bytes]:
    """Every piece of text as it comes; last, the body that :func:`format_response` makes."""
    async for pieces in generation.pieces(KEEP_ALIVE_SECONDS):
        new = [event(_piece(piece)) for piece in pieces if piece.text]
        if new or not pieces:
            yield b"".join(new) or KEEP_ALIVE
    yield event(format_response(request, await generation.texts()))


def _piece(piece: Piece) -> dict[str, Any]:
    return {"instance": piece.instance, "sequence": piece.sequence, "text": piece.text}


def _prediction(text: GeneratedText, parameters: GenerationParameters) -> dict[str, Any]:
    full = text.prompt.text + text.text if parameters.return_full_text else text.text
    if not parameters.details:
        return {"generated_text": full}
    return {"generated_text": full, "details": details_of(text)}


def _explain(error: ValidationError, limits: Limits) -> str:
    """The first problem, in our words."""
    problem = error.errors(include_url=False)[0]
    location = problem["loc"]
    if location[0] == "parameters" and len(location) > 1:
        problem["loc"] = location[1:]
        return explain_parameter(problem, limits, _NAMES)
    if problem["type"] == "extra_forbidden":
        return unknown_name(location, list(V1Request.model_fields))
    if location in _WORDS:
        name = str(location[0])
        return f"{name}: {shown(problem['input'])} is not allowed; {_WORDS[location]}"
    if problem["type"] == "missing":
        return "instances: missing; it must be a list of strings"
    if len(location) > 1:
        return f"instances[{location[1]}]: {shown(problem['input'])} is not a string"
    return (
        f"instances: {shown(problem['input'])} is not allowed; it must be a list of 1 to "
        f"{limits.max_instances} strings"
    )

"""The Open Inference Protocol's ``generate`` and ``generate_stream``: a text in, its text out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

from kserve.errors import InvalidInput
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gptj_predictor.server.event_stream import KEEP_ALIVE, KEEP_ALIVE_SECONDS, event
from gptj_predictor.server.generation import Generation
from gptj_predictor.server.generation_call import FieldNames, GeneratedText, GenerationRequest
from gptj_predictor.server.protocols.details import Details, details_of
from gptj_predictor.server.protocols.json_bodies import parse_json, shown, unknown_name
from gptj_predictor.server.protocols.parameters import (
    check_details,
    parameters_schema,
    read_parameters,
    with_lower_case_names,
)
from gptj_predictor.server.tensors import MODEL_VERSION
from gptj_predictor.settings import GenerationParameters, Limits

#: The protocol's own name for a parameter, and ours.
PROTOCOL_NAME, OUR_NAME = "max_tokens", "max_new_tokens"


@dataclass(frozen=True)
class _Names(FieldNames):
    """There is one prompt, not a list."""

    prompts: str = "text_input"

    def prompt(self, number: int) -> str:
        return self.prompts


class GenerateBody(BaseModel):
    """A request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text_input: str = Field(description="The prompt.")
    parameters: dict[str, Any] = Field({}, description="V1's; max_tokens is max_new_tokens.")
    id: str = Field("", description="Is repeated in the answer.")


class GenerateResponse(BaseModel):
    """An answer."""

    id: str | None = None
    model_name: str
    model_version: str
    text_output: str
    details: Details | None = None


class GenerateEvent(GenerateResponse):
    """An event of a stream."""

    text_output: str = Field(
        description="The next part of the text, in whole characters; empty in the last event."
    )
    details: Details | None = Field(None, description="Only in the last event.")
    done: bool = Field(description="Whether it is the last event.")


_WORDS = {
    "text_input": "it must be a string",
    "parameters": "it must be an object",
    "id": "use a string",
}


@dataclass(frozen=True)
class GenerateRequest(GenerationRequest):
    """A request for one text.

    Attributes:
        id: The client's, for the answer; empty if there is none.
    """

    id: str = ""


def generate_schema(limits: Limits, defaults: GenerationParameters) -> dict[str, Any]:
    """A request's schema, with what this model and server allow."""
    parameters = parameters_schema(limits, defaults)
    properties = parameters["properties"]
    properties["return_full_text"]["default"] = False
    properties["num_return_sequences"] = {
        "type": "integer",
        "const": 1,
        "default": 1,
        "description": "The answer has one text.",
    }
    properties[PROTOCOL_NAME] = properties[OUR_NAME] | {
        "description": f"The protocol's name for {OUR_NAME}; give one of them."
    }
    schema = GenerateBody.model_json_schema()
    schema["properties"]["parameters"] = parameters
    return schema


def parse_generate(
    body: bytes, defaults: GenerationParameters, limits: Limits, *, stream: bool
) -> GenerateRequest:
    """Read a body, whatever its Content-Type says.

    Args:
        body: JSON in UTF-8.
        defaults: Used where the request says nothing.
        limits: What the model and the server allow.
        stream: Whether the text is wanted as it comes.

    Raises:
        InvalidInput: naming the field, its value and what is allowed.
    """
    raw = parse_json(body)
    if not isinstance(raw, dict):
        raise InvalidInput(f"the body is {shown(raw)}; it must be an object with text_input")
    try:
        asked = GenerateBody.model_validate(raw, strict=True)
    except ValidationError as error:
        raise InvalidInput(_explain(error)) from None
    names, given = _Names(), with_lower_case_names(asked.parameters)
    if PROTOCOL_NAME in given:
        if OUR_NAME in given:
            raise InvalidInput(
                f"parameters.{PROTOCOL_NAME}: {OUR_NAME} is given too, which is the same"
            )
        names = replace(names, renamed={OUR_NAME: PROTOCOL_NAME})
        given[OUR_NAME] = given.pop(PROTOCOL_NAME)
    defaults = defaults.model_copy(update={"return_full_text": False, "num_return_sequences": 1})
    parameters = read_parameters(given, defaults, limits, names)
    check_details(parameters, names)
    if parameters.num_return_sequences != 1:
        raise InvalidInput(
            f"parameters.num_return_sequences: {parameters.num_return_sequences} is not allowed; "
            "use 1, as the answer has one text"
        )
    return GenerateRequest((asked.text_input,), parameters, stream=stream, names=names, id=asked.id)


def _explain(error: ValidationError) -> str:
    """The first problem, in our words."""
    problem = error.errors(include_url=False)[0]
    name = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        return unknown_name([name], list(GenerateBody.model_fields))
    if problem["type"] == "missing":
        return f"{name}: missing; {_WORDS[name]}"
    return f"{name}: {shown(problem['input'])} is not allowed; {_WORDS[name]}"


def generate_response(
    request: GenerateRequest, texts: list[list[GeneratedText]], model_name: str
) -> dict[str, Any]:
    """The text as a body."""
    [[text]] = texts
    return _message(request, _prompt(request) + text.text, model_name) | _details(request, text)


async def generate_events(
    request: GenerateRequest, generation: Generation, model_name: str
) -> AsyncIterator[bytes]:
    """The text as it comes; then that this was all, without more text."""
    before = _prompt(request)
    async for pieces in generation.pieces(KEEP_ALIVE_SECONDS):
        if not pieces:
            yield KEEP_ALIVE
        for piece in pieces:  # of one text
            if piece.text:
                yield event(_message(request, before + piece.text, model_name) | {"done": False})
                before = ""
    [[text]] = await generation.texts()
    message = _message(request, before, model_name) | _details(request, text)
    yield event(message | {"done": True})


def _prompt(request: GenerateRequest) -> str:
    return str(request.prompts[0]) if request.parameters.return_full_text else ""


def _message(request: GenerateRequest, text: str, model_name: str) -> dict[str, Any]:
    given = {"id": request.id} if request.id else {}
    return given | {
        "model_name": model_name,
        "model_version": MODEL_VERSION,
        "text_output": text,
    }


def _details(request: GenerateRequest, text: GeneratedText) -> dict[str, Any]:
    return {"details": details_of(text)} if request.parameters.details else {}

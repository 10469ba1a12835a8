"""``POST /v2/models/NAME/infer``: JSON, and tensors in it or in binary behind it."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi.responses import Response
from kserve.constants.constants import INFERENCE_CONTENT_LENGTH_HEADER
from kserve.errors import InvalidInput
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gptj_predictor.server.generation_call import GeneratedText
from gptj_predictor.server.protocols.infer import (
    NAMES,
    InferRequest,
    check_inputs,
    read_infer_parameters,
    read_outputs,
    read_raw_prompts,
)
from gptj_predictor.server.protocols.json_bodies import parse_json, shown, unknown_name
from gptj_predictor.server.protocols.parameters import parameters_schema, with_lower_case_names
from gptj_predictor.server.tensors import DETAILS, MODEL_VERSION, OUTPUTS, PROMPT
from gptj_predictor.settings import GenerationParameters, Limits

#: How many bytes of a body are JSON; without it, all.
LENGTH_HEADER = INFERENCE_CONTENT_LENGTH_HEADER

#: What fields may be, where a client gives something else.
_WORDS = {
    "id": "use a string",
    "model_name": "use a string",
    "inputs": "it must be a list of tensors",
    "outputs": "it must be a list of objects with a name",
    "parameters": "it must be an object",
    "name": "use a string",
    "datatype": f"use {PROMPT.datatype}",
    "shape": "it must be a list of integers",
    "data": "it must be a list of strings",
    "binary_data_size": "use a number of bytes",
    "binary_data": "use true or false",
    "binary_data_output": "use true or false",
}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputParameters(_Part):
    """Of an input."""

    binary_data_size: int | None = Field(
        None, ge=0, description="Bytes of its data, which is behind the JSON."
    )


class OutputParameters(_Part):
    """Of a requested output."""

    binary_data: bool | None = Field(
        None, description="Whether its data comes behind the JSON; binary_data_output if unset."
    )


class RequestInput(_Part):
    """A tensor of prompts."""

    name: str = Field(description=f"{PROMPT.name}: the prompts.")
    datatype: str = Field(description=f"{PROMPT.datatype}: strings in UTF-8.")
    shape: list[int] = Field(description="[n], or [n,1].")
    parameters: InputParameters = InputParameters()
    data: list[str | list[str]] | None = Field(None, description="The prompts, if not in binary.")


class RequestedOutput(_Part):
    """An output that is wanted."""

    name: str = Field(
        description="generated_text, finish_reason, prompt_tokens, generated_tokens or details."
    )
    parameters: OutputParameters = OutputParameters()


class InferBody(_Part):
    """The JSON part of a request."""

    id: str = Field("", description="Is repeated in the answer.")
    model_name: str | None = Field(None, description="As in the URL, if it is given.")
    parameters: dict[str, Any] = Field({}, description="V1's, and binary_data_output.")
    inputs: list[RequestInput] = Field(description="One: the prompts.")
    outputs: list[RequestedOutput] = Field([], description="All if none is given.")


class ResponseTensor(BaseModel):
    """An output: one element for each text, the first prompt's texts first."""

    name: str
    datatype: str
    shape: list[int]
    data: list[str] | list[int] | None = None
    parameters: InputParameters | None = None


class InferResponse(BaseModel):
    """The JSON part of an answer."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[ResponseTensor]


#: An answer with binary data, in OpenAPI's words.
BINARY_ANSWER: dict[str, Any] = {
    "content": {
        "application/octet-stream": {
            "schema": {"type": "string", "format": "binary"},
        }
    },
    "headers": {
        LENGTH_HEADER: {
            "description": "Bytes of the JSON, which the outputs' data follow in their order; only "
            "if some is in binary.",
            "schema": {"type": "integer", "minimum": 0},
        }
    },
}

#: What its route says of it.
DESCRIPTION = (
    "Tensors in, tensors out. An input's data may be in binary behind the JSON: its parameter "
    f"binary_data_size says how many bytes it has, and the header {LENGTH_HEADER} how many the "
    "JSON has. So may an output's, if that is asked for."
)


def infer_schema(limits: Limits, defaults: GenerationParameters) -> dict[str, Any]:
    """The JSON part's schema in one piece, with what this model and server allow."""
    parameters = parameters_schema(limits, defaults)
    parameters["properties"]["return_full_text"]["default"] = False
    parameters["properties"]["binary_data_output"] = {
        "type": "boolean",
        "default": False,
        "description": "Whether outputs come in binary, behind the JSON.",
    }
    schema = InferBody.model_json_schema()
    parts = schema.pop("$defs")
    for part, one in (("RequestInput", "Input"), ("RequestedOutput", "Output")):
        parts[part]["properties"]["parameters"] = parts[f"{one}Parameters"]
    schema["properties"]["parameters"] = parameters
    schema["properties"]["inputs"]["items"] = parts["RequestInput"]
    schema["properties"]["inputs"] |= {"minItems": 1, "maxItems": 1}
    tensor = schema["properties"]["inputs"]["items"]["properties"]
    tensor["name"]["const"] = PROMPT.name
    tensor["datatype"]["const"] = PROMPT.datatype
    count = {"type": "integer", "minimum": 1, "maximum": limits.max_instances}
    tensor["shape"] |= {"prefixItems": [count, {"const": 1}], "items": False, "minItems": 1}
    output = parts["RequestedOutput"]
    output["properties"]["name"]["enum"] = [one.name for one in (*OUTPUTS, DETAILS)]
    schema["properties"]["outputs"]["items"] = output
    return schema


def parse_infer(
    body: bytes,
    json_length: str | None,
    model_name: str,
    defaults: GenerationParameters,
    limits: Limits,
) -> InferRequest:
    """Read a body, whatever its Content-Type says.

    Args:
        body: JSON, and the data of binary inputs behind it.
        json_length: Bytes of the JSON as the header says; ``None`` for all.
        model_name: As in the URL.
        defaults: Used where the request says nothing.
        limits: What the model and the server allow.

    Raises:
        InvalidInput: naming the field, its value and what is allowed.
    """
    split = len(body) if json_length is None else _json_bytes(json_length, len(body))
    raw = parse_json(body[:split])
    if not isinstance(raw, dict):
        raise InvalidInput(f"the body is {shown(raw)}; it must be an object with inputs")
    try:
        asked = InferBody.model_validate(raw, strict=True)
    except ValidationError as error:
        raise InvalidInput(_explain(error)) from None
    if asked.model_name not in (None, model_name):
        text = f"model_name: {shown(asked.model_name)} is not the model of the URL"
        raise InvalidInput(f"{text}, {model_name[:200]}")
    count = check_inputs([(one.name, one.datatype, one.shape) for one in asked.inputs], limits)
    prompts = _prompts(asked.inputs[0], count, body[split:])
    given = with_lower_case_names(asked.parameters)
    binary = given.pop("binary_data_output", False)
    if not isinstance(binary, bool):
        raise InvalidInput(
            f"parameters.binary_data_output: {shown(binary)} is not allowed; use true or false"
        )
    parameters = read_infer_parameters(given, defaults, limits)
    kinds = read_outputs([output.name for output in asked.outputs], parameters)
    wishes = {output.name: output.parameters.binary_data for output in asked.outputs}
    outputs = tuple(
        (kind, binary if wishes.get(kind.name) is None else bool(wishes[kind.name]))
        for kind in kinds
    )
    return InferRequest(prompts, parameters, names=NAMES, id=asked.id, outputs=outputs)


def _json_bytes(header: str, size: int) -> int:
    if header.isascii() and header.isdigit() and len(header) < 20 and int(header) <= size:
        return int(header)
    raise InvalidInput(
        f"{LENGTH_HEADER}: {shown(header)} is not allowed; use the number of bytes of the JSON, "
        f"at most the body's {size}"
    )


def _prompts(tensor: RequestInput, count: int, rest: bytes) -> tuple[str, ...]:
    size = tensor.parameters.binary_data_size
    field = "inputs[0]"
    if (size is None) == (tensor.data is None):
        raise InvalidInput(f"{field}: give either data or parameters.binary_data_size")
    if len(rest) != (size or 0):
        raise InvalidInput(
            f"{field}.parameters.binary_data_size: {size or 0}, and {len(rest)} bytes are behind "
            f"the JSON, whose length is in the header {LENGTH_HEADER}"
        )
    if tensor.data is None:
        return read_raw_prompts(rest, count, f"{field}, in binary")
    data: list[str] = []
    for number, one in enumerate(tensor.data):
        if isinstance(one, str):
            data.append(one)
        elif len(one) == 1 and len(tensor.shape) == 2:
            data.append(one[0])
        else:
            raise InvalidInput(f"{field}.data[{number}]: {shown(one)} does not fit the shape")
    if len(data) != count:
        raise InvalidInput(f"{field}.data: {len(data)} prompts; the shape says {count}")
    return tuple(data)


def _explain(error: ValidationError) -> str:
    """The first problem, in our words."""
    problem = error.errors(include_url=False)[0]
    location = [part for part in problem["loc"] if part not in ("str", "list[str]")]
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    name = str(next(part for part in reversed(location) if isinstance(part, str)))
    if problem["type"] == "extra_forbidden":
        known = _known(location)
        return f"{path[: -len(name)]}{unknown_name([name], known)}"
    if problem["type"] == "missing":
        return f"{path}: missing; {_WORDS[name]}"
    if isinstance(location[-1], int) and name in ("inputs", "outputs"):
        return f"{path}: {shown(problem['input'])} is not allowed; it must be an object"
    return f"{path}: {shown(problem['input'])} is not allowed; {_WORDS[name]}"


def _known(location: list[int | str]) -> list[str]:
    """The fields of the object that an unknown one is in."""
    inside: type[BaseModel]
    match [part for part in location if isinstance(part, str)]:
        case ["inputs", "parameters", _]:
            inside = InputParameters
        case ["outputs", "parameters", _]:
            inside = OutputParameters
        case ["inputs", _]:
            inside = RequestInput
        case ["outputs", _]:
            inside = RequestedOutput
        case _:
            inside = InferBody
    return list(inside.model_fields)


def infer_response(
    request: InferRequest, texts: list[list[GeneratedText]], model_name: str
) -> Response:
    """The outputs; in binary, behind the JSON, where that is wanted."""
    outputs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for tensor, binary in request.tensors(texts):
        output: dict[str, Any] = {
            "name": tensor.type.name,
            "datatype": tensor.type.datatype,
            "shape": [len(tensor.data)],
        }
        if binary:
            parts.append(tensor.raw)
            output["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            output["data"] = tensor.data
        outputs.append(output)
    head: dict[str, Any] = {"model_name": model_name, "model_version": MODEL_VERSION}
    if request.id:
        head["id"] = request.id
    body = orjson.dumps(head | {"outputs": outputs})
    if not parts:
        return Response(body, media_type="application/json")
    return Response(
        body + b"".join(parts),
        headers={LENGTH_HEADER: str(len(body))},
        media_type="application/octet-stream",
    )

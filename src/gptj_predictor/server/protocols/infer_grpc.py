"""``ModelInfer``: the same as ``infer``, in gRPC's messages."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import orjson
from google.protobuf.unknown_fields import UnknownFieldSet
from kserve.errors import InvalidInput
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from gptj_predictor.server.generation_call import GeneratedText
from gptj_predictor.server.protocols.infer import (
    NAMES,
    InferRequest,
    check_inputs,
    read_infer_parameters,
    read_outputs,
    read_prompts,
    read_raw_prompts,
)
from gptj_predictor.server.protocols.json_bodies import shown
from gptj_predictor.server.protocols.parameters import with_lower_case_names
from gptj_predictor.server.tensors import MODEL_VERSION, PROMPT
from gptj_predictor.settings import GenerationParameters, Limits

#: Parameters of tensors that clients send although they mean nothing here: the answer's data is as
#: the request's.
_IGNORED = {"binary_data", "binary_data_size"}


#: Parameters that are numbers with a fraction, which KServe's messages have no field for.
_NUMBERS = {
    name
    for name, schema in GenerationParameters.model_json_schema()["properties"].items()
    if "number" in [one.get("type") for one in (schema, *schema.get("anyOf", ()))]
}


def parse_message(
    message: pb.ModelInferRequest, defaults: GenerationParameters, limits: Limits
) -> InferRequest:
    """Read a message.

    Args:
        message: The request.
        defaults: Used where the request says nothing.
        limits: What the model and the server allow.

    Raises:
        InvalidInput: naming the field, its value and what is allowed.
    """
    inputs = [(one.name, one.datatype, one.shape) for one in message.inputs]
    count = check_inputs(inputs, limits)
    _check_parameters(message.inputs[0].parameters, "inputs[0]")
    is_raw = bool(message.raw_input_contents)
    prompts = _prompts(message, count)
    given = with_lower_case_names(
        {name: _value(name, message.parameters[name]) for name in message.parameters}
    )
    parameters = read_infer_parameters(given, defaults, limits)
    kinds = read_outputs([output.name for output in message.outputs], parameters)
    for number, output in enumerate(message.outputs):
        _check_parameters(output.parameters, f"outputs[{number}]")
    outputs = tuple((kind, is_raw) for kind in kinds)
    return InferRequest(prompts, parameters, names=NAMES, id=message.id, outputs=outputs)


def infer_message(
    request: InferRequest, texts: list[list[GeneratedText]], model_name: str
) -> pb.ModelInferResponse:
    """The outputs, raw if the inputs were."""
    answer = pb.ModelInferResponse(
        model_name=model_name, model_version=MODEL_VERSION, id=request.id
    )
    for tensor, is_raw in request.tensors(texts):
        output = answer.outputs.add(
            name=tensor.type.name, datatype=tensor.type.datatype, shape=[len(tensor.data)]
        )
        if is_raw:
            answer.raw_output_contents.append(tensor.raw)
        elif tensor.type.datatype == "INT64":
            output.contents.int64_contents.extend(int(one) for one in tensor.data)
        else:
            output.contents.bytes_contents.extend(str(one).encode() for one in tensor.data)
    return answer


def _prompts(message: pb.ModelInferRequest, count: int) -> tuple[str, ...]:
    [tensor], raw = message.inputs, message.raw_input_contents
    contents = tensor.contents
    kinds = [field.name for field, _ in contents.ListFields()]
    if raw:
        if len(raw) != 1:
            raise InvalidInput(f"raw_input_contents: there are {len(raw)} for 1 input")
        if kinds:
            raise InvalidInput(f"inputs[0].contents.{kinds[0]}: raw_input_contents is given too")
        return read_raw_prompts(raw[0], count, "raw_input_contents[0]")
    others = [kind for kind in kinds if kind != "bytes_contents"]
    if others:
        raise InvalidInput(
            f"inputs[0].contents.{others[0]}: {PROMPT.name} is {PROMPT.datatype}; use "
            "bytes_contents"
        )
    if len(contents.bytes_contents) != count:
        raise InvalidInput(
            f"inputs[0].contents.bytes_contents: {len(contents.bytes_contents)} prompts; the "
            f"shape says {count}"
        )
    return read_prompts(contents.bytes_contents)


def _check_parameters(parameters: Mapping[str, pb.InferParameter], field: str) -> None:
    unknown = next((name for name in parameters if name not in _IGNORED), None)
    if unknown is not None:
        text = f"{field}.parameters: {shown(unknown)} is unknown; a tensor needs none"
        raise InvalidInput(text)


def _value(name: str, parameter: pb.InferParameter) -> Any:
    """A parameter as JSON would have it.

    A string is read as JSON where a message has nothing better: a fraction, a list or an object.

    Raises:
        InvalidInput: it has no value.
    """
    match parameter.WhichOneof("parameter_choice"):
        case None:
            return _tritons_value(name, parameter)
        case "string_param":
            return _of_text(name.lower(), parameter.string_param)
        case kind:
            return getattr(parameter, kind)


def _tritons_value(name: str, parameter: pb.InferParameter) -> float | int:
    """Triton's messages have two fields more than KServe's: 4, a double, and 5, a uint64."""
    for unknown in UnknownFieldSet(parameter):
        match unknown.field_number, unknown.wire_type:
            case 4, 1:
                (number,) = struct.unpack("<d", struct.pack("<Q", unknown.data))
                return float(number)
            case 5, 0:
                return int(unknown.data)
    raise InvalidInput(f"parameters.{name[:60]}: it has no value; use a number, bool or string")


def _of_text(name: str, text: str) -> Any:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    is_number = type(value) in (int, float) and name in _NUMBERS
    return value if is_number or isinstance(value, list | dict) else text

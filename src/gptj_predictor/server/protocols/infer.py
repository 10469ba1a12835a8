"""The Open Inference Protocol's ``infer``: tensors of prompts in, tensors of texts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from kserve.errors import InvalidInput, ModelNotFound

from gptj_predictor.server.generation_call import FieldNames, GeneratedText, GenerationRequest
from gptj_predictor.server.protocols.details import details_of
from gptj_predictor.server.protocols.json_bodies import shown
from gptj_predictor.server.protocols.parameters import check_details, read_parameters
from gptj_predictor.server.tensors import (
    DETAILS,
    MODEL_VERSION,
    OUTPUTS,
    PROMPT,
    Tensor,
    TensorType,
    read_strings,
)
from gptj_predictor.settings import GenerationParameters, Limits

#: For errors.
NAMES = FieldNames(prompts=PROMPT.name)
_BY_NAME = {one.name: one for one in (*OUTPUTS, DETAILS)}


@dataclass(frozen=True)
class InferRequest(GenerationRequest):
    """A request for texts as tensors.

    Attributes:
        id: The client's, for the answer; empty if there is none.
        outputs: The wanted outputs, in order, and whether their data is wanted in binary.
    """

    id: str = ""
    outputs: tuple[tuple[TensorType, bool], ...] = ()

    def tensors(self, texts: Sequence[Sequence[GeneratedText]]) -> list[tuple[Tensor, bool]]:
        """The outputs, each with whether its data is wanted in binary.

        Args:
            texts: A list for each prompt.
        """
        all_texts = [text for sequences in texts for text in sequences]
        return [
            (Tensor(kind, [_element(kind, text, self.parameters) for text in all_texts]), binary)
            for kind, binary in self.outputs
        ]


def _element(kind: TensorType, text: GeneratedText, parameters: GenerationParameters) -> str | int:
    match kind.name:
        case "generated_text":
            return text.prompt.text + text.text if parameters.return_full_text else text.text
        case "finish_reason":
            return text.finish_reason.value
        case "prompt_tokens":
            return text.timeline.num_prompt_tokens
        case "generated_tokens":
            return text.num_generated_tokens
        case _:
            return orjson.dumps(details_of(text)).decode()


def check_model(name: str, version: str, served: str) -> None:
    """There is one model in one version; a request need not name the version.

    Raises:
        ModelNotFound: it names another one.
    """
    if name != served:
        raise ModelNotFound(name[:200])
    if version not in ("", MODEL_VERSION):
        raise ModelNotFound(f"{name} in version {version[:60]}")


def check_inputs(inputs: Sequence[tuple[str, str, Sequence[int]]], limits: Limits) -> int:
    """Check names, datatypes and shapes of the inputs, of which there is one.

    Returns:
        The number of prompts.

    Raises:
        InvalidInput: naming the field, its value and what is allowed.
    """
    for number, (name, datatype, shape) in enumerate(inputs):
        field = f"inputs[{number}]"
        if name != PROMPT.name:
            raise InvalidInput(f"{field}.name: {shown(name)} is unknown; use {PROMPT.name}")
        if number:
            raise InvalidInput(f"{field}.name: {PROMPT.name} is given more than once")
        if datatype != PROMPT.datatype:
            text = f"{field}.datatype: {shown(datatype)} is not allowed; use {PROMPT.datatype}"
            raise InvalidInput(text)
        if not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)) or not (
            1 <= shape[0] <= limits.max_instances
        ):
            raise InvalidInput(
                f"{field}.shape: {shown(list(shape[:9]))} is not allowed; use [n] or [n,1] with n "
                f"from 1 to {limits.max_instances}"
            )
    if not inputs:
        raise InvalidInput(f"inputs: there is none; give {PROMPT.name}, of {PROMPT.datatype}")
    return inputs[0][2][0]


def read_raw_prompts(raw: bytes, count: int, field: str) -> tuple[str, ...]:
    """The prompts of binary data.

    Raises:
        InvalidInput: it is not so many strings, or not UTF-8.
    """
    try:
        strings = read_strings(raw, count)
    except ValueError as error:
        raise InvalidInput(f"{field}: {error}; each string follows its length in 4 bytes") from None
    return read_prompts(strings)


def read_prompts(encoded: Sequence[bytes]) -> tuple[str, ...]:
    """Texts of their bytes.

    Raises:
        InvalidInput: they are not UTF-8.
    """
    prompts = []
    for number, one in enumerate(encoded):
        try:
            prompts.append(one.decode())
        except UnicodeDecodeError as error:
            text = f"{PROMPT.name}[{number}]: byte {error.start} is not UTF-8"
            raise InvalidInput(text) from None
    return tuple(prompts)


def read_outputs(names: Sequence[str], parameters: GenerationParameters) -> tuple[TensorType, ...]:
    """The wanted outputs; all if none is named, with details if the parameter says so.

    Raises:
        InvalidInput: one is unknown or named twice.
    """
    if not names:
        return (*OUTPUTS, DETAILS) if parameters.details else OUTPUTS
    for number, name in enumerate(names):
        if name not in _BY_NAME:
            known = ", ".join(_BY_NAME)
            raise InvalidInput(f"outputs[{number}].name: {shown(name)} is unknown; use {known}")
        if name in names[:number]:
            raise InvalidInput(f"outputs[{number}].name: {name} is given more than once")
    return tuple(_BY_NAME[name] for name in names)


def read_infer_parameters(
    given: Mapping[str, Any], defaults: GenerationParameters, limits: Limits
) -> GenerationParameters:
    """V1's parameters, with V1's defaults; only the prompt is left out if nobody asks for it.

    Raises:
        InvalidInput: naming the parameter, its value and what is allowed.
    """
    defaults = defaults.model_copy(update={"return_full_text": False})
    parameters = read_parameters(given, defaults, limits, NAMES)
    check_details(parameters, NAMES)
    return parameters

"""A request's ``parameters``: the same names, bounds and errors in every protocol that has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kserve.errors import InvalidInput
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gptj_predictor.server.generation_call import FieldNames
from gptj_predictor.server.protocols.json_bodies import SHOWN_CHARACTERS, shown, unknown_name
from gptj_predictor.settings import GenerationParameters, Limits, OrderError


def with_lower_case_names(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Names are accepted in any letter case.

    Raises:
        InvalidInput: one is given twice.
    """
    lowered: dict[str, Any] = {}
    for name, value in parameters.items():
        if name.lower() in lowered:
            raise InvalidInput(f"parameters.{name[:SHOWN_CHARACTERS]}: given more than once")
        lowered[name.lower()] = value
    return lowered


def read_parameters(
    given: Mapping[str, Any], defaults: GenerationParameters, limits: Limits, names: FieldNames
) -> GenerationParameters:
    """Check parameters whose names are ours, in lower case, and put the defaults below them.

    Raises:
        InvalidInput: naming the parameter, its value and what is allowed.
    """
    try:
        parameters = GenerationParameters.model_validate(given, strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise InvalidInput(explain_parameter(problem, limits, names)) from None
    return settle(parameters, defaults, limits, names)


def settle(
    parameters: GenerationParameters,
    defaults: GenerationParameters,
    limits: Limits,
    names: FieldNames,
) -> GenerationParameters:
    """Compare parameters with what the model allows, and put the defaults below them.

    Raises:
        InvalidInput: naming the parameter, its value and what is allowed.
    """
    exceeded = limits.exceeded_by(parameters)
    if exceeded is not None:
        raise InvalidInput(_not_allowed(exceeded, getattr(parameters, exceeded), limits, names))
    parameters = parameters.over(defaults)
    try:
        parameters.lengths.check_order(names.parameter)
    except OrderError as error:
        raise InvalidInput(names.explain(error)) from None
    return parameters


def check_details(parameters: GenerationParameters, names: FieldNames) -> None:
    """For the protocols whose log-probabilities are among the details.

    Raises:
        InvalidInput: log-probabilities were asked for and details were not.
    """
    if parameters.logprobs is not None and not parameters.details:
        raise InvalidInput(
            f"{names.parameters}logprobs: {parameters.logprobs} needs {names.parameters}details "
            "true, where the log-probabilities are"
        )


def explain_parameter(problem: ErrorDetails, limits: Limits, names: FieldNames) -> str:
    """What is wrong with a parameter, in our words.

    Args:
        problem: pydantic's words; its place begins with the parameter's name.
        limits: What the model allows.
        names: The protocol's.
    """
    name = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        known = [names.parameter(known) for known in GenerationParameters.model_fields]
        return f"{names.parameters}{unknown_name([name], known)}"
    return _not_allowed(name, problem["input"], limits, names)


def parameters_schema(limits: Limits, defaults: GenerationParameters) -> dict[str, Any]:
    """The JSON schema of all parameters, with what this model allows and this server assumes."""
    schema = GenerationParameters.model_json_schema()
    maxima, assumed = limits.maxima(), defaults.model_dump(mode="json")
    for name, allowed in limits.allowed().items():
        field = schema["properties"][name]
        field["description"] += f" Allowed: {allowed}."
        field["default"] = assumed[name]
        if name in maxima:
            # One that may be unset has its kinds in a list, and null is the last of them.
            field.get("anyOf", [field])[0]["maximum"] = maxima[name]
    ids = schema["properties"]["stop_token_ids"]["anyOf"][0]
    ids["items"]["maximum"] = limits.vocabulary - 1
    return schema


def _not_allowed(name: str, value: object, limits: Limits, names: FieldNames) -> str:
    field = f"{names.parameters}{names.parameter(name)}"
    return f"{field}: {shown(value)} is not allowed; use {limits.allowed()[name]}"

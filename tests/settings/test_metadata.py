"""Bounds in words: what a field's declaration says, and what the model adds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, Field, ValidationError

from gptj_predictor.settings import (
    BenchmarkSettings,
    CompareSettings,
    GenerationParameters,
    InfoSettings,
    Limits,
    Precision,
    PullSettings,
    ReportSettings,
    ServerSettings,
)
from gptj_predictor.settings.metadata import (
    ModelLimit,
    UnsetMeans,
    ZeroMeans,
    ZeroOrFrom,
    allowed_values,
    default_in_words,
)

LIMITS = Limits(context=2048, vocabulary=50400, max_instances=32, max_body_bytes=10**6)


class Example(BaseModel):
    any_int: int = 3
    from_zero: int = Field(0, ge=0)
    between: float = Field(1, ge=0.1, le=10)
    above: float = Field(1, gt=0)
    above_to: float = Field(1, gt=0, le=1)
    inside: float = Field(0.5, gt=0, lt=1)
    up_to: int = Field(1, le=9)
    seed: Annotated[int | None, UnsetMeans("drawn")] = Field(None, ge=0, lt=2**63)
    off: Annotated[int, ModelLimit("vocabulary"), ZeroMeans("off")] = Field(50, ge=0)
    gap: Annotated[float, Field(ge=0, le=5), ZeroOrFrom(0.01)] = 1.0
    flag: bool = True
    folder: Path
    precision: Precision = Precision.AUTO
    text: str = Field("a", max_length=5)
    texts: list[str] = Field(min_length=1, max_length=4)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("any_int", "an integer"),
        ("from_zero", "an integer from 0 on"),
        ("between", "a number from 0.1 to 10"),
        ("above", "a number above 0"),
        ("above_to", "a number above 0 and up to 1"),
        ("inside", "a number above 0 and below 1"),
        ("up_to", "an integer up to 9"),
        ("seed", "an integer from 0 to 9223372036854775807"),
        ("off", "an integer from 0 (off) to the vocabulary"),
        ("gap", "0, or a number from 0.01 to 5"),
        ("flag", "true or false"),
        ("folder", "a path"),
        ("precision", "auto, native, fp16 or bfloat16"),
        ("text", "a string of 0 to 5 characters"),
        ("texts", "a list of 1 to 4 (a string)"),
    ],
)
def test_allowed_values(name: str, words: str) -> None:
    field = Example.model_fields[name]
    assert allowed_values(field, {"vocabulary": "the vocabulary"}) == words


def test_without_a_model() -> None:
    assert allowed_values(Example.model_fields["off"]) == "an integer from 0 (off) on"


@pytest.mark.parametrize(
    ("name", "words"),
    [("any_int", "3"), ("flag", "true"), ("seed", "drawn"), ("folder", None), ("gap", "1.0")],
)
def test_default_in_words(name: str, words: str | None) -> None:
    assert default_in_words(Example.model_fields[name]) == words


def test_what_a_client_may_send() -> None:
    """As errors have said it from the beginning."""
    assert LIMITS.allowed() == {
        "min_length": "an integer from 0 to 2048",
        "max_length": "an integer from 1 to 2048",
        "min_new_tokens": "an integer from 0 to 2048",
        "max_new_tokens": "an integer from 1 to 2048",
        "temperature": "0, or a number from 0.01 to 5",
        "top_k": "an integer from 0 (off) to 50400",
        "top_p": "a number above 0 and up to 1",
        "repetition_penalty": "a number from 0.1 to 10",
        "do_sample": "true or false",
        "seed": f"an integer from 0 to {2**63 - 1}",
        "num_return_sequences": "an integer from 1 to 8",
        "stop": "a string of 1 to 64 characters, or a list of 1 to 4 of them",
        "return_full_text": "true or false",
        "min_p": "a number from 0 to 1",
        "typical_p": "a number above 0 and up to 1",
        "presence_penalty": "a number from -2 to 2",
        "frequency_penalty": "a number from -2 to 2",
        "logit_bias": "an object of 0 to 300 names (an integer from 0 to 50399, as a string), each "
        "with a number from -100 to 100",
        "stop_token_ids": "a list of 0 to 16 (an integer from 0 to 50399)",
        "ignore_eos": "true or false",
        "logprobs": "an integer from 0 to 20",
        "details": "true or false",
    }


@pytest.mark.parametrize(
    "settings",
    [
        BenchmarkSettings,
        CompareSettings,
        GenerationParameters,
        InfoSettings,
        PullSettings,
        ReportSettings,
        ServerSettings,
    ],
)
def test_every_setting_explains_itself(settings: type[BaseModel]) -> None:
    for name, field in settings.model_fields.items():
        assert field.description is not None, name
        assert field.description.endswith("."), name
        assert allowed_values(field), name
        if not field.is_required():
            assert default_in_words(field) not in (None, "unset", "None") or name.endswith(
                "new_tokens"
            ), name


@pytest.mark.parametrize("value", [0, 0.0, 0.01, 5])
def test_zero_or_from(value: float) -> None:
    assert GenerationParameters(temperature=value).temperature == value


@pytest.mark.parametrize("value", [0.009, 1e-300, -1, 5.01, float("nan")])
def test_not_between_zero_and_the_minimum(value: float) -> None:
    with pytest.raises(ValidationError):
        GenerationParameters(temperature=value)


class TestModelLimits:
    def test_exceeded(self) -> None:
        small = Limits(context=40, vocabulary=30, max_instances=1, max_body_bytes=1)
        for name, most in (
            ("min_length", 40),
            ("max_length", 40),
            ("min_new_tokens", 40),
            ("max_new_tokens", 40),
            ("top_k", 30),
        ):
            fits = GenerationParameters.model_validate({"max_length": 40, "top_k": 30, name: most})
            assert small.exceeded_by(fits) is None
            beyond = fits.model_copy(update={name: most + 1})
            assert small.exceeded_by(beyond) == name

    @pytest.mark.parametrize("name", ["logit_bias", "stop_token_ids"])
    def test_token_ids_beyond_the_vocabulary(self, name: str) -> None:
        small = Limits(context=40, vocabulary=30, max_instances=1, max_body_bytes=1)
        for token_ids, exceeded in (([], None), ([0, 29], None), ([30, 3], name)):
            value = dict.fromkeys(token_ids, 1) if name == "logit_bias" else token_ids
            given = GenerationParameters.model_validate({"max_length": 40, "top_k": 0, name: value})
            assert small.exceeded_by(given) == exceeded

    def test_defaults_that_nobody_set_shrink(self) -> None:
        small = Limits(context=40, vocabulary=30, max_instances=1, max_body_bytes=1)
        fitted = small.shrink_defaults(GenerationParameters(temperature=0.5))
        assert (fitted.min_length, fitted.max_length, fitted.top_k) == (1, 40, 30)
        assert (fitted.temperature, fitted.max_new_tokens) == (0.5, None)
        assert fitted.model_fields_set == {"temperature"}
        assert small.exceeded_by(fitted) is None

    def test_defaults_that_were_set_stay_and_are_named(self) -> None:
        small = Limits(context=40, vocabulary=30, max_instances=1, max_body_bytes=1)
        fitted = small.shrink_defaults(GenerationParameters(max_length=41))
        assert fitted.max_length == 41
        assert small.exceeded_by(fitted) == "max_length"

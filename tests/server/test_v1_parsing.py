"""V1 bodies as they are read, without a server: every refusal, and what becomes of good ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from kserve.errors import InvalidInput

from gptj_predictor.engine.request import FinishReason, Timeline
from gptj_predictor.server.generation_call import GeneratedText, GenerationRequest, TokenizedPrompt
from gptj_predictor.server.protocols.v1 import format_response, openapi_schema, parse_request
from gptj_predictor.settings import GenerationParameters, Limits
from tests.support.bad_bodies import UNREADABLE, body, check_error

LIMITS = Limits(context=2048, vocabulary=2048, max_instances=32, max_body_bytes=2_000_000)


def parse(sent: str | bytes, **defaults: object) -> GenerationRequest:
    content = sent.encode() if isinstance(sent, str) else sent
    return parse_request(content, GenerationParameters.model_validate(defaults), LIMITS)


def prompt(text: str) -> TokenizedPrompt:
    return TokenizedPrompt(text, [1], ())


@pytest.mark.parametrize("name", UNREADABLE)
def test_refused(name: str) -> None:
    sent, named = UNREADABLE[name]
    with pytest.raises(InvalidInput) as caught:
        parse(sent)
    check_error(str(caught.value), named)


def test_prompts_and_parameters() -> None:
    request = parse(body(["a", "", "ü\n"], top_k=7, temperature=0, stop=["#"]))
    assert request.prompts == ("a", "", "ü\n")
    assert (request.parameters.top_k, request.parameters.temperature) == (7, 0)
    assert request.parameters.stop_strings == ("#",)
    assert request.parameters.model_fields_set == {"top_k", "temperature", "stop"}
    assert request.parameters.max_length == 1024


@pytest.mark.parametrize("name", ["MAX_LENGTH", "Max_Length", "max_length"])
def test_names_in_any_letter_case(name: str) -> None:
    assert parse(body(**{name: 20})).parameters.max_length == 20


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({}, {"temperature": 0.5, "max_new_tokens": 8}),
        ({"temperature": 1}, {"temperature": 1, "max_new_tokens": 8}),
        ({"max_length": 30}, {"max_length": 30, "max_new_tokens": None}),
        ({"max_new_tokens": None}, {"max_new_tokens": None}),
    ],
)
def test_defaults_where_the_request_says_nothing(
    sent: dict[str, object], expected: dict[str, object]
) -> None:
    merged = parse(body(**sent), temperature=0.5, max_new_tokens=8).parameters
    assert merged.model_dump(include=set(expected)) == expected


@pytest.mark.parametrize(
    "sent",
    ['{"instances": ["a"]}', '{"instances": ["a"], "parameters": {}}', b'{"instances":["a"]}'],
)
def test_parameters_may_be_missing(sent: str | bytes) -> None:
    assert parse(sent).prompts == ("a",)


def test_bounds_themselves_are_allowed() -> None:
    parse(body(["a"] * 32))
    allowed: dict[str, list[Any]] = {
        "min_length": [0, 1024],
        "max_length": [1, 2048],
        "min_new_tokens": [0, 2048],
        "max_new_tokens": [1, 2048],
        "temperature": [0, 0.01, 5],
        "top_k": [0, 2048],
        "top_p": [1e-9, 1],
        "repetition_penalty": [0.1, 10],
        "do_sample": [True, False],
        "seed": [0, 2**63 - 1, None],
        "num_return_sequences": [1, 8],
        "stop": ["a" * 64, ["a"] * 4, None],
        "return_full_text": [True, False],
        "min_p": [0, 1],
        "typical_p": [1e-9, 1],
        "presence_penalty": [-2, 2],
        "frequency_penalty": [-2, 2],
        "logit_bias": [{}, None],
        "stop_token_ids": [[], [0, 2047] * 8, None],
        "ignore_eos": [True, False],
        "details": [True, False],
        "logprobs": [0, 20, None],
    }
    assert set(allowed) == set(GenerationParameters.model_fields)
    for name, values in allowed.items():
        for value in values:
            sent = {"details": True, name: value}
            assert getattr(parse(body(**sent)).parameters, name) == value


def test_a_bias_by_token_id() -> None:
    """Names in JSON are strings."""
    sent = {str(i): 100 if i % 2 else -100 for i in range(1748, 2048)}
    bias = parse(body(logit_bias=sent)).parameters.logit_bias
    assert bias == {int(name): value for name, value in sent.items()}


def test_what_an_error_repeats_is_cut() -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(body(stop="b" * 10_000))
    assert "b" * 59 + "..." in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "predictions"),
    [
        ([["a"]], [{"generated_text": "a"}]),
        ([["a", "b"]], [{"generated_text": "a"}, {"generated_text": "b"}]),
        ([["a"], ["b"]], [[{"generated_text": "a"}], [{"generated_text": "b"}]]),
    ],
)
def test_one_instance_is_flat(texts: list[list[str]], predictions: object) -> None:
    timeline = Timeline(0.0, 0.1, 0.2, 0.3, 3, 4, 2)
    generated = [
        [
            GeneratedText(text, FinishReason.LENGTH, 4, 17, timeline, prompt("p"))
            for text in sequences
        ]
        for sequences in texts
    ]
    sent = body(["p"] * len(texts), return_full_text=False)
    assert format_response(parse(sent), generated) == {"predictions": predictions}


def test_details_come_with_the_text() -> None:
    timeline = Timeline(0.0, 0.1, 0.2, 0.3, 3, 4, 2)
    generated = [[GeneratedText("b", FinishReason.STOP_SEQUENCE, 4, 17, timeline, prompt("a"))]]
    details = {
        "finish_reason": "stop_sequence",
        "prompt_tokens": 3,
        "generated_tokens": 4,
        "cached_tokens": 2,
        "seed": 17,
    }
    assert format_response(parse(body(["a"], details=True)), generated) == {
        "predictions": [{"generated_text": "ab", "details": details}]
    }


def test_openapi_says_what_errors_say() -> None:
    schema = openapi_schema(LIMITS, GenerationParameters(max_length=77))
    properties = schema["properties"]["parameters"]["properties"]
    assert set(properties) == set(GenerationParameters.model_fields)
    for name, allowed in LIMITS.allowed().items():
        assert properties[name]["description"].endswith(f" Allowed: {allowed}.")
    assert properties["max_length"]["default"] == 77
    assert properties["max_length"]["maximum"] == 2048
    assert properties["max_new_tokens"]["anyOf"][0]["maximum"] == 2048
    assert "$ref" not in json.dumps(schema)
    assert schema["properties"]["instances"]["maxItems"] == 32
    # The next server's may differ: nothing of this one's is kept.
    other = openapi_schema(
        Limits(context=9, vocabulary=9, max_instances=1, max_body_bytes=1), GenerationParameters()
    )
    assert "1 to 9." in other["properties"]["parameters"]["properties"]["max_length"]["description"]
    assert other["properties"]["instances"]["maxItems"] == 1

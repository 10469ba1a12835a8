"""Bodies of OpenAI's completions as they are read, without a server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from kserve.errors import InvalidInput

from gptj_predictor.engine.request import FinishReason, Timeline
from gptj_predictor.server.error_body import error_body
from gptj_predictor.server.generation_call import GeneratedText, TokenizedPrompt
from gptj_predictor.server.protocols.openai import (
    CompletionRequest,
    Head,
    format_response,
    parse_request,
)
from gptj_predictor.server.protocols.openai_schema import completion_schema
from gptj_predictor.settings import Limits
from tests.support.bad_bodies import check_error
from tests.support.openai_bodies import UNREADABLE, body

LIMITS = Limits(context=2048, vocabulary=2048, max_instances=32, max_body_bytes=2_000_000)
HEAD = Head("1", "gpt-j", "fp_1", 1_700_000_000)


def parse(sent: str | bytes) -> CompletionRequest:
    return parse_request(sent.encode() if isinstance(sent, str) else sent, LIMITS, HEAD)


@pytest.mark.parametrize("name", UNREADABLE)
def test_refused(name: str) -> None:
    sent, param, named = UNREADABLE[name]
    with pytest.raises(InvalidInput) as caught:
        parse(sent)
    check_error(str(caught.value), named)
    told = error_body("/v1/completions", 400, str(caught.value))["error"]
    assert told["param"] == param
    assert told["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("sent", "prompts"),
    [
        ("a", ("a",)),
        ("", ("",)),
        (None, ("",)),
        (["a", "", "ü\n"], ("a", "", "ü\n")),
        ([0, 2047], ((0, 2047),)),
        ([[1], [], [2, 3]], ((1,), (), (2, 3))),
    ],
    ids=str,
)
def test_prompts(sent: object, prompts: tuple[object, ...]) -> None:
    request = parse(body(sent))
    assert request.prompts == prompts
    in_a_list = isinstance(sent, list) and not isinstance(sent[0], int)
    assert request.names.prompt(0) == ("prompt[0]" if in_a_list else "prompt")


def test_defaults_are_openais() -> None:
    request = parse(body("a"))
    defaults = {
        "max_new_tokens": 16,
        "temperature": 1,
        "top_p": 1,
        "top_k": 0,
        "repetition_penalty": 1,
        "num_return_sequences": 1,
        "seed": None,
        "stop": None,
    }
    assert request.parameters.model_dump(include=set(defaults)) == defaults
    assert (request.stream, request.echo, request.include_usage) == (False, False, False)


def test_every_field() -> None:
    request = parse(
        body(
            "a",
            model="gpt-j",
            max_tokens=7,
            temperature=0.5,
            top_p=0.8,
            n=3,
            stop=["x", "y"],
            seed=9,
            echo=True,
            stream=True,
            stream_options={"include_usage": True},
            user="me",
            top_k=5,
            repetition_penalty=1.5,
            min_new_tokens=2,
        )
    )
    assert request.model == "gpt-j"
    assert (request.stream, request.echo, request.include_usage) == (True, True, True)
    given = {
        "max_new_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.8,
        "num_return_sequences": 3,
        "stop": ["x", "y"],
        "seed": 9,
        "top_k": 5,
        "repetition_penalty": 1.5,
        "min_new_tokens": 2,
    }
    assert request.parameters.model_dump(include=set(given)) == given


def test_null_is_not_given() -> None:
    """Clients send it for what their user has not set."""
    names = ["max_tokens", "temperature", "top_p", "n", "stop", "seed", "echo", "stream"]
    names += ["suffix", "stream_options", "user", "model", "top_k"]
    assert parse(body("a", **dict.fromkeys(names))) == parse(body("a"))


def test_a_total_length_wins_over_the_default() -> None:
    parameters = parse(body("a", max_length=30)).parameters
    assert (parameters.max_length, parameters.max_new_tokens) == (30, None)


@pytest.mark.parametrize(
    ("path", "is_openai"),
    [
        ("/openai/v1/completions", True),
        ("/openai/v1/chat/completions", True),
        ("/openai/v1/models/x", True),
        ("/openai/nope", True),
        ("/v1/completions", True),
        ("/v1/chat/completions", True),
        ("/v1/models", False),
        ("/v1/models/x:predict", False),
        ("/v2/models/x/infer", False),
        ("/", False),
    ],
)
def test_shape_of_errors_by_path(path: str, is_openai: bool) -> None:
    expected: dict[str, Any] = {"error": "gone"}
    if is_openai:
        told = {"message": "gone", "type": "server_error", "param": None, "code": None}
        expected = {"error": told}
    assert error_body(path, 503, "gone") == expected


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, "invalid_request_error", None),
        (401, "invalid_request_error", "invalid_api_key"),
        (404, "invalid_request_error", None),
        (405, "invalid_request_error", "method_not_supported"),
        (429, "requests", "rate_limit_exceeded"),
        (500, "server_error", None),
        (504, "server_error", None),
    ],
)
def test_kinds_of_errors(status: int, kind: str, code: str | None) -> None:
    told = error_body("/v1/completions", status, "so it is")["error"]
    assert (told["type"], told["code"], told["param"]) == (kind, code, None)


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (FinishReason.EOS, "stop"),
        (FinishReason.STOP_SEQUENCE, "stop"),
        (FinishReason.LENGTH, "length"),
        (FinishReason.DEADLINE, "length"),
        (FinishReason.SHUTDOWN, "length"),
    ],
)
def test_finish_reasons(reason: FinishReason, told: str) -> None:
    [choice] = answer(parse(body("p")), reason)["choices"]
    assert choice == {"index": 0, "text": "b", "logprobs": None, "finish_reason": told}


def test_usage_and_order() -> None:
    """A prompt counts once; texts come prompt by prompt."""
    told = answer(parse(body(["p", "q"], n=3, echo=True)))
    assert [one["index"] for one in told["choices"]] == list(range(6))
    assert [one["text"] for one in told["choices"]] == ["pb"] * 3 + ["qb"] * 3
    assert told["usage"] == {
        "prompt_tokens": 6,
        "completion_tokens": 24,
        "total_tokens": 30,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    assert told["id"] == "cmpl-1"


def answer(request: CompletionRequest, reason: FinishReason = FinishReason.LENGTH) -> Any:
    timeline = Timeline(0.0, 0.1, 0.2, 0.3, 3, 4, 2)
    texts = [
        [GeneratedText("b", reason, 4, 17, timeline, TokenizedPrompt(str(prompt), [1], ()))]
        * request.parameters.num_return_sequences
        for prompt in request.prompts
    ]
    return format_response(request, texts)


def test_schema() -> None:
    """Every field is in it, in one piece, with this model's bounds."""
    schema = completion_schema(LIMITS)
    assert "$ref" not in json.dumps(schema)
    assert schema["additionalProperties"] is False
    assert {"prompt", "n", "echo", "stop", "min_length", "top_k"} <= set(schema["properties"])
    assert not {"max_new_tokens", "return_full_text"} & set(schema["properties"])
    ids = schema["properties"]["prompt"]["anyOf"][1]
    assert ids["items"] == {"type": "integer", "minimum": 0, "maximum": 2047}

"""OpenAI's completions against the real server: the texts of V1, in OpenAI's words."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.support.bad_bodies import check_error
from tests.support.exact import Exact
from tests.support.openai_bodies import UNREADABLE, body
from tests.support.openai_clients import (
    COMPLETIONS,
    PATHS,
    check_refused,
    complete,
    put_together,
    stream,
    texts,
)
from tests.support.secrets import KEYS, bearer
from tests.support.servers import NAME, RunningServer

pytestmark = pytest.mark.process

PROMPTS = ["The secret to a happy life is to", "Message: I love it. Sentiment:"]

#: What V1 is told to do as OpenAI's routes do by default.
AS_OPENAI = {"temperature": 1, "top_k": 0, "top_p": 1, "max_new_tokens": 16}

#: One row of ``UNREADABLE`` for every way to refuse; test_openai_parsing has them all.
SAMPLE = ("malformed", "no prompt", "id beyond", "unknown", "stream option", "top_k", "suffix")


def v1_texts(server: RunningServer, prompts: list[str], **parameters: object) -> list[str]:
    """The same from V1, prompt by prompt, without the prompts."""
    asked = AS_OPENAI | {"return_full_text": False} | parameters
    predictions = server.predict(prompts, **asked)
    nested = predictions if isinstance(predictions[0], list) else [predictions]
    return [one["generated_text"] for sequences in nested for one in sequences]


@pytest.mark.parametrize("path", PATHS)
def test_an_answer(native: RunningServer, exact: Exact, path: str) -> None:
    before = int(time.time())
    response = native.client.post(
        path,
        json={"model": NAME, "prompt": PROMPTS[0], "temperature": 0},
        headers={"x-request-id": "mine"},
    )
    answer = response.json()
    assert before <= answer.pop("created") <= time.time()
    assert answer.pop("system_fingerprint").startswith("fp_")
    answer["usage"].pop("prompt_tokens_details")
    assert answer == {
        "id": "cmpl-mine",
        "object": "text_completion",
        "model": NAME,
        "choices": [
            {
                "index": 0,
                "text": exact.generate(PROMPTS[0], max_new_tokens=16),
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": {"prompt_tokens": 8, "completion_tokens": 16, "total_tokens": 24},
    }


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "two"])
@pytest.mark.parametrize("fields", [{}, {"n": 3}, {"temperature": 5, "max_tokens": 90}], ids=str)
def test_the_texts_of_v1(
    native: RunningServer, exact: Exact, prompts: list[str], fields: dict[str, Any]
) -> None:
    """For texts and for token ids, at once and streamed."""
    names = {"n": "num_return_sequences", "max_tokens": "max_new_tokens"}
    parameters = {names.get(name, name): value for name, value in fields.items()}
    expected = v1_texts(native, prompts, seed=3, **parameters)
    ids = [exact.ids(prompt) for prompt in prompts]
    for sent in (prompts, ids, *((prompts[0], ids[0]) if len(prompts) == 1 else ())):
        assert texts(complete(native, sent, seed=3, **fields)) == expected
        whole, reasons = put_together(stream(native, sent, seed=3, **fields))
        assert [whole[index] for index in range(len(expected))] == expected
        assert set(reasons) == set(whole)


def test_v1s_parameters_in_the_body(native: RunningServer) -> None:
    parameters: dict[str, Any] = {"top_k": 3, "repetition_penalty": 1.5, "min_new_tokens": 10}
    expected = v1_texts(native, PROMPTS, seed=1, **parameters)
    assert texts(complete(native, PROMPTS, seed=1, **parameters)) == expected


def test_echo(native: RunningServer, exact: Exact) -> None:
    """Of texts and of token ids; in a stream it comes first."""
    [expected] = v1_texts(native, PROMPTS[:1], temperature=0)
    for sent in (PROMPTS[0], exact.ids(PROMPTS[0])):
        fields: dict[str, Any] = {"temperature": 0, "echo": True, "n": 2}
        assert texts(complete(native, sent, **fields)) == [PROMPTS[0] + expected] * 2
        events = stream(native, sent, **fields)
        assert events[0]["choices"][0]["text"].startswith(PROMPTS[0])
        assert put_together(events)[0] == dict.fromkeys(range(2), PROMPTS[0] + expected)


def test_stop_and_finish_reasons(native: RunningServer) -> None:
    [text] = v1_texts(native, PROMPTS[:1], temperature=0)
    fields: dict[str, Any] = {"temperature": 0, "stop": [text[20:24]]}
    [choice] = complete(native, PROMPTS[0], **fields)["choices"]
    assert (choice["text"], choice["finish_reason"]) == (text[:20], "stop")
    assert put_together(stream(native, PROMPTS[0], **fields)) == ({0: text[:20]}, {0: "stop"})


def test_details(native: RunningServer) -> None:
    """Our parameter for what OpenAI has no word for, among it the seed."""
    answer = complete(native, PROMPTS, n=2, details=True, min_new_tokens=16)
    details = [choice["details"] for choice in answer["choices"]]
    assert [one["generated_tokens"] for one in details] == [16] * 4
    again = complete(native, PROMPTS[1], seed=details[3]["seed"], min_new_tokens=16)
    assert texts(again) == texts(answer)[3:]


def test_usage(native: RunningServer, exact: Exact) -> None:
    """At once and in a stream; the prefix cache's tokens are told."""
    prompt = " the snow" * 30
    counts = len(exact.ids(prompt)) + len(exact.ids(PROMPTS[0]))
    fields: dict[str, Any] = {"n": 2, "max_tokens": 5, "min_new_tokens": 5}
    complete(native, prompt, max_tokens=1)
    told = complete(native, [prompt, PROMPTS[0]], **fields)["usage"]
    cached = told["prompt_tokens_details"]["cached_tokens"]
    assert 0 < cached < counts
    assert (told["prompt_tokens"], told["completion_tokens"]) == (counts, 20)
    assert told["total_tokens"] == counts + 20
    with_usage = stream(
        native, [prompt, PROMPTS[0]], **fields, stream_options={"include_usage": True}
    )
    assert with_usage[-1]["choices"] == []
    assert with_usage[-1]["usage"]["total_tokens"] == counts + 20
    assert all(event["usage"] is None for event in with_usage[:-1])
    assert not any("usage" in event for event in stream(native, PROMPTS[0]))


def test_a_stream(native: RunningServer) -> None:
    """All events have one head, and come while the text is made."""
    events = stream(native, PROMPTS[0], max_tokens=400, min_new_tokens=400)
    heads = {json.dumps({**event, "choices": None}) for event in events}
    assert len(heads) == 1
    assert len(events) > 100


def test_models(native: RunningServer) -> None:
    """One object for V1's clients and for OpenAI's."""
    listed = native.client.get("/v1/models").json()
    assert listed == native.client.get("/openai/v1/models").json()
    assert listed["models"] == [NAME]
    [card] = listed["data"]
    assert card.pop("created") <= time.time()
    assert card == {
        "id": NAME,
        "object": "model",
        "owned_by": "gptj-predictor",
        "max_model_len": 2048,
    }
    for name in (NAME, "EleutherAI/gpt-j-6B", "EleutherAI%2Fgpt-j-6B"):
        assert native.client.get(f"/openai/v1/models/{name}").json()["id"] == NAME


@pytest.mark.parametrize("name", [NAME, "EleutherAI/gpt-j-6B", "eleutherai/gpt-j-6b", None])
def test_names_of_the_model(native: RunningServer, name: str | None) -> None:
    assert complete(native, "a", model=name, max_tokens=1)["model"] == NAME


@pytest.mark.parametrize("name", SAMPLE)
@pytest.mark.parametrize("path", PATHS)
def test_bad_body(native: RunningServer, path: str, name: str) -> None:
    sent, param, named = UNREADABLE[name]
    response = native.post(sent, path)
    check_refused(response, 400, None, named[0])
    check_error(response.json()["error"]["message"], named)
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"prompt": " the" * 3000}, "3000 tokens"),
        ({"prompt": [1] * 2040}, "prompt has 2040 tokens; with max_tokens 16 that is 2056"),
        ({"prompt": ["a", [1]][:1], "max_tokens": 2048}, "prompt[0] has 1 tokens"),
    ],
    ids=["text", "ids", "tokens"],
)
def test_too_long(native: RunningServer, fields: dict[str, Any], word: str) -> None:
    response = native.client.post(COMPLETIONS, json=fields)
    check_refused(response, 400, "context_length_exceeded", word)
    assert response.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "word"),
    [
        ("GET", COMPLETIONS, 405, "method_not_supported", "use POST"),
        ("GET", "/v1/completions", 405, "method_not_supported", "use POST"),
        ("POST", "/openai/v1/models", 405, "method_not_supported", "use GET"),
        ("POST", "/openai/v1/embeddings", 404, None, "no such route"),
        ("GET", "/openai", 404, None, "no such route"),
        ("GET", "/openai/v1/models/gpt-4", 404, "model_not_found", "gpt-4"),
    ],
)
def test_other_calls(
    native: RunningServer, method: str, path: str, status: int, code: str | None, word: str
) -> None:
    check_refused(native.client.request(method, path), status, code, word)


def test_other_model(native: RunningServer) -> None:
    response = native.post(body(model="gpt-3.5-turbo-instruct"), COMPLETIONS)
    check_refused(response, 404, "model_not_found", "gpt-3.5-turbo-instruct")
    assert response.json()["error"]["param"] == "model"


@pytest.mark.parametrize("path", PATHS)
def test_limits_of_http(native: RunningServer, path: str) -> None:
    check_refused(native.post("a" * 2_000_001, path), 413, None, "2000000 bytes")
    encoded = native.post(b"a", path, headers={"content-encoding": "gzip"})
    check_refused(encoded, 415, None, "gzip")
    late = native.post(body(), path, headers={"x-request-timeout": "soon"})
    check_refused(late, 400, None, "x-request-timeout")


@pytest.mark.parametrize("path", [*PATHS, "/openai/v1/models"])
def test_keys(locked: RunningServer, path: str) -> None:
    method = "GET" if path.endswith("models") else "POST"
    refused = locked.client.request(method, path, content=body(max_tokens=1))
    check_refused(refused, 401, "invalid_api_key", "Authorization: Bearer KEY")
    refused = locked.client.request(method, path, content=body(), headers=bearer("wrong"))
    check_refused(refused, 401, "invalid_api_key", "unknown")
    good = locked.client.request(
        method,
        path,
        content=body(max_tokens=1) if method == "POST" else b"",
        headers=bearer(KEYS[0]),
    )
    assert good.status_code == 200

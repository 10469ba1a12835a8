"""The OpenAPI document: it says what is true, and holds whatever is sent.

schemathesis sends what the document allows and what it does not, and compares the answers with it.
All its checks count. RULES has what fails them for a reason that no JSON Schema can say.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.server.access import OPEN_PATHS
from tests.support.openapi import Finding, examine
from tests.support.secrets import KEYS, bearer
from tests.support.servers import NAME, RunningServer

pytestmark = pytest.mark.process

#: Tokens of the longest sequence, so that no request takes long.
CONTEXT = 48

ACCEPTED, REJECTED = "positive_data_acceptance", "negative_data_rejection"

#: Check, what the answer or the command must have in it, and the rule.
RULES = (
    (
        ACCEPTED,
        r"\d\.0\b|\d[eE]\+?\d",
        "To JSON Schema 2.0 is an integer; here it is a number like 2.5.",
    ),
    (
        ACCEPTED,
        r"is above|would need at least|prompt included|and the context is",
        "A minimum may not be above its maximum, nor a prompt too long for it.",
    ),
    (ACCEPTED, r"needs (parameters\.)?details true", "Log-probabilities are among the details."),
    (ACCEPTED, r"max_new_tokens is given too", "OIP's max_tokens is V1's max_new_tokens."),
    (ACCEPTED, r"stream_options: only allowed with stream", "As at OpenAI."),
    (ACCEPTED, r"logprobs: .* streamed|best_of", "best_of is at least n, and not streamed."),
    (
        ACCEPTED,
        r"give either data or|the shape says|binary_data_size|in binary",
        "A tensor's data are as many as its shape says, in JSON or behind it.",
    ),
    (ACCEPTED, r"outputs\[\d+\]\.name: \w+ is given more than once", "Outputs differ by name."),
    (ACCEPTED, r"logit_bias: .*\d{4,}", "A name of logit_bias is a token id of the vocabulary."),
    (REJECTED, r"in header - object with unexpected properties", "HTTP allows any header."),
    (
        "unsupported_method",
        r"use NAME:predict",
        "POST /v1/models/NAME:predic, of the old page, is told how the call is spelled.",
    ),
)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The demo with a context that has no room for long texts."""
    folder = tmp_path_factory.mktemp("short") / "snapshot"
    shutil.copytree(DEMO_SNAPSHOT, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_positions": CONTEXT}))
    with RunningServer("--model", str(folder), "--max_instances", "3") as running:
        running.wait_until_ready()
        yield running


def excused(finding: Finding) -> bool:
    return any(
        check == finding.check and re.search(pattern, f"{finding.answer}\n{finding.request}")
        for check, pattern, _ in RULES
    )


def check(server: RunningServer, *, max_examples: int, thorough: bool, at_least: int) -> None:
    outcome = examine(server, max_examples=max_examples, thorough=thorough, headers={})
    assert not outcome.errors
    assert outcome.num_cases >= at_least
    assert not [pair for pair in outcome.statuses if pair[1] >= 500]
    unexcused = [finding for finding in outcome.findings if not excused(finding)]
    assert not unexcused, f"{len(unexcused)}: {unexcused[:3]}"
    v2 = "/v2/models/{model_name}"
    for path in (f"{v2}/infer", f"{v2}/generate"):
        assert outcome.statuses[f"POST {path}", 200]
    for path in ("/v1/models/{model_name}:predict", "/v1/completions", "/tokenize"):
        assert outcome.statuses[f"POST {path}", 200]
    assert any(status == 400 for _, status in outcome.statuses)
    assert "Traceback" not in server.log


@pytest.mark.slow
def test_the_document_holds(short: RunningServer) -> None:
    check(short, max_examples=8, thorough=False, at_least=150)


@pytest.mark.large
def test_the_document_holds_at_every_bound(short: RunningServer) -> None:
    check(short, max_examples=100, thorough=True, at_least=2000)


@pytest.fixture(scope="module")
def document(short: RunningServer) -> Any:
    return short.client.get("/openapi.json").json()


def operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_every_answer_is_described(document: Any) -> None:
    for path, method, operation in operations(document):
        responses = operation["responses"]
        assert {"431", "500"} <= set(responses), path
        assert "422" not in responses, path
        if method == "post":
            assert {"413", "415", "503"} <= set(responses), path
        for status, response in responses.items():
            assert "x-request-id" in response["headers"], path
            assert ("Retry-After" in response["headers"]) == (status in ("429", "503")), path
            assert response["content"], (path, status)
        is_for_texts = any(word in path for word in (":predict", "completions", "/infer", "/gen"))
        assert is_for_texts == ("504" in responses), path
    assert "securitySchemes" not in document["components"]


def test_streams_and_metrics_are_described(document: Any) -> None:
    def kinds(method: str, path: str) -> set[str]:
        return set(document["paths"][path][method]["responses"]["200"]["content"])

    both = {"application/json", "text/event-stream"}
    assert kinds("post", "/v1/models/{model_name}:predict") == both
    assert kinds("post", "/v1/completions") == kinds("post", "/openai/v1/completions") == both
    assert kinds("post", "/v2/models/{model_name}/generate_stream") == {"text/event-stream"}
    binary = {"application/json", "application/octet-stream"}
    assert kinds("post", "/v2/models/{model_name}/infer") == binary
    assert kinds("get", "/metrics") == {"text/plain", "application/openmetrics-text"}


def test_every_reference_is_there(document: Any) -> None:
    schemas = document["components"]["schemas"]
    found = re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(document))
    assert found
    assert set(found) <= set(schemas)


def test_defaults_are_the_servers(document: Any) -> None:
    body = document["paths"]["/v1/models/{model_name}:predict"]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]["properties"]
    assert schema["instances"]["maxItems"] == 3
    length = schema["parameters"]["properties"]["max_length"]
    assert (length["default"], length["maximum"]) == (CONTEXT, CONTEXT)
    openai = document["paths"]["/v1/completions"]["post"]["requestBody"]
    schema = openai["content"]["application/json"]["schema"]["properties"]
    assert (schema["top_k"]["default"], schema["top_p"]["default"]) == (0, 1)


def test_a_small_model_answers_what_says_nothing_of_lengths(short: RunningServer) -> None:
    """The built-in maximum is beyond its context, and nobody asked for it."""
    assert short.predict(["The secret"], return_full_text=False)[0]["generated_text"]


def test_keys_are_described(locked: RunningServer) -> None:
    document = locked.client.get("/openapi.json", headers=bearer(KEYS[0])).json()
    assert document["components"]["securitySchemes"]["ApiKey"]["scheme"] == "bearer"
    for path, method, operation in operations(document):
        is_open = method == "get" and OPEN_PATHS.fullmatch(path) is not None
        assert is_open == ("security" not in operation) == ("401" not in operation["responses"])
        if method == "get":
            status = locked.client.get(path.replace("{model_name}", NAME)).status_code
            assert is_open == (status != 401), path

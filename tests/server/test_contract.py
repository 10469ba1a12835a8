"""Every row of the bad-input table, against the real server."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import time
from collections.abc import Iterator

import pytest

from tests.support.servers import NAME, RunningServer


def body(instances: object = ("The secret to a happy life is to",), **parameters: object) -> str:
    return json.dumps({"instances": instances, "parameters": parameters})


def raw_parameters(text: str) -> str:
    """A body with parameters as they are written, for what Python's json would not write."""
    return f'{{"instances": ["a"], "parameters": {text}}}'


#: What is sent, and what the error must name.
BAD_BODIES: dict[str, tuple[str | bytes, list[str]]] = {
    "malformed": ('{"instances": ["a"', ["not JSON"]),
    "empty": ("", ["not JSON"]),
    "bad utf-8": (b'{"instances": ["\xff\xfe"]}', ["not JSON"]),
    "nested": ("[" * 5000 + "]" * 5000, ["not JSON"]),
    "nested parameters": (raw_parameters('{"a":' * 5000 + "1" + "}" * 5000), ["not JSON"]),
    "a list": ("[1, 2]", ["[1,2]", "an object"]),
    "a string": ('"hello"', ['"hello"', "an object"]),
    "null": ("null", ["null", "an object"]),
    "no instances": ("{}", ["instances", "missing"]),
    "instances not a list": (body("text"), ["instances", '"text"', "list"]),
    "instances null": (body(None), ["instances", "null", "list"]),
    "instances empty": (body([]), ["instances", "[]", "1 to 32"]),
    "instances with a number": (body(["a", 7]), ["instances[1]", "7", "string"]),
    "instances with a list": (body([["a"]]), ["instances[0]", "string"]),
    "instances with an object": (body([{"text": "a"}]), ["instances[0]", "string"]),
    "too many instances": (body(["a"] * 33), ["33", "1 to 32"]),
    "parameters not an object": ('{"instances":["a"],"parameters":[]}', ["parameters", "object"]),
    "parameters null": ('{"instances":["a"],"parameters":null}', ["parameters", "null"]),
    "unknown parameter": (body(max_lenght=5), ["max_lenght", "did you mean max_length"]),
    "far unknown parameter": (body(zzz=5), ["zzz", "did you mean", "top_k"]),
    "unknown key": ('{"instances":["a"],"paramters":{}}', ["paramters", "mean parameters"]),
    "twice by case": (raw_parameters('{"top_k":1,"Top_K":2}'), ["more than once"]),
    "true for an int": (body(top_k=True), ["top_k", "true", "an integer"]),
    "string for an int": (body(top_k="8"), ["top_k", '"8"', "an integer"]),
    "2.5 for an int": (body(max_length=2.5), ["max_length", "2.5", "an integer from 1 to 2048"]),
    "2.0 for an int": (body(max_length=2.0), ["max_length", "2.0", "an integer"]),
    "list for an int": (body(max_length=[8]), ["max_length", "[8]", "an integer"]),
    "null for an int": (body(max_length=None), ["max_length", "null", "an integer"]),
    "huge int": (raw_parameters('{"seed": ' + "9" * 400 + "}"), []),
    "int beyond 64 bit": (body(seed=2**63), ["seed", str(2**63)]),
    "NaN": (raw_parameters('{"temperature": NaN}'), ["not JSON"]),
    "Infinity": (raw_parameters('{"temperature": Infinity}'), ["not JSON"]),
    "1e999": (raw_parameters('{"temperature": 1e999}'), ["not JSON"]),
    "string for a float": (body(temperature="hot"), ["temperature", '"hot"', "0.01 to 5"]),
    "number for a bool": (body(do_sample=1), ["do_sample", "1", "true or false"]),
    "number for stop": (body(stop=3), ["stop", "3", "a string of 1 to 64"]),
    "empty stop": (body(stop=""), ["stop", '""']),
    "empty string in stop": (body(stop=["a", ""]), ["stop"]),
    "no stop in the list": (body(stop=[]), ["stop"]),
    "five stops": (body(stop=["a"] * 5), ["stop", "1 to 4"]),
    "long stop": (body(stop="a" * 65), ["stop", "64 characters"]),
    "negative seed": (body(seed=-1), ["seed", "-1", "from 0"]),
    "min_length negative": (body(min_length=-1), ["min_length", "-1", "0 to 2048"]),
    "min_length beyond": (body(min_length=2049), ["min_length", "2049", "0 to 2048"]),
    "max_length zero": (body(max_length=0), ["max_length", "0", "1 to 2048"]),
    "max_length beyond": (body(max_length=2049), ["max_length", "2049", "1 to 2048"]),
    "min_new_tokens beyond": (body(min_new_tokens=2049), ["min_new_tokens", "2049"]),
    "max_new_tokens zero": (body(max_new_tokens=0), ["max_new_tokens", "0", "1 to 2048"]),
    "temperature low": (body(temperature=0.005), ["temperature", "0.005", "0.01 to 5"]),
    "temperature high": (body(temperature=5.1), ["temperature", "5.1", "0.01 to 5"]),
    "temperature negative": (body(temperature=-1), ["temperature", "-1"]),
    "top_k negative": (body(top_k=-1), ["top_k", "-1", "0 (off)"]),
    "top_k beyond": (body(top_k=2049), ["top_k", "2049", "2048"]),
    "top_p zero": (body(top_p=0), ["top_p", "0", "above 0"]),
    "top_p beyond": (body(top_p=1.01), ["top_p", "1.01", "up to 1"]),
    "penalty low": (body(repetition_penalty=0.05), ["repetition_penalty", "0.05", "0.1 to 10"]),
    "penalty high": (body(repetition_penalty=11), ["repetition_penalty", "11", "0.1 to 10"]),
    "no sequences": (body(num_return_sequences=0), ["num_return_sequences", "0", "1 to 8"]),
    "nine sequences": (body(num_return_sequences=9), ["num_return_sequences", "9", "1 to 8"]),
    "min above max": (body(min_length=60, max_length=50), ["min_length", "60", "50"]),
    "min above the default": (body(min_length=1500), ["min_length", "1500", "1024", "default"]),
    "min new above max new": (
        body(min_new_tokens=9, max_new_tokens=8),
        ["min_new_tokens", "9", "8"],
    ),
    "min_length above prompt and max_new_tokens": (
        body(min_length=500, max_new_tokens=8),
        ["min_length", "500", "max_new_tokens"],
    ),
    "min_new_tokens above max_length": (
        body(min_new_tokens=60, max_length=50),
        ["min_new_tokens", "max_length", "50"],
    ),
    "prompt as long as max_length": (
        body([" the" * 30], max_length=30),
        ["instances[0]", "30 tokens", "max_length is 30"],
    ),
    "second prompt too long": (
        body(["a", " the" * 51], max_length=50),
        ["instances[1]", "51 tokens", "max_length is 50"],
    ),
    "prompt beyond the context": (
        body([" the" * 2100], max_length=2048),
        ["2100 tokens", "2048"],
    ),
    "prompt and new tokens beyond the context": (
        body([" the" * 2000], max_new_tokens=100),
        ["2000 tokens", "2100", "2048"],
    ),
    "lone surrogate": ('{"instances": ["\\ud800"]}', ["surrogate"]),
    "lone low surrogate": ('{"instances": ["a\\udc00b"]}', ["surrogate"]),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_body(server: RunningServer, name: str) -> None:
    sent, named = BAD_BODIES[name]
    response = server.post(sent)
    assert response.status_code == 400
    assert list(response.json()) == ["error"]
    error = response.json()["error"]
    for part in named:
        assert part in error
    assert len(error) < 500
    assert_harmless(error)
    assert_works(server)


def assert_harmless(error: str) -> None:
    """No traceback, path or class name."""
    for leak in ("Traceback", "/site-packages", ".py", "Error(", "Exception", "pydantic", "orjson"):
        assert leak not in error


def assert_works(server: RunningServer) -> None:
    assert server.predict(["The secret"], max_new_tokens=1)


def test_one_log_line_and_no_traceback(server: RunningServer) -> None:
    time.sleep(0.2)  # an earlier request's line may still be on its way
    before = len(server.log)
    response = server.post(body(top_k=-7), headers={"x-request-id": "the-one"})
    assert response.headers["x-request-id"] == "the-one"
    deadline = time.monotonic() + 10
    while "the-one" not in server.log[before:] and time.monotonic() < deadline:
        time.sleep(0.01)
    lines = server.log[before:].splitlines()
    assert len(lines) == 1
    assert "the-one" in lines[0]
    assert "400" in lines[0]
    assert "top_k: -7" in lines[0]


@pytest.mark.parametrize("given", ["", "a b", "x" * 200, "caf\u00e9"])
def test_request_id_is_made_where_none_is_usable(server: RunningServer, given: str) -> None:
    response = server.client.get(f"/v1/models/{NAME}", headers={b"x-request-id": given.encode()})
    assert len(response.headers.get_list("x-request-id")) == 1
    assert response.headers["x-request-id"] != given
    assert len(response.headers["x-request-id"]) == 36


@pytest.mark.parametrize("path", ["/", "/nope", "/v1/models", "/v2/health/ready", "/metrics"])
def test_every_answer_has_a_request_id(server: RunningServer, path: str) -> None:
    assert server.client.get(path, headers={"x-request-id": "abc"}).headers["x-request-id"] == "abc"


def test_parameter_names_in_any_case(server: RunningServer) -> None:
    answer = server.post(body(MAX_LENGTH=20, Temperature=0)).json()["predictions"]
    assert answer == server.predict(
        ["The secret to a happy life is to"], max_length=20, temperature=0
    )


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/octet-stream"])
def test_content_type_does_not_matter(server: RunningServer, kind: str) -> None:
    response = server.post(body(max_new_tokens=2), headers={"content-type": kind})
    assert response.status_code == 200


def test_empty_prompt_starts_from_begin_of_text(server: RunningServer) -> None:
    text = server.predict([""], max_new_tokens=20, temperature=0)[0]["generated_text"]
    assert text
    assert "<|endoftext|>" not in text


@pytest.mark.parametrize("chunked", [False, True])
def test_body_over_the_limit(server: RunningServer, chunked: bool) -> None:
    large = b'{"instances": ["' + b"a" * 3_000_000 + b'"]}'
    pieces = (large[i : i + 65536] for i in range(0, len(large), 65536))
    response = server.client.post(server.predict_path, content=pieces if chunked else large)
    assert response.status_code == 413
    assert "2000000" in response.json()["error"]
    assert_works(server)


def test_body_over_the_limit_is_not_waited_for(server: RunningServer) -> None:
    """The answer comes on the header's word, before any of the body was sent."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(
            f"POST {server.predict_path} HTTP/1.1\r\nHost: x\r\n"
            "Content-Length: 99999999999\r\n\r\n".encode()
        )
        assert b" 413 " in connection.recv(1000).splitlines()[0]


def test_encoded_body(server: RunningServer) -> None:
    response = server.post(gzip.compress(body().encode()), headers={"content-encoding": "gzip"})
    assert response.status_code == 415
    assert "gzip" in response.json()["error"]
    assert_works(server)


def test_unknown_model(server: RunningServer) -> None:
    for path in ("/v1/models/other:predict", "/v1/models/Eleutherai-GPT-J-6B:predict"):
        response = server.post(body(), path)
        assert response.status_code == 404
        assert path.split("/")[3].split(":")[0] in response.json()["error"]
    assert server.client.get("/v1/models/other").status_code == 404


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_method_not_allowed(server: RunningServer, method: str) -> None:
    response = server.client.request(method, server.predict_path)
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert "POST" in response.json()["error"]


@pytest.mark.parametrize("call", [f"{NAME}:predic", f"{NAME}:explain", NAME])
def test_unknown_call(server: RunningServer, call: str) -> None:
    """The tutorial's few-shot queries end in ":predic", and people paste them."""
    response = server.post(body(), f"/v1/models/{call}")
    assert response.status_code == 404
    assert f"POST /v1/models/{call}; use NAME:predict" in response.json()["error"]


def test_unknown_route(server: RunningServer) -> None:
    response = server.post(body(), "/v3/models/x")
    assert response.status_code == 404
    assert "POST /v3/models/x" in response.json()["error"]


@pytest.mark.parametrize("call", ["load", "unload"])
def test_repository_calls_are_refused(server: RunningServer, call: str) -> None:
    response = server.client.post(f"/v2/repository/models/{NAME}/{call}")
    assert response.status_code == 403
    assert list(response.json()) == ["error"]
    assert_works(server)


def test_not_http(server: RunningServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        assert b" 400 " in connection.recv(1000).splitlines()[0]
    assert_works(server)


@pytest.mark.slow
def test_invalid_bytes_in_the_output_become_replacement_characters(
    server: RunningServer,
) -> None:
    """Hot sampling over all tokens draws bytes that are not UTF-8; the answer is still JSON."""
    texts = [
        one["generated_text"]
        for one in server.predict(
            [""], temperature=5, top_k=0, top_p=1, max_new_tokens=200, num_return_sequences=8
        )
    ]
    assert any("\ufffd" in text for text in texts)


@pytest.fixture(scope="module")
def hasty() -> Iterator[RunningServer]:
    with RunningServer("--receive_timeout_seconds", "1") as running:
        running.wait_until_ready()
        yield running


@pytest.mark.process
@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"POST / HT",
        b"POST /v1/models HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        (
            b"POST /v1/models/eleutherai-gpt-j-6b:predict HTTP/1.1\r\nHost: x\r\n"
            b'Content-Length: 100\r\n\r\n{"inst'
        ),
    ],
    ids=["nothing", "request line", "headers", "body"],
)
def test_stalled_request_is_cut_off(hasty: RunningServer, start: bytes) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=10) as connection:
        connection.sendall(start)
        try:
            for _ in range(50):  # a byte now and then does not help
                time.sleep(0.1)
                connection.sendall(b"a")
        except OSError:
            pass
        else:
            pytest.fail("the connection stayed open")
    assert_works(hasty)


@pytest.mark.process
def test_a_long_answer_is_not_cut_off(hasty: RunningServer) -> None:
    started = time.monotonic()
    while time.monotonic() - started < 1.5:
        hasty.predict(["The"] * 8, min_new_tokens=200, max_new_tokens=200)


@pytest.mark.process
def test_a_kept_connection_is_not_cut_off(hasty: RunningServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", hasty.port)
    for _ in range(2):
        connection.request("GET", "/")
        assert connection.getresponse().read() == b'{"status":"alive"}'
        time.sleep(1.2)
    connection.close()

"""The bad-input table and the rest of the contract, against the real server."""

from __future__ import annotations

import gzip
import http.client
import socket
import time

import pytest

from tests.support.bad_bodies import TOO_LONG, UNREADABLE, body, check_error
from tests.support.servers import HASTY_SECONDS, NAME, RunningServer, wait_for

pytestmark = pytest.mark.process

#: One row of ``UNREADABLE`` for every way to refuse; tests/server/test_v1_parsing.py has them all.
SAMPLE = (
    "malformed",
    "empty",
    "bad utf-8",
    "nested",
    "nested parameters",
    "a list",
    "no instances",
    "instances empty",
    "instances with a number",
    "too many instances",
    "parameters null",
    "unknown parameter",
    "unknown key",
    "twice by case",
    "true for an int",
    "huge int",
    "NaN",
    "five stops",
    "temperature low",
    "top_k beyond",
    "min above the default",
    "lone surrogate",
)


@pytest.mark.parametrize("name", [*SAMPLE, *TOO_LONG])
def test_bad_body(server: RunningServer, name: str) -> None:
    sent, named = (UNREADABLE | TOO_LONG)[name]
    response = server.post(sent)
    assert response.status_code == 400
    assert list(response.json()) == ["error"]
    check_error(response.json()["error"], named)
    assert_works(server)


def assert_works(server: RunningServer) -> None:
    assert server.predict(["The secret"], max_new_tokens=1)


def test_one_log_line_and_no_traceback(server: RunningServer) -> None:
    response = server.post(body(top_k=-7), headers={"x-request-id": "the-one"})
    assert response.headers["x-request-id"] == "the-one"
    # A line is written once its answer is out. When the next request's line is there, the first
    # one has no more to come.
    server.client.get("/nope", headers={"x-request-id": "the-next"})
    wait_for(lambda: "the-next" in server.log)
    lines = server.log.splitlines()
    [place] = [number for number, line in enumerate(lines) if "the-one" in line]
    assert "400" in lines[place]
    assert "top_k: -7" in lines[place]
    assert "the-next" in lines[place + 1]


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


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"POST / HT",
        b"POST /v1/models HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        (
            b"POST /v1/models/eleutherai-gpt-j-6b:predict HTTP/1.1\r\nHost: x\r\n"
            b'Content-Length: 100000\r\n\r\n{"inst'
        ),
    ],
    ids=["nothing", "request line", "headers", "body"],
)
def test_stalled_request_is_cut_off(hasty: RunningServer, start: bytes) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=10) as connection:
        connection.sendall(start)
        # A byte now and then does not help.
        wait_for(lambda: is_closed(connection, send=b"a"))
    assert_works(hasty)


def is_closed(connection: socket.socket, send: bytes = b"") -> bool:
    """Whether the other side closes a connection within a moment, in spite of what is sent."""
    connection.settimeout(0.1)
    try:
        connection.sendall(send)
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_a_long_answer_is_not_cut_off(hasty: RunningServer) -> None:
    for tokens in (250, 500, 1000, 2000):
        started = time.monotonic()
        hasty.predict(["The"] * 32, min_length=tokens, max_length=tokens)
        if time.monotonic() - started > 2 * HASTY_SECONDS:
            return
    pytest.fail("no answer took longer than the limit for requests")


def test_a_kept_connection_is_not_cut_off(hasty: RunningServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", hasty.port)
    connection.request("GET", "/")
    assert connection.getresponse().read() == b'{"status":"alive"}'
    # The limit has passed for sure when a connection that began later has been closed.
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=10) as later:
        wait_for(lambda: is_closed(later))
    connection.request("GET", "/")
    assert connection.getresponse().read() == b'{"status":"alive"}'
    connection.close()

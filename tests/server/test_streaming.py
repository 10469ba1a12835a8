"""V1's streams: the same text as at once, in whole pieces, whatever happens on the way."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support.event_streams import Streamed, events, stream
from tests.support.metrics import Scrape
from tests.support.secrets import KEYS, MountedSecret
from tests.support.servers import TALKATIVE, RunningServer, wait_for

pytestmark = pytest.mark.process

PROMPTS = ["The secret to a happy life is to", "Message: I love it. Sentiment:"]

#: Any token follows any other, so texts are full of broken and of rare characters.
WILD = {"temperature": 5, "top_k": 0, "top_p": 1, "max_new_tokens": 120}


def body(prompts: list[str], **parameters: object) -> dict[str, Any]:
    return {"instances": prompts, "parameters": parameters, "stream": True}


def whole(predictions: Any) -> dict[tuple[int, int], str]:
    """An answer at once, by prompt and sequence; its texts are without prompts."""
    nested = predictions if isinstance(predictions[0], list) else [predictions]
    return {
        (i, j): one["generated_text"]
        for i, sequences in enumerate(nested)
        for j, one in enumerate(sequences)
    }


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "two"])
@pytest.mark.parametrize(
    "more", [{}, {"num_return_sequences": 3}, WILD, {"details": True}], ids=str
)
def test_pieces_are_the_text(native: RunningServer, prompts: list[str], more: Any) -> None:
    parameters = {"seed": 3, "max_new_tokens": 40, "return_full_text": False} | more
    at_once = native.predict(prompts, **parameters)
    streamed = stream(native.client, native.predict_path, body(prompts, **parameters))
    if "details" not in more:  # the prefix cache knows the prompt the second time
        assert streamed.last == {"predictions": at_once}
    assert streamed.texts() == whole(at_once)
    assert len(streamed.events) > 10


@pytest.mark.parametrize("seed", range(6))
def test_any_character_and_any_stop_string(native: RunningServer, seed: int) -> None:
    """Stop strings are cut from the text itself, so that their beginnings come and go."""
    parameters = {**WILD, "seed": seed, "return_full_text": False}
    [one] = native.predict(PROMPTS[:1], **parameters)
    text = one["generated_text"]
    stops = [text[place : place + 1 + seed] for place in range(20, len(text) - 8, len(text) // 4)]
    stops = [stop for stop in stops if stop][:4]
    streamed = stream(
        native.client, native.predict_path, body(PROMPTS[:1], **parameters, stop=stops)
    )
    expected = text[: min(text.find(stop) for stop in stops)]
    assert streamed.texts() == ({(0, 0): expected} if expected else {})
    assert streamed.last["predictions"] == [{"generated_text": expected}]


def test_the_prompt_is_only_in_the_last_event(native: RunningServer) -> None:
    streamed = stream(native.client, native.predict_path, body(PROMPTS[:1], max_new_tokens=5))
    [text] = streamed.texts().values()
    assert streamed.last["predictions"] == [{"generated_text": PROMPTS[0] + text}]


def test_pieces_come_while_the_text_is_made(native: RunningServer) -> None:
    """The first piece is there when most of the text is not."""
    asked = body(PROMPTS[:1], min_new_tokens=1500, max_new_tokens=1500)
    with native.client.stream("POST", native.predict_path, json=asked) as response:
        lines = events(response.iter_lines())
        started = time.monotonic()
        next(lines)
        first = time.monotonic() - started
        assert sum(1 for _ in lines) > 500
        assert first < (time.monotonic() - started) / 3


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        (body([]), "instances"),
        (body(["a"], top_p=2), "top_p"),
        (body(["a"]) | {"stream": "yes"}, 'stream: "yes" is not allowed; use true or false'),
        (body(["a" * 9000], max_length=20), "instances[0]"),
    ],
    ids=["empty", "parameter", "stream", "long"],
)
def test_bad_input_has_its_status(native: RunningServer, asked: Any, word: str) -> None:
    response = native.client.post(native.predict_path, json=asked)
    assert response.status_code == 400
    assert word in response.json()["error"]


def test_many_streams_at_once(native: RunningServer) -> None:
    """Each has its own text."""
    parameters: dict[str, Any] = {"max_new_tokens": 60, "return_full_text": False}
    expected = whole(native.predict(PROMPTS * 8, **parameters, temperature=0))

    def ask(number: int) -> str:
        asked = body([(PROMPTS * 8)[number]], **parameters, temperature=0)
        with httpx.Client(base_url=native.client.base_url, timeout=60) as client:
            [text] = stream(client, native.predict_path, asked).texts().values()
        return text

    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(ask, range(16)))
    assert texts == [expected[number, 0] for number in range(16)]


def test_slow_reader(native: RunningServer) -> None:
    """It holds nobody up, and has everything when it reads at last."""
    prompts, count = PROMPTS * 2, 400
    asked = body(prompts, min_new_tokens=count, max_new_tokens=count, temperature=0)
    lazy = http.client.HTTPConnection("127.0.0.1", native.port, timeout=60)
    lazy.connect()
    lazy.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    before = generated_tokens(native)
    lazy.request("POST", native.predict_path, json.dumps(asked))
    native.predict(PROMPTS, max_new_tokens=20)  # while the other's texts are made
    wait_for(lambda: generated_tokens(native) >= before + len(prompts) * count, 120)
    with lazy.getresponse() as response:
        lines = response.read().decode().removesuffix("\n").split("\n")
    lazy.close()
    streamed = Streamed([json.loads(data) for data in events(lines) if data is not None])
    assert streamed.texts() == {
        (number, 0): one["generated_text"].removeprefix(prompt)
        for number, (prompt, [one]) in enumerate(
            zip(prompts, streamed.last["predictions"], strict=True)
        )
    }


def generated_tokens(server: RunningServer) -> float:
    return Scrape.of(server).value("gptj_generated_tokens_total")


@pytest.fixture(scope="module")
def talkative() -> Iterator[RunningServer]:
    with RunningServer("--max_batch_size", "1", program=TALKATIVE) as running:
        running.wait_until_ready()
        yield running


def test_keep_alive(talkative: RunningServer) -> None:
    """A stream that waits for its turn has comments, and its text after them."""
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=talkative.client.base_url) as other:
        holder = body(["a"], min_new_tokens=2000, max_new_tokens=2000)
        with talkative.client.stream("POST", talkative.predict_path, json=holder) as first:
            lines = first.iter_lines()
            next(lines)  # it has the one place
            second = pool.submit(
                stream, other, talkative.predict_path, body(["b"], min_new_tokens=9)
            )
            time.sleep(0.5)
        streamed = second.result()
    assert streamed.num_comments >= 2
    assert "predictions" in streamed.last


def test_error_after_the_first_byte(locked: RunningServer, key_secret: MountedSecret) -> None:
    """It is the last event; the log and the metrics know of it."""
    fault = key_secret.folder / "fault"
    authorization = {"authorization": f"Bearer {KEYS[0]}"}
    asked = body(["a"], min_new_tokens=2000, max_new_tokens=2000)
    with locked.client.stream(
        "POST", locked.predict_path, json=asked, headers=authorization | {"x-request-id": "broken"}
    ) as response:
        lines = response.iter_lines()
        head = [next(lines) for _ in range(4)]
        fault.write_text("exception")
        try:
            *_, last = events([*head, *lines])
        finally:
            fault.unlink()
    assert last is not None
    assert json.loads(last) == {"error": "internal error; the server's log has the details"}
    wait_for(lambda: "id=broken" in locked.log)
    [line] = [line for line in locked.log.splitlines() if "id=broken" in line]
    assert "error=" in line
    scrape = Scrape(locked.client.get("/metrics", headers=authorization).text)
    assert scrape.value("gptj_requests_total", outcome="error", protocol="v1") == 1


@pytest.mark.parametrize("seconds", [3, 60])
def test_drain(seconds: int) -> None:
    """A stream is finished after SIGTERM, or ends with what it has."""
    with RunningServer("--grace_period", str(seconds)) as server:
        server.wait_until_ready()
        tokens = 200 if seconds == 60 else 2000
        count = 1 if seconds == 60 else 32
        asked = body(["a"] * count, min_new_tokens=tokens, max_new_tokens=tokens, details=True)
        with server.client.stream("POST", server.predict_path, json=asked) as response:
            lines = response.iter_lines()
            head = [next(lines), next(lines)]
            server.process.send_signal(signal.SIGTERM)
            *_, last = events([*head, *lines])
        assert last is not None
        predictions = json.loads(last)["predictions"]
        texts = [predictions] if count == 1 else predictions
        reasons = {one["details"]["finish_reason"] for sequences in texts for one in sequences}
        assert reasons == ({"length"} if seconds == 60 else {"shutdown"})
        assert server.process.wait(20) == 0

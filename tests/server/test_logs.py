"""The log: JSON or text, prompts or none, and never a line that a caller wrote."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from gptj_predictor.cli.logs import JsonLines
from gptj_predictor.server.middleware import note_texts, request_middleware
from tests.support.bad_bodies import body
from tests.support.faults import SECRET
from tests.support.secrets import KEYS, MountedSecret, bearer
from tests.support.servers import RunningServer, wait_for

pytestmark = pytest.mark.process

MARKER = "xyzzy plugh"


@contextlib.contextmanager
def fault(secret: MountedSecret, kind: str = "exception") -> Iterator[None]:
    """Something of the server goes wrong, see :mod:`tests.support.faults`."""
    file = secret.folder / "fault"
    file.write_text(kind)
    try:
        yield
    finally:
        file.unlink()


def objects(server: RunningServer) -> list[dict[str, Any]]:
    """The log's lines, all of which must be JSON objects."""
    lines = [json.loads(line) for line in server.log.splitlines()]
    for line in lines:
        assert list(line)[:4] == ["time", "level", "logger", "message"]
        assert line["message"]
        assert datetime.fromisoformat(line["time"]).utcoffset() is not None
    return lines


def lines_of(server: RunningServer, request_id: str, count: int) -> list[dict[str, Any]]:
    """The lines that belong to a request."""

    def found() -> list[dict[str, Any]]:
        return [line for line in objects(server) if line.get("request_id") == request_id]

    wait_for(lambda: len(found()) >= count)
    assert len(found()) == count
    return found()


class TestJson:
    def test_every_line_is_an_object(self, secured: RunningServer) -> None:
        secured.client.get("/nope")
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{secured.port}/")
        loggers = {line["logger"].split(".")[0] for line in objects(secured)}
        assert loggers >= {"gptj_predictor", "kserve", "uvicorn"}

    def test_a_request(self, secured: RunningServer) -> None:
        secured.post(body(max_new_tokens=1), headers={"x-request-id": "a-good-one"})
        line, _ = lines_of(secured, "a-good-one", 2)
        assert line["milliseconds"] > 0
        assert line["caller"].startswith("key:")
        assert (line["level"], line["method"], line["status"]) == ("INFO", "POST", 200)
        assert line["path"] == secured.predict_path
        assert "error" not in line

    def test_a_refusal(self, secured: RunningServer) -> None:
        secured.post(body(top_k=-7), headers={"x-request-id": "a-bad-one"})
        [line] = lines_of(secured, "a-bad-one", 1)
        assert (line["level"], line["status"]) == ("WARNING", 400)
        assert "top_k: -7" in line["error"]
        headers = {"x-request-id": "a-stranger", "authorization": "", "x-forwarded-for": "1.2.3.4"}
        secured.client.get("/v1/models", headers=headers)
        [line] = lines_of(secured, "a-stranger", 1)
        assert (line["status"], line["caller"]) == (401, "127.0.0.1")

    def test_a_failure(self, secured: RunningServer, secrets: MountedSecret) -> None:
        with fault(secrets):
            response = secured.post(body(["a"]), headers={"x-request-id": "a-failed-one"})
        assert response.status_code in (500, 503)
        assert secured.predict(["a"], max_new_tokens=1)
        wait_for(lambda: any("traceback" in line for line in objects(secured)))
        traceback = next(line["traceback"] for line in objects(secured) if "traceback" in line)
        assert traceback.startswith("Traceback (most recent call last)")
        assert SECRET in traceback

    def test_prompts_and_texts(self, secured: RunningServer) -> None:
        prompts = [f'{MARKER}"\n{{"level": "FORGED"}}\n', "\u2028\u0085é😀"]
        parameters = {"max_new_tokens": 2, "num_return_sequences": 2}
        response = secured.post(body(prompts, **parameters), headers={"x-request-id": "texts"})
        _, line = lines_of(secured, "texts", 2)
        assert line["prompts"] == prompts
        answers = response.json()["predictions"]
        assert answers == [
            [{"generated_text": prompt + text} for text in texts]
            for prompt, texts in zip(prompts, line["texts"], strict=True)
        ]
        assert not [one for one in objects(secured) if one["level"] == "FORGED"]

    def test_prompts_without_texts(self, secured: RunningServer, secrets: MountedSecret) -> None:
        with fault(secrets):
            secured.post(body([MARKER]), headers={"x-request-id": "no-texts"})
        line = next(one for one in lines_of(secured, "no-texts", 3) if "prompts" in one)
        assert (line["prompts"], line["texts"]) == ([MARKER], None)

    def test_an_error_at_the_start(self, tmp_path: Path) -> None:
        with RunningServer("--log_format", "json", "--model", str(tmp_path)) as server:
            assert server.process.wait(60) == 1
            line = objects(server)[-1]
        assert (line["level"], line["logger"]) == ("CRITICAL", "gptj_predictor")
        assert str(tmp_path) in line["message"]

    def test_fields_of_others(self) -> None:
        """uvicorn's colors are left out; warnings and numbers stay what they are."""
        record = logging.makeLogRecord(
            {"msg": "a %d", "args": (1,), "color_message": "\x1b[1m", "n": 3, "name": "x"}
        )
        line = json.loads(JsonLines().format(record))
        assert list(line) == ["time", "level", "logger", "message", "n"]
        assert (line["logger"], line["message"], line["n"]) == ("x", "a 1", 3)


def test_without_the_flag_no_prompt_is_in_the_log(
    locked: RunningServer, key_secret: MountedSecret
) -> None:
    """Whatever becomes of the request."""
    headers = bearer(KEYS[0])
    statuses = []

    def post(sent: str | bytes, **more: str) -> None:
        statuses.append(locked.post(sent, headers=headers | more).status_code)

    post(body([MARKER], max_new_tokens=1))
    post(body([MARKER], max_new_tokens=1), authorization="")
    post(body([MARKER], top_k=-1))
    post(body([MARKER], max_lenght=1))
    post(body([MARKER], max_length=1))
    post(body([MARKER] * 33))
    post(body([MARKER, 7]))
    post(body([MARKER * 3000]))
    post(f'{{"instances": ["{MARKER}"')
    post(f'{{"instances": ["{MARKER}"], "instanzes": 1}}')
    post(f'{{"instances": ["{MARKER}\\ud800"]}}')
    post(f'{{"instances": ["{MARKER}\xff"]}}'.encode("latin-1"))
    post(gzip.compress(body([MARKER]).encode()), **{"content-encoding": "gzip"})
    post(body([MARKER * 200_000]))
    assert statuses == [200, 401, *[400] * 10, 415, 413]
    for kind in ("memory", "exception", "nan", "tokenizer", "detokenizer"):
        with fault(key_secret, kind):
            post(body([MARKER * 10]))
        assert statuses[-1] in (500, 503), kind
    with pytest.raises(httpx.ReadTimeout):
        locked.post(
            body([MARKER], min_new_tokens=1500, max_new_tokens=1500, num_return_sequences=8),
            headers=headers | {"x-request-id": "gone"},
            timeout=0.05,
        )
    wait_for(lambda: "id=gone" in locked.log)
    assert "xyzzy" not in locked.log
    assert "plugh" not in locked.log
    assert SECRET in locked.log


@pytest.mark.parametrize("log_prompts", [True, False])
def test_a_prompt_forges_no_line(log_prompts: bool, caplog: pytest.LogCaptureFixture) -> None:
    """In a text log, too."""
    caplog.set_level(logging.INFO, "gptj_predictor")
    forged = "a\nERROR forged\r\x85\u2028'"

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        note_texts(scope, [forged], [[forged]])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    async def nothing(*_: object) -> Any:
        return {}

    scope = {"type": "http", "method": "POST", "path": "/\nERROR forged", "headers": []}
    wrapped = request_middleware(
        app, 1000, lambda inner: inner, lambda inner: inner, log_prompts=log_prompts
    )

    async def run() -> None:
        await wrapped(scope, nothing, nothing)

    asyncio.run(run())
    shown = [logging.Formatter().format(record) for record in caplog.records]
    assert len(shown) == 1 + log_prompts
    for line in shown:
        assert len(line.splitlines()) == 1
    assert log_prompts == any("forged\\r\\x85\\u2028" in line for line in shown)

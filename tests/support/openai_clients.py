"""Answers of OpenAI's routes, as bare HTTP has them."""

from __future__ import annotations

from typing import Any

import httpx

from tests.support.event_streams import read_stream
from tests.support.servers import RunningServer

COMPLETIONS = "/openai/v1/completions"

#: Every path of completions.
PATHS = (COMPLETIONS, "/v1/completions")


def complete(server: RunningServer, prompt: object, path: str = COMPLETIONS, **fields: Any) -> Any:
    """An answer that must come."""
    response = server.client.post(path, json={"prompt": prompt, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def stream(
    server: RunningServer, prompt: object, path: str = COMPLETIONS, **fields: Any
) -> list[dict[str, Any]]:
    """The events of a streamed answer, without the last, which must be ``[DONE]``."""
    body = {"prompt": prompt, "stream": True, **fields}
    with server.client.stream("POST", path, json=body) as response:
        *events, done = read_stream(response).events
    assert done == "[DONE]"
    return events


def texts(answer: Any) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


def put_together(events: list[dict[str, Any]]) -> tuple[dict[int, str], dict[int, str]]:
    """The texts of a stream and their reasons to finish; nothing may come behind the reason."""
    whole: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for event in events:
        for choice in event["choices"]:
            index = choice["index"]
            assert index not in reasons
            whole[index] = whole.get(index, "") + choice["text"]
            if choice["finish_reason"] is not None:
                reasons[index] = choice["finish_reason"]
    return whole, reasons


def check_refused(response: httpx.Response, status: int, code: str | None, word: str) -> None:
    """An error in OpenAI's shape."""
    assert response.status_code == status, response.text
    [(name, error)] = response.json().items()
    assert name == "error"
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert word in error["message"]
    assert response.headers["x-request-id"]

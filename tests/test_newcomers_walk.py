"""docs/architecture.md names every function that a request goes through, in order."""

from __future__ import annotations

import json
import re
import socket
import time
from collections import defaultdict
from pathlib import Path

import pytest

from tests.support.calls import RECORDED_SERVER, Call, first_calls, read_calls
from tests.support.servers import NAME, RunningServer, wait_for

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"

#: The page's names of threads, and Python's. The tokenizer's is the event loop's first helper.
THREADS = {
    "event loop": r"MainThread",
    "tokenizer thread": r"(uvloop|asyncio)_0",
    "engine thread": r"engine",
}


def walk_of_the_page() -> dict[str, list[str]]:
    """By thread, the functions in the order of the page; lines that begin with # are remarks."""
    section = PAGE.read_text().split("\n## A newcomer's walk\n")[1].split("\n## ")[0]
    [block] = re.findall(r"```text\n(.*?)```", section, re.DOTALL)
    walk = defaultdict(list)
    thread = ""
    for line in block.splitlines():
        if line.startswith("["):
            thread = line.strip("[]")
        elif line.strip() and not line.startswith("#"):
            walk[thread].append(line.split()[0])
    return walk


def request(prompt: str, new_tokens: int) -> bytes:
    parameters = {"temperature": 0, "max_new_tokens": new_tokens}
    body = json.dumps({"instances": [prompt], "parameters": parameters})
    head = (
        f"POST /v1/models/{NAME}:predict HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return (head + body).encode()


def send(server: RunningServer, connection: socket.socket, content: bytes) -> None:
    """Send a request in one piece; wait for the log line, and a moment for what comes after it."""
    before = server.log.count(":predict' 200")
    connection.sendall(content)
    wait_for(lambda: server.log.count(":predict' 200") > before)
    time.sleep(0.2)


def recorded_calls(folder: Path) -> list[Call]:
    """The calls of one request, the second of a server; ``folder`` is for its files."""
    file = folder / "calls.json"
    with RunningServer(program=RECORDED_SERVER, CALLS=str(file)) as server:
        server.wait_until_ready()
        address = ("127.0.0.1", server.port)
        with socket.create_connection(address) as first:
            send(server, first, request("The sky", 2))  # so that nothing happens only once
            begin = time.monotonic()
            with socket.create_connection(address) as second:
                send(server, second, request("The secret to a happy life", 3))
                end = time.monotonic()
        assert server.stop() == 0
    return [call for call in read_calls(file) if begin < call.at < end]


@pytest.mark.process
def test_a_real_request_takes_the_way_of_the_page(tmp_path: Path) -> None:
    """If this fails for a change of the way: run ``make walk``, and read what it wrote."""
    calls = recorded_calls(tmp_path)
    found = {name: first_calls(calls, pattern) for name, pattern in THREADS.items()}
    assert found == walk_of_the_page()

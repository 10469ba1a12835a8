"""Whatever is sent: no 5xx, nothing of the server's insides in an answer, no hang, no harm."""

from __future__ import annotations

import asyncio
import json
import random
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptj_predictor.settings import GenerationParameters
from tests.server.test_grpc import message
from tests.support.raw_clients import HOST
from tests.support.servers import NAME, RunningServer

pytestmark = [pytest.mark.process, pytest.mark.slow]

PATH = f"/v1/models/{NAME}:predict"
#: Of paths, tracebacks and class names.
LEAK = re.compile(
    rb"Traceback|site-packages|gptj_predictor|File \"|line \d+, in|\w\.py\b|\w(Error|Exception)\b"
)
#: Seconds for a request to arrive at the server, and for it to be answered or closed.
RECEIVE_SECONDS, ANSWER_SECONDS = 1, 30
AT_ONCE = 32


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[RunningServer]:
    """Generates one token unless told otherwise, and waits a second for a request."""
    flags = ("--receive_timeout_seconds", str(RECEIVE_SECONDS), "--max_new_tokens", "1")
    with RunningServer(*flags, grpc=True) as server:
        server.wait_until_ready()
        yield server


NAMES = [*GenerationParameters.model_fields, "Max_Length", "max_lenght", "n", "", "instances"]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-1, 20)
    | st.floats()
    | st.sampled_from([0.0, -0.0, 1e308, 5e-324, 2**63, 2**64, 10**400])
    | st.text(max_size=80)
    | st.text(st.characters(codec=None, categories=["Cs", "Cc", "Co", "Lo"]), max_size=20)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
PARAMETERS = st.dictionaries(
    # A right number of tokens would have it generate for long.
    st.sampled_from([name for name in NAMES if name != "max_new_tokens"]) | st.text(max_size=9),
    VALUES,
    max_size=4,
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "instances": st.lists(st.text(max_size=60), min_size=1, max_size=3) | VALUES,
        "parameters": PARAMETERS | VALUES,
    },
)
#: A key more, now and then.
NEAR_VALID = st.tuples(BODIES, st.dictionaries(st.text(max_size=9), VALUES, max_size=1)).map(
    lambda pair: json.dumps(pair[1] | pair[0], ensure_ascii=True).encode()
)


@st.composite
def broken_json(draw: st.DrawFn) -> bytes:
    """A body with a piece cut out, doubled or replaced."""
    body = draw(NEAR_VALID)
    start = draw(st.integers(0, len(body)))
    end = draw(st.integers(start, len(body)))
    return body[:start] + draw(st.binary(max_size=9) | st.just(body[start:end] * 2)) + body[end:]


def test_bodies(fuzzed: RunningServer, large: bool) -> None:
    """JSON that is nearly right, JSON that is broken, and no JSON at all."""
    statuses: Counter[int] = Counter()
    before = greedy_text(fuzzed)

    @settings(
        max_examples=6000 if large else 200,
        deadline=None,
        database=None,
        derandomize=not large,
        suppress_health_check=list(HealthCheck),
    )
    @given(NEAR_VALID | broken_json() | st.binary(max_size=200))
    def check(body: bytes) -> None:
        response = fuzzed.post(body)
        statuses[response.status_code] += 1
        assert response.status_code in (200, 400)
        assert response.headers["x-request-id"]
        assert list(response.json()) == ["predictions" if response.status_code == 200 else "error"]
        check_no_leak(response.content, body)

    check()
    print(statuses)
    assert statuses[200]
    assert statuses[400]
    assert greedy_text(fuzzed) == before
    assert "Traceback" not in fuzzed.log


#: Of ``infer`` and ``generate``, with fields that may be anything.
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("prompt") | SCALARS,
        "datatype": st.just("BYTES") | SCALARS,
        "shape": st.lists(st.integers(-1, 3), max_size=2) | VALUES,
        "data": st.lists(st.text(max_size=20), max_size=3) | VALUES,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": VALUES}) | VALUES,
    },
)
OUTPUT = {"name": st.sampled_from(["generated_text", "details"]) | SCALARS, "parameters": VALUES}
OIP_BODIES = st.fixed_dictionaries(
    {},
    optional={
        "id": SCALARS,
        "inputs": st.lists(TENSORS, max_size=2) | VALUES,
        "outputs": st.lists(st.fixed_dictionaries({}, optional=OUTPUT), max_size=2) | VALUES,
        "text_input": st.text(max_size=20) | VALUES,
        "parameters": PARAMETERS | VALUES,
    },
)


@pytest.mark.parametrize("call", ["infer", "generate", "generate_stream"])
def test_oip_bodies(fuzzed: RunningServer, large: bool, call: str) -> None:
    """JSON that is nearly right, with what may be in binary behind it."""
    statuses: Counter[int] = Counter()
    right: dict[str, Any] = {"text_input": "a"}
    if call == "infer":
        tensor = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["a"]}
        right = {"inputs": [tensor]}

    @settings(
        max_examples=3000 if large else 70,
        deadline=None,
        database=None,
        derandomize=not large,
        suppress_health_check=list(HealthCheck),
    )
    @given(OIP_BODIES, st.booleans(), st.binary(max_size=20), st.integers(-1, 400) | st.none())
    def check(change: dict[str, Any], near: bool, behind: bytes, length: int | None) -> None:
        fields = right | change if near else change
        unknown = {"text_input"} if call == "infer" else {"inputs", "outputs"}
        body = json.dumps({k: v for k, v in fields.items() if k not in unknown}).encode()
        headers = {}
        if call == "infer":
            length = len(body) if length is None or near else length
            headers = {"inference-header-content-length": str(length)}
            body += behind if not near else b""
        response = fuzzed.post(body, f"/v2/models/{NAME}/{call}", headers=headers)
        statuses[response.status_code] += 1
        assert response.status_code in (200, 400)
        check_no_leak(response.content, body)

    check()
    print(statuses)
    assert statuses[200]
    assert statuses[400]
    assert "Traceback" not in fuzzed.log


def test_grpc_messages(fuzzed: RunningServer, large: bool) -> None:
    """Messages of which some bytes are others: a status that says whose fault it is."""
    draw = random.Random(6 if not large else None)
    statuses: Counter[str] = Counter()
    with grpc.insecure_channel(f"127.0.0.1:{fuzzed.grpc_port}") as channel:
        call: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for _ in range(6000 if large else 300):
            given = message(["ab", "c"], raw=draw.random() < 0.5, top_k=3, temperature=0.5)
            given.outputs.add(name="generated_text")
            data = bytearray(given.SerializeToString())
            for _ in range(draw.choice([0, 1, 1, 2, 5])):
                place = draw.randrange(len(data))
                data[place : place + draw.randint(0, 2)] = draw.randbytes(draw.randint(0, 3))
            try:
                call(bytes(data), timeout=ANSWER_SECONDS)
                statuses["OK"] += 1
            except grpc.RpcError as error:
                statuses[error.code().name] += 1
                check_no_leak(str(error.details()).encode(), bytes(data))
    print(statuses)
    assert statuses.keys() == {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
    assert "Traceback" not in fuzzed.log


def check_no_leak(received: bytes, sent: bytes) -> None:
    if b'{"openapi":' in received:
        return  # its schemas have names, FastAPI's ValidationError among them
    for found in LEAK.finditer(received):
        assert found[0] in sent, received  # an error shows the value that is wrong


def greedy_text(server: RunningServer) -> Any:
    return server.predict(["The secret to a happy life is"], max_new_tokens=30, temperature=0)


BODY = b'{"instances": ["a"]}'
METHODS = (b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"TRACE", b"CONNECT", b"PRI", b"get", b"X")
PATHS = (
    PATH.encode(),
    *(b"/", b"*", b"", b"/metrics", b"/v2/health/ready", b"//", b"/../../etc/passwd", b"/%00"),
    *(
        b"/v1/models/%2e%2e:predict",
        b"http://other/",
        b"other:443",
        b"/\xff\xfe",
        b"/?" + b"a=&" * 99,
    ),
    *(b"/v1/models/" + b"%41" * 300, b"/openapi.json", b"/docs", b"/v2/repository/index"),
)
VERSIONS = (b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.1 ", b"http/1.1", b"")
HEADERS = (
    *(
        b"Host: x",
        b"Host: x\r\nHost: y",
        b"Connection: close",
        b"Connection: upgrade\r\nUpgrade: h2c",
    ),
    *(b"Expect: 100-continue", b"Expect: 200-ok", b"Content-Type: \xff", b"Content-Encoding: gzip"),
    *(
        b"Content-Encoding: \xe9",
        b"X-Request-Id: \x7f",
        b"X-Request-Id: a\tb",
        b"X-Request-Timeout: 1e-9",
    ),
    *(
        b"X-Request-Timeout: \xff",
        b"Authorization: Bearer \xff",
        b"X-Forwarded-For: ', 1.2.3.4, ::1",
    ),
    *(b": empty", b"No-Colon", b" Folded: yes", b"Na me: x", b"Nul: \0", b"X: " + b"y" * 9000),
    *(b"Traceparent: 00-0-0-0", b"Accept: */*;q=\xff", b"Cookie: " + b"a=b;" * 500),
    b"Sec-WebSocket-Key: x\r\nConnection: Upgrade\r\nUpgrade: websocket",
)
LENGTHS = (
    *(
        b"Content-Length: 20",
        b"Content-Length: 20\r\nContent-Length: 21",
        b"Content-Length: 20, 20",
    ),
    *(b"Content-Length: -1", b"Content-Length: 1e3", b"Content-Length: 99999999999999999999999"),
    *(
        b"Content-Length: +20",
        b"Content-Length: 0x14",
        b"Content-Length: 5",
        b"Content-Length: 3000000",
    ),
    *(
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: chunked, chunked",
        b"Transfer-Encoding: gzip",
    ),
    *(b"Transfer-Encoding: chunked\r\nContent-Length: 20", b"Transfer-Encoding : chunked"),
    *(b"Transfer-Encoding: identity", b"Transfer-Encoding: xchunked", b""),
)
CONTENTS = (
    BODY,
    b"14\r\n" + BODY + b"\r\n0\r\n\r\n",
    b"14;x=" + b"y" * 500 + b"\r\n" + BODY + b"\r\n0\r\nTrailer: x\r\n\r\n",
    *(b"-1\r\n" + BODY, b"ffffffffffffffffff\r\n", b"14\r\n" + BODY + b"0\r\n\r\n", b"zz\r\n\r\n"),
    *(b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n", b"", b"[" * 5000, b"\0" * 20),
)


def request(draw: random.Random) -> bytes:
    """A request of parts of which each may be wrong, most are right."""

    def part(options: tuple[bytes, ...], right: int) -> bytes:
        return options[0] if draw.random() < right / 10 else draw.choice(options)

    method = b"POST" if draw.random() < 0.6 else draw.choice(METHODS)
    line = b" ".join([method, part(PATHS, 5), part(VERSIONS, 8)])
    headers = [part(HEADERS, 8) for _ in range(draw.randint(1, 4))]
    lines = [line, *headers, part(LENGTHS, 6)]
    return b"\r\n".join([line for line in lines if line] + [b"", b""]) + part(CONTENTS, 6)


def mutated(draw: random.Random) -> bytes:
    """A request of which some bytes are others."""
    data = bytearray(request(draw))
    for _ in range(draw.randint(1, 6)):
        place = draw.randrange(len(data))
        data[place : place + draw.randint(0, 2)] = draw.randbytes(draw.randint(0, 3))
    return bytes(data)


def truncated(draw: random.Random) -> bytes:
    data = request(draw)
    return data[: draw.randrange(len(data))]


def pipelined(draw: random.Random) -> bytes:
    return b"".join(request(draw) for _ in range(draw.randint(2, 5)))


def noise(draw: random.Random) -> bytes:
    return draw.randbytes(draw.randint(1, 2000))


def letters(draw: random.Random) -> bytes:
    return "".join(draw.choices(string.printable, k=draw.randint(1, 300))).encode()


def flood(draw: random.Random) -> bytes:
    piece = draw.choice([b"X-Many: 1\r\n", b"a", b"\r\n", b" ", b"\0"])
    return b"GET / HTTP/1.1\r\n" + piece * draw.choice([100, 10_000, 200_000])


KINDS: tuple[Callable[[random.Random], bytes], ...] = (
    *(request, request, mutated, mutated, truncated, pipelined, noise, letters, flood),
)


def test_raw_garbage(fuzzed: RunningServer, large: bool) -> None:
    """Requests of wrong parts, floods and noise on sockets; slowly, in one piece, cut off."""
    count = 6000 if large else 200
    before = greedy_text(fuzzed)
    draw = random.Random(5 if not large else None)
    statuses: Counter[str] = Counter()

    async def send_all() -> None:
        places = asyncio.Semaphore(AT_ONCE)
        inputs = [(draw.choice(KINDS)(draw), draw.random()) for _ in range(count)]
        await asyncio.gather(*(send_one(data, how, places) for data, how in inputs))

    async def send_one(data: bytes, how: float, places: asyncio.Semaphore) -> None:
        async with places, asyncio.timeout(ANSWER_SECONDS):
            received = await exchange(fuzzed.port, data, how)
        found = re.findall(rb"HTTP/1\.1 (\d{3}) ", received)
        statuses.update([status.decode() for status in found] or ["closed"])
        # The one 5xx that is meant: the time that the client gave was over.
        meant = {b"504"} if b"x-request-timeout" in data.lower() else set()
        assert not [s for s in found if s >= b"500" and s not in meant], (data, received)
        check_no_leak(received, data)

    asyncio.run(send_all())
    print(statuses)
    assert {"200", "400", "404", "405", "closed"} <= statuses.keys()
    assert greedy_text(fuzzed) == before
    assert "Traceback" not in fuzzed.log


async def exchange(port: int, data: bytes, how: float) -> bytes:
    """Send in one piece, in several, or with an end behind it; what comes back until the close."""
    reader, writer = await asyncio.open_connection(HOST, port)
    received = b""
    try:
        if how < 0.2:
            for start in range(0, min(len(data), 3000), 1 + len(data) // 7):
                writer.write(data[start : start + 1 + len(data) // 7])
                await writer.drain()
                await asyncio.sleep(0.02)
        else:
            writer.write(data)
            await writer.drain()
        if how > 0.9:
            writer.write_eof()
        while True:
            # A connection that is kept after an answer is not closed soon.
            wait = 0.05 if received else ANSWER_SECONDS
            async with asyncio.timeout(wait):
                more = await reader.read(65536)
            if not more:
                break
            received += more
    except TimeoutError:
        assert received, data  # neither answered nor closed
    except OSError:
        pass  # it was closed while we sent
    finally:
        writer.close()
    return received

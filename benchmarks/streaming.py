"""What do streams cost: the first byte, the throughput of many, the memory of those that wait?

    .venv/bin/python benchmarks/streaming.py --model FOLDER [--cases first-byte throughput waiting]

First byte: the time from the engine's own first token, which the server notes, to the first piece
at the client. Both read the machine's monotonic clock.

Throughput: as many requests at once, streamed and not, taking turns.

Waiting: streams behind one that has the only place in the batch. They get keep-alives. What the
server's memory has grown by then is theirs: the KV cache has been used before.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from processes import memory_bytes
from serving import Server, predict

#: A server that notes when the engine has a sequence's first token.
NOTING = """
import os
from gptj_predictor.engine import stats
first_token = stats.Meter._first_token
notes = os.open(os.environ["FIRST_TOKENS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def noted(meter, sequence, now):
    first_token(meter, sequence, now)
    os.write(notes, b"%.9f\\n" % now)

stats.Meter._first_token = noted
from gptj_predictor.__main__ import main
main()
"""

#: A server with its own time between keep-alives.
KEEPING = """
import os
from gptj_predictor.server import event_stream
event_stream.KEEP_ALIVE_SECONDS = float(os.environ["KEEP_ALIVE_SECONDS"])
from gptj_predictor.__main__ import main
main()
"""

PROMPT = "The secret to a happy life is"
#: New tokens of a stream whose first byte is timed.
FEW_TOKENS = 4
#: Tokens of the text that has the only place, where others wait; each word is one.
CONTEXT, WORD = 2048, " the"
#: Keep-alives that every waiting stream has got when the memory is read.
KEEP_ALIVES = 2
KEEP_ALIVE = b": waiting\n\n"


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="snapshot folder; the bundled demo if not given")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--requests", type=int, default=60, help="whose first byte is timed")
    parser.add_argument("--streams", type=int, default=64, help="at once, for the throughput")
    parser.add_argument("--tokens", type=int, default=200, help="new ones of each of these")
    parser.add_argument("--rounds", type=int, default=2, help="of these, streamed and not")
    parser.add_argument("--waiting", type=int, default=1000, help="streams in the queue")
    parser.add_argument("--keep-alive", type=float, help="seconds; the server's own if not given")
    arguments = parser.parse_args()
    model = ["--model", arguments.model] if arguments.model else []
    for case in arguments.cases:
        CASES[case](model, arguments)


def body(tokens: int, *, stream: bool, prompt: str = PROMPT, **parameters: Any) -> bytes:
    """A request for exactly so many new tokens."""
    lengths = {"min_new_tokens": tokens, "max_new_tokens": tokens, "return_full_text": False}
    asked = {"instances": [prompt], "parameters": lengths | parameters, "stream": stream}
    return json.dumps(asked).encode()


def first_byte(model: list[str], arguments: argparse.Namespace) -> None:
    """Milliseconds from the engine's first token to the first piece, one stream after the other."""
    with tempfile.NamedTemporaryFile("r") as notes:
        with Server(*model, program=NOTING, FIRST_TOKENS=notes.name) as server:
            path = server.wait_until_ready()
            client = http.client.HTTPConnection(server.client.base_url.netloc.decode())
            seen = [first_piece(client, path, seed) for seed in range(arguments.requests + 1)]
        noted = [float(line) for line in notes]
    # The first request warms the server up.
    late = sorted((at - since) * 1e3 for at, since in zip(seen, noted, strict=True))[1:]
    tenths = statistics.quantiles(late, n=10) if len(late) > 1 else late * 9
    print(
        f"first piece after the engine's first token: median {statistics.median(late):.2f} ms, "
        f"nine of ten within {tenths[-1]:.2f} ms ({len(late)} streams)"
    )


def first_piece(client: http.client.HTTPConnection, path: str, seed: int) -> float:
    """When a stream's first piece is there, in seconds of ``time.monotonic``."""
    client.request("POST", f"{path}:predict", body(FEW_TOKENS, stream=True, seed=seed))
    with client.getresponse() as response:
        if response.status != http.client.OK or not response.readline().startswith(b"data: "):
            raise SystemExit(f"no stream: {response.status} {response.read().decode()[:300]}")
        at = time.monotonic()
        response.read()
    return at


def throughput(model: list[str], arguments: argparse.Namespace) -> None:
    """New tokens a second of many requests at once, streamed and not."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    with Server(*model) as server:
        path = server.wait_until_ready()
        predict(server.client, path, [PROMPT], FEW_TOKENS)
        for number in range(arguments.rounds):
            # Who is first changes, as a machine may get slower or faster.
            for stream in (False, True) if number % 2 == 0 else (True, False):
                seconds = asyncio.run(ask_at_once(server, path, arguments, stream=stream))
                rates[stream].append(arguments.streams * arguments.tokens / seconds)
                print(f"{'streamed' if stream else 'at once'}: {rates[stream][-1]:.1f} tokens/s")
    at_once, streamed = (statistics.median(rates[stream]) for stream in (False, True))
    print(
        f"{arguments.streams} of {arguments.tokens} tokens: streamed {streamed:.1f} tokens/s, not "
        f"streamed {at_once:.1f}, ratio {streamed / at_once:.3f}; all complete"
    )


async def ask_at_once(
    server: Server, path: str, arguments: argparse.Namespace, *, stream: bool
) -> float:
    """Seconds until all requests have their answers."""
    started = time.perf_counter()
    await asyncio.gather(
        *(
            answer(server, path, body(arguments.tokens, stream=stream, seed=seed), stream=stream)
            for seed in range(arguments.streams)
        )
    )
    return time.perf_counter() - started


async def answer(server: Server, path: str, content: bytes, *, stream: bool) -> None:
    """Read an answer to its end; most pieces are of one token.

    Raises:
        SystemExit: it is not complete.
    """
    reader, writer = await connect(server)
    writer.write(request(path, content))
    received = bytearray()
    while more := await reader.read(65536):
        received += more
    writer.close()
    pieces = received.count(b"data: ")
    tokens = json.loads(content)["parameters"]["max_new_tokens"]
    whole = received.startswith(b"HTTP/1.1 200 ") and b'"predictions"' in received
    if not whole or (stream and pieces < tokens / 2):
        raise SystemExit(f"no whole answer: {bytes(received[:200])!r}...{bytes(received[-200:])!r}")


async def connect(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection of its own."""
    url = server.client.base_url
    return await asyncio.open_connection(url.host, url.port)


def request(path: str, content: bytes) -> bytes:
    """A request whose answer ends with the connection."""
    head = f"POST {path}:predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def waiting(model: list[str], arguments: argparse.Namespace) -> None:
    """The server's memory with streams that wait, and without."""
    flags = ["--max_batch_size", 1, "--max_queued_requests", 2 * arguments.waiting]
    # Without kept prefixes the long text gets the pages that were used before.
    flags += ["--enable_prefix_caching", "false"]
    seconds = arguments.keep_alive
    program = None if seconds is None else KEEPING
    with Server(*model, *flags, program=program, KEEP_ALIVE_SECONDS=str(seconds)) as server:
        path = server.wait_until_ready()
        asyncio.run(wait_in_line(server, path, arguments.waiting))


async def wait_in_line(server: Server, path: str, count: int) -> None:
    """Print what the streams cost that wait."""
    pid = server.process.pid
    long_prompt = body(FEW_TOKENS, stream=True, prompt=WORD * (CONTEXT - FEW_TOKENS))
    await answer(server, path, long_prompt, stream=True)
    holder = body(CONTEXT - len(PROMPT), stream=True)
    first, _ = await open_stream(server, path, holder)
    await first.readuntil(b"data: ")
    before = memory_bytes(pid, "VmRSS")
    streams = [await open_stream(server, path, body(1, stream=True)) for _ in range(count)]
    await asyncio.gather(*(kept_alive(reader) for reader, _ in streams))
    grown = memory_bytes(pid, "VmRSS") - before
    print(
        f"{count} streams that wait, with {KEEP_ALIVES} keep-alives each: {grown / 1e6:.1f} MB "
        f"beside {before / 1e6:.0f} MB, {grown / count / 1e3:.1f} kB for each"
    )
    for _, writer in streams:
        writer.close()


async def open_stream(
    server: Server, path: str, content: bytes
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A stream from its first event or comment on.

    Raises:
        SystemExit: it is refused.
    """
    reader, writer = await connect(server)
    writer.write(request(path, content))
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise SystemExit(f"no stream: {head!r} {await reader.read(300)!r}")
    return reader, writer


async def kept_alive(reader: asyncio.StreamReader) -> None:
    """Wait for keep-alives."""
    for _ in range(KEEP_ALIVES):
        await reader.readuntil(KEEP_ALIVE)


CASES: dict[str, Callable[[list[str], argparse.Namespace], None]] = {
    "first-byte": first_byte,
    "throughput": throughput,
    "waiting": waiting,
}


if __name__ == "__main__":
    main()

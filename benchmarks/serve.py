"""Start the server on a snapshot and measure it through HTTP.

    python benchmarks/serve.py [--model FOLDER] [--tokens 64] [-- FLAGS OF gptj-predictor serve]

Prints: seconds from the process's start to its first answer and to ready, peak resident memory,
seconds per token, how long four prompts take together against the longest of them alone, and how
fast the health route answers meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx

NAME = "eleutherai-gpt-j-6b"
PROMPTS = [
    "Everytime I look to the sky, I always think",
    "Right now is the perfect time to",
    "The one thing I will never regret is",
    "The secret to a happy life is to",
]


def main() -> None:
    """Run the measurement that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="snapshot folder; the bundled demo if not given")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens per prompt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("flags", nargs="*", help="further flags of the server")
    arguments = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "gptj_predictor", "serve", "--enable_grpc", "false"]
    command += ["--http_port", str(port), *arguments.flags]
    if arguments.model:
        command += ["--model", arguments.model]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        asyncio.run(measure(f"http://127.0.0.1:{port}", process, started, arguments))
    finally:
        process.terminate()
        process.wait()


async def measure(
    url: str, process: subprocess.Popen[bytes], started: float, arguments: argparse.Namespace
) -> None:
    """Print the figures one by one."""
    async with httpx.AsyncClient(base_url=url, timeout=3600) as client:
        for path, what in (("/", "alive"), (f"/v1/models/{NAME}", "ready")):
            await answer_of(client, path, process)
            print(f"{what} after {time.perf_counter() - started:.1f} s")
        await generate(client, PROMPTS[:1], 1)
        print(f"first token after {time.perf_counter() - started:.1f} s from the start")
        alone: list[float] = []
        together: list[float] = []
        pauses: list[float] = []
        for _ in range(arguments.rounds):
            seconds = [await generate(client, [prompt], arguments.tokens) for prompt in PROMPTS]
            alone.append(max(seconds))
            watch = asyncio.create_task(watch_health(client, pauses))
            together.append(await generate(client, PROMPTS, arguments.tokens))
            watch.cancel()
        first, all_tokens = await generate(client, PROMPTS[:1], 1), statistics.median(alone)
        print(f"one prompt, one new token: {first:.3f} s")
        print(f"seconds per further token: {(all_tokens - first) / (arguments.tokens - 1):.4f}")
        print(
            f"{arguments.tokens} new tokens: longest of four alone {all_tokens:.2f} s, "
            f"four together {statistics.median(together):.2f} s, "
            f"ratio {statistics.median(together) / all_tokens:.2f}"
        )
        pauses.sort()
        print(
            f"health meanwhile, {len(pauses)} probes: median {pauses[len(pauses) // 2] * 1e3:.1f} "
            f"ms, 99 of 100 under {pauses[int(len(pauses) * 0.99)] * 1e3:.1f} ms, worst "
            f"{pauses[-1] * 1e3:.1f} ms"
        )
    peak, anonymous = (memory(process.pid, field) for field in ("VmHWM", "RssAnon"))
    print(f"resident memory: peak {peak:.2f} GB, anonymous at the end {anonymous:.2f} GB")


async def answer_of(client: httpx.AsyncClient, path: str, process: subprocess.Popen[bytes]) -> None:
    """Wait for a 200."""
    while process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if (await client.get(path)).status_code == httpx.codes.OK:
                return
        await asyncio.sleep(0.02)
    raise SystemExit("the server ended")


async def generate(client: httpx.AsyncClient, prompts: list[str], tokens: int) -> float:
    """Seconds for exactly ``tokens`` new tokens after each prompt."""
    parameters = {"min_new_tokens": tokens, "max_new_tokens": tokens}
    body = {"instances": prompts, "parameters": parameters}
    started = time.perf_counter()
    response = await client.post(f"/v1/models/{NAME}:predict", json=body)
    response.raise_for_status()
    return time.perf_counter() - started


async def watch_health(client: httpx.AsyncClient, pauses: list[float]) -> None:
    """Probe until cancelled."""
    while True:
        started = time.perf_counter()
        (await client.get("/v2/health/ready")).raise_for_status()
        pauses.append(time.perf_counter() - started)
        await asyncio.sleep(0.01)


def memory(process: int, field: str) -> float:
    """A line of the kernel's account of a process, in GB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e9


if __name__ == "__main__":
    main()

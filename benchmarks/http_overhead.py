"""What HTTP adds to the engine's time, response by response, with the demo.

    python benchmarks/http_overhead.py

Starts the server, asks it one request after the other, and takes from the time that the client
waited the ``predict_ms`` that the server logs for the same request: submit, generate, detokenize.
What is left are the connection, parsing, validation, tokenizing, logging and the answer's way back.
"""

from __future__ import annotations

import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from gptj_predictor.benchmark.targets import HttpTarget, Sampling
from gptj_predictor.benchmark.text import Prompts
from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.tokenizer import Tokenizer

PROMPT_TOKENS = 16
#: Batch, new tokens, requests.
CASES = ((1, 1, 100), (1, 112, 40), (1, 496, 14), (8, 112, 20))


def main() -> None:
    """Measure and print a line per case."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "gptj_predictor", "serve", "--enable_grpc", "false"]
    with tempfile.NamedTemporaryFile("r") as log, Path(log.name).open("w") as out:
        server = subprocess.Popen([*command, "--http_port", str(port)], stdout=out, stderr=out)
        try:
            url = f"http://127.0.0.1:{port}"
            wait(url)
            measure(url, Path(log.name))
        finally:
            server.terminate()
            server.wait()


def wait(url: str) -> None:
    """Until the model is ready."""
    while True:
        try:
            if httpx.get(f"{url}/v2/health/ready").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)


def measure(url: str, log: Path) -> None:
    """All cases."""
    tokenizer = Tokenizer(DEMO_SNAPSHOT)
    prompts = Prompts(tokenizer, PROMPT_TOKENS, 7)
    target = HttpTarget(url, tokenizer, Sampling.within(len(tokenizer)))
    for batch, tokens, requests in CASES:
        waited = []
        for number in range(requests):
            cut = [prompts.cut(batch, tokens, number, row) for row in range(batch)]
            waited.append(target.run(cut, tokens, number).seconds * 1000)
        time.sleep(0.5)  # for the log's last line
        inside = [float(ms) for ms in re.findall(r"\bpredict_ms: ([\d.]+)", log.read_text())]
        added = [one - other for one, other in zip(waited, inside[-requests:], strict=True)]
        print(
            f"{batch} x {tokens} new tokens: {statistics.median(waited):.1f} ms, of which outside "
            f"predict {statistics.median(added):.2f} ms (median of {requests}; {min(added):.2f} to "
            f"{max(added):.2f})"
        )
    target.close()


if __name__ == "__main__":
    main()

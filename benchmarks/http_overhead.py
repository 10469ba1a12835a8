"""What HTTP adds to the engine's time, response by response, with the demo.

    PYTHONPATH=. python benchmarks/http_overhead.py

Starts the server, asks it one request after the other, and takes from the time that the client
waited the ``predict_ms`` that the server logs for the same request: submit, generate, detokenize.
What is left are the connection, parsing, validation, tokenizing, logging and the answer's way back.
"""

from __future__ import annotations

import re
import statistics
import time

from tests.support.servers import RunningServer

from gptj_predictor.bench.targets import HttpTarget, Sampling
from gptj_predictor.bench.text import Prompts
from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.tokenizer import Tokenizer

PROMPT_TOKENS = 16
#: Batch, new tokens, requests.
CASES = ((1, 1, 100), (1, 112, 40), (1, 496, 14), (8, 112, 20))


def main() -> None:
    """Measure and print a line per case."""
    with RunningServer() as server:
        server.wait_until_ready()
        measure(server)


def measure(server: RunningServer) -> None:
    """All cases."""
    tokenizer = Tokenizer(DEMO_SNAPSHOT)
    prompts = Prompts(tokenizer, PROMPT_TOKENS, 7)
    target = HttpTarget(
        f"http://127.0.0.1:{server.port}", tokenizer, Sampling.within(len(tokenizer))
    )
    for batch, tokens, requests in CASES:
        waited = []
        for number in range(requests):
            cut = [prompts.cut(batch, tokens, number, row) for row in range(batch)]
            waited.append(target.run(cut, tokens, number).seconds * 1000)
        time.sleep(0.5)  # for the log's last line
        inside = [float(ms) for ms in re.findall(r"\bpredict_ms: ([\d.]+)", server.log)]
        added = [one - other for one, other in zip(waited, inside[-requests:], strict=True)]
        print(
            f"{batch} x {tokens} new tokens: {statistics.median(waited):.1f} ms, of which outside "
            f"predict {statistics.median(added):.2f} ms (median of {requests}; {min(added):.2f} to "
            f"{max(added):.2f})"
        )
    target.close()


if __name__ == "__main__":
    main()

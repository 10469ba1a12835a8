"""What does HTTP add to the engine's time, response by response?

    .venv/bin/python benchmarks/http_overhead.py

Starts the server with the demo, asks it one request after the other, and takes from the time that
the client waited the ``predict_ms`` that the server logs for the same request: submit, generate,
detokenize. What is left are the connection, parsing, validation, tokenizing, logging and the
response's way back.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time

from gptj_predictor.bench.text import Prompts
from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.tokenizer import Tokenizer
from serving import Server, predict

PROMPT_TOKENS = 16
#: Batch, new tokens, requests.
CASES = ((1, 1, 100), (1, 112, 40), (1, 496, 14), (8, 112, 20))
#: Seconds to wait for the last line of the log.
LOG_SECONDS = 10


def main() -> None:
    """Measure and print a line per case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, help="of each case; default: 14 to 100")
    arguments = parser.parse_args()
    prompts = Prompts(Tokenizer(DEMO_SNAPSHOT), PROMPT_TOKENS, 7)
    with Server("--model", DEMO_SNAPSHOT) as server:
        path = server.wait_until_ready()
        sent = 0
        for batch, new_tokens, default in CASES:
            requests = arguments.requests or default
            waited = []
            for number in range(requests):
                texts = [prompts.cut(batch, new_tokens, number, row).text for row in range(batch)]
                waited.append(predict(server.client, path, texts, new_tokens, seed=number)[1])
            sent += requests
            inside = logged_seconds(server, sent)[-requests:]
            added = [(one - other) * 1e3 for one, other in zip(waited, inside, strict=True)]
            print(
                f"{batch} x {new_tokens} new tokens: {statistics.median(waited) * 1e3:.1f} ms, of "
                f"which outside predict {statistics.median(added):.2f} ms (median of {requests}; "
                f"{min(added):.2f} to {max(added):.2f})"
            )


def logged_seconds(server: Server, count: int) -> list[float]:
    """The ``predict_ms`` of every request so far, in seconds.

    Raises:
        SystemExit: the log does not get so many lines.
    """
    deadline = time.monotonic() + LOG_SECONDS
    while time.monotonic() < deadline:
        found = re.findall(r"\bpredict_ms: ([\d.]+)", server.log)
        if len(found) == count:
            return [float(value) / 1e3 for value in found]
        time.sleep(0.05)
    raise SystemExit(f"the server's log has {len(found)} requests instead of {count}")


if __name__ == "__main__":
    main()

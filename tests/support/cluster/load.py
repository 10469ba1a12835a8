"""Callers that ask again after each answer, and what became of every request.

The cluster suite runs this file in a pod of the predictor's image, so it imports the standard
library alone:

    python load.py --url http://gptj-predictor.models.svc --model NAME --until FILE

It prints ``answered`` at the first answer and ends with one line of JSON, see :class:`Summary`.
Every request has a connection of its own, as those of many users have: Services spread them.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

#: A longer answer is a failure.
TIMEOUT = 600.0


@dataclass(frozen=True)
class Asked:
    """One request. Times are seconds since the load began; an empty failure means an answer."""

    began: float
    ended: float
    failure: str = ""
    finish_reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Summary:
    """What became of all requests.

    Attributes:
        answered: How many had status 200.
        failed: How many had not, by what came instead.
        longest_gap: Seconds between two answers, at most.
        p99, longest: Seconds that an answer took, at the 99th percentile and at most.
        finish_reasons: How many texts ended so.
        seconds: How long all of it took.
    """

    answered: int
    failed: dict[str, int]
    longest_gap: float
    p99: float
    longest: float
    finish_reasons: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def summarize(requests: list[Asked]) -> Summary:
    """Count and compute."""
    answers = [one for one in requests if not one.failure]
    took = sorted(one.ended - one.began for one in answers)
    ends = sorted(one.ended for one in answers)
    gaps = [after - before for before, after in itertools.pairwise(ends)]
    return Summary(
        answered=len(answers),
        failed=dict(Counter(one.failure for one in requests if one.failure)),
        longest_gap=round(max(gaps, default=0.0), 3),
        p99=round(took[(len(took) * 99 - 1) // 100], 3) if took else 0.0,
        longest=round(max(took, default=0.0), 3),
        finish_reasons=dict(Counter(reason for one in answers for reason in one.finish_reasons)),
        seconds=round(max((one.ended for one in requests), default=0.0), 3),
    )


def predict(url: str, body: bytes) -> Any:
    """Send one request and return its predictions.

    Raises:
        OSError: no answer, or another status than 200.
        ValueError: the answer has no predictions.
        http.client.HTTPException: the answer broke off.
    """
    request = urllib.request.Request(url, body, {"Connection": "close"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        content = json.loads(answer.read())
    if not isinstance(content, dict) or not content.get("predictions"):
        raise ValueError(f"no predictions: {content}")
    return content["predictions"]


def failure(error: Exception) -> str:
    """What came instead of an answer, in few words that are the same for the same thing."""
    if isinstance(error, urllib.error.HTTPError):
        return f"{error.code} {error.read(300).decode(errors='replace').strip()}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return f"{type(reason).__name__}: {reason}"


class Load:
    """Runs the callers."""

    def __init__(self, url: str, parameters: dict[str, Any], instances: int = 1) -> None:
        """Prepare.

        Args:
            url: Where to send requests to.
            parameters: Of every request.
            instances: Prompts of a request.
        """
        self._url, self._parameters, self._instances = url, parameters, instances
        self._lock = threading.Lock()
        self._requests: list[Asked] = []
        self._answered = threading.Event()
        self._numbers = iter(range(10**9))
        self._start = time.monotonic()

    def run(self, callers: int, until: Callable[[], bool], requests: int = 10**9) -> Summary:
        """Ask until told to stop, or until each caller has sent so many; wait for every answer."""

        def call() -> None:
            for _ in range(requests):
                if until():
                    return
                self._ask()

        with ThreadPoolExecutor(callers) as pool:
            for one in [pool.submit(call) for _ in range(callers)]:
                one.result()  # a fault of this program must not look like a request fewer
        return summarize(self._requests)

    def _ask(self) -> None:
        with self._lock:
            number = next(self._numbers)
        # Prompts of their own, so that no prefix cache answers for the network.
        prompts = [f"{number}, {one}: the secret is to" for one in range(self._instances)]
        body = json.dumps({"instances": prompts, "parameters": self._parameters}).encode()
        began = time.monotonic() - self._start
        problem = ""
        reasons: tuple[str, ...] = ()
        try:
            reasons = finish_reasons(predict(self._url, body))
        except (OSError, ValueError, http.client.HTTPException) as error:
            problem = failure(error)
        with self._lock:
            self._requests.append(Asked(began, time.monotonic() - self._start, problem, reasons))
            if not problem and not self._answered.is_set():
                self._answered.set()
                print("answered", flush=True)
        if problem:
            time.sleep(0.1)  # a refusal takes no time; a real caller would wait too


def finish_reasons(predictions: list[Any]) -> tuple[str, ...]:
    """Why the texts ended, of those that say so (parameter ``details``).

    With several prompts, a prediction is a list of the prompt's texts.
    """
    texts = [text for one in predictions for text in (one if isinstance(one, list) else [one])]
    details = [text.get("details") or {} for text in texts]
    return tuple(str(one["finish_reason"]) for one in details if "finish_reason" in one)


def main() -> None:
    """Run the load that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True, help="the service, without a path")
    parser.add_argument("--model", required=True, help="the model's name in URLs")
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--instances", type=int, default=1, help="prompts of a request")
    parser.add_argument("--parameters", type=json.loads, default={"max_new_tokens": 16})
    parser.add_argument("--seconds", type=float, default=300, help="no request begins after them")
    parser.add_argument("--requests", type=int, default=10**9, help="of each caller")
    parser.add_argument("--until", type=Path, help="no request begins once this file is there")
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.seconds

    def over() -> bool:
        stop = arguments.until is not None and arguments.until.exists()
        return stop or time.monotonic() > end

    url = f"{arguments.url}/v1/models/{arguments.model}:predict"
    load = Load(url, arguments.parameters, arguments.instances)
    summary = load.run(arguments.callers, over, arguments.requests)
    print(json.dumps(asdict(summary)), flush=True)


if __name__ == "__main__":
    main()

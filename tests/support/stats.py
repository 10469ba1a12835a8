"""A server whose engine can be looked into from outside."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from gptj_predictor.cli import main
from gptj_predictor.server.predictor import GPTJPredictor

#: A server that writes its engine's figures again and again to the file that ``STATS`` names.
STATS_SERVER = "from tests.support.stats import serve_with_stats; serve_with_stats()"

WRITE_SECONDS = 0.02


def serve_with_stats() -> None:
    start = GPTJPredictor.start_engine

    async def start_and_watch(predictor: GPTJPredictor) -> None:
        await start(predictor)
        threading.Thread(target=_write_for_ever, args=(predictor,), daemon=True).start()

    GPTJPredictor.start_engine = start_and_watch  # type: ignore[assignment, method-assign]
    os._exit(main())


def _write_for_ever(predictor: GPTJPredictor) -> None:
    file = Path(os.environ["STATS"])
    new = file.with_suffix(".new")
    while True:
        stats = predictor.engine_stats
        assert stats is not None
        admission = predictor.requests.admission
        figures = dataclasses.asdict(stats) | {
            "queued_requests": admission.num_requests,
            "queued_tokens": admission.num_tokens,
            "at": time.monotonic(),
        }
        new.write_text(json.dumps(figures))
        new.replace(file)
        time.sleep(WRITE_SECONDS)


def read_stats(file: Path) -> dict[str, Any]:
    """What was written last: ``EngineStats``, and what waits in the server's queue."""
    stats: dict[str, Any] = json.loads(file.read_text())
    return stats


def is_idle(stats: dict[str, Any]) -> bool:
    """Whether nothing waits, runs or holds pages."""
    names = ("num_waiting", "num_running", "used_pages", "queued_requests", "queued_tokens")
    return not any(stats[name] for name in names)

"""``gptj-predictor benchmark``: measures what is missing, and keeps it when a signal comes."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from gptj_predictor.bench.commands import write_all
from gptj_predictor.bench.errors import BenchmarkError, PlanError
from gptj_predictor.bench.results import Results, difference
from gptj_predictor.bench.subject import Subject, in_process, over_http
from gptj_predictor.bench.sweep import Sweep, run_sweep
from gptj_predictor.common.progress import say
from gptj_predictor.settings import BenchmarkSettings, ServerSettings

#: Two signals within this time count as one.
SAME_SIGNAL_SECONDS = 1.0


class Interrupted(BaseException):
    """A signal asked the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_benchmark(
    plan: BenchmarkSettings, settings: ServerSettings, folder: Path, earlier: Results | None
) -> None:
    """Measure the cells that are missing, then write the report and print its table.

    Args:
        plan: What is to be measured.
        settings: Of the engine; not used over HTTP.
        folder: The snapshot.
        earlier: Results of a run that is resumed.

    Raises:
        PlanError: the plan is impossible, or differs from that of the earlier results.
        BenchmarkError: the run could not go on, or a cell failed, but not for memory.
        SystemExit: a signal ended it; the exit code is 128 + the signal's number.
    """
    with _signals():
        try:
            if plan.url is None:
                subject = in_process(plan, settings, folder)
            else:
                subject = over_http(plan, plan.url, folder)
            _measure(subject, plan, earlier)
        except Interrupted as end:
            raise SystemExit(128 + end.number) from None


def _measure(subject: Subject, plan: BenchmarkSettings, earlier: Results | None) -> None:
    results = subject.results if earlier is None else _resume(earlier, subject.results)
    try:
        plan.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlanError(f"--output {plan.output} cannot be made: {error.strerror}") from error

    def keep(latest: Results) -> None:
        nonlocal results
        results = latest
        results.write(plan.output)

    try:
        if results.missing:
            target, run = subject.start(results.run)
            results = results.model_copy(update={"run": run})
            with contextlib.closing(target):
                run_sweep(Sweep(target, subject.prompts, results), results, keep)
    except (BenchmarkError, Interrupted):
        if results.cells:
            say("stopped early: what was measured is kept, and --resume goes on")
            write_all(results, plan.reference, plan.output)
        raise
    write_all(results, plan.reference, plan.output)
    failed = [cell for cell in results.cells if cell.status == "failed"]
    if failed:
        raise BenchmarkError(
            f"{len(failed)} cells failed, the first with: {failed[0].reason}; --resume tries again"
        )


def _resume(earlier: Results, now: Results) -> Results:
    unlike = difference(earlier, now)
    if unlike is not None:
        raise PlanError(f"--resume: what is there was measured differently: {unlike}")
    if not earlier.missing:
        return earlier
    resumed = [*earlier.run.resumed, now.run.started]
    return earlier.model_copy(update={"run": earlier.run.model_copy(update={"resumed": resumed})})


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """The first SIGINT or SIGTERM raises :class:`Interrupted`; a later one ends the process."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    first: float | None = None

    def stop(number: int, _: object) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
            raise Interrupted(number)
        # Some programs send a signal twice, to the process and to its group: ``timeout`` does.
        if time.monotonic() - first > SAME_SIGNAL_SECONDS:
            os._exit(128 + number)

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""``gptj-predictor benchmark``: from settings to measured cells, and what ends that early."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from gptj_predictor.bench import machine
from gptj_predictor.bench.commands import write_all
from gptj_predictor.bench.errors import BenchmarkError, PlanError
from gptj_predictor.bench.results import Results, Run, Settings, difference
from gptj_predictor.bench.sweep import Sweep, run_sweep
from gptj_predictor.bench.targets import EngineTarget, HttpTarget, Sampling, Target
from gptj_predictor.bench.text import Prompts
from gptj_predictor.common.dtypes import dtype_name
from gptj_predictor.common.progress import say
from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.launch import LaunchPlan
from gptj_predictor.settings import BenchmarkSettings, ServerSettings
from gptj_predictor.snapshot.folder import SnapshotFolder
from gptj_predictor.tokenizer import Tokenizer

#: Settings of the server that can change a figure.
ENGINE_SETTINGS = {
    "max_batch_size",
    "max_prefill_tokens",
    "page_size",
    "kv_cache_share",
    "kv_cache_gib",
    "enable_prefix_caching",
    "cuda_graphs",
}

#: Signals that come closer together are one.
SAME_SIGNAL_SECONDS = 1.0


class Interrupted(BaseException):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_benchmark(
    plan: BenchmarkSettings, settings: ServerSettings, folder: Path, earlier: Results | None
) -> None:
    """Measure what is missing, and write and print the report of what there is.

    Args:
        plan: What is to be measured.
        settings: Of the engine; not used over HTTP.
        folder: The snapshot.
        earlier: Results to go on with.

    Raises:
        PlanError: it makes no sense, or not with these earlier results.
        BenchmarkError: it could not go on, or a cell failed for another reason than memory.
        SystemExit: a signal ended it, with 128 + its number.
    """
    with _signals():
        try:
            if plan.url is None:
                subject = _in_process(plan, settings, folder)
            else:
                subject = _over_http(plan, plan.url, folder)
            _measure(subject, plan, earlier)
        except Interrupted as end:
            raise SystemExit(128 + end.number) from None


@dataclass(frozen=True)
class Subject:
    """What is to be measured.

    Attributes:
        results: Without cells.
        prompts: For all of them.
        start: Makes it ready, and may complete the description of the run.
    """

    results: Results
    prompts: Prompts
    start: Callable[[Run], tuple[Target, Run]]


def _in_process(plan: BenchmarkSettings, settings: ServerSettings, folder: Path) -> Subject:
    settings = settings.model_copy(
        update={"max_batch_size": max(settings.max_batch_size, plan.batch_size)}
    )
    launch = LaunchPlan.prepare(folder, settings)
    threads = launch.threads
    devices = launch.placement.devices
    run = _describe_run(launch.folder).model_copy(
        update={
            "precision": dtype_name(launch.dtype),
            "device": machine.describe(devices, threads),
        }
    )
    wanted = _describe_settings(plan, launch.folder)
    engine_settings = settings.model_dump(include=ENGINE_SETTINGS)

    def start(run: Run) -> tuple[Target, Run]:
        if run.bandwidth is None and len(devices) == 1:
            rate = machine.measure_bandwidth(devices[0], threads)
            run = run.model_copy(update={"bandwidth": rate})
        engine = machine.alone(launch.start_engine)
        run = run.model_copy(update={"kv_cache_tokens": engine.info().kv_cache_tokens})
        return EngineTarget(engine, _sampling(launch.folder)), run

    return Subject(
        Results(run=run, settings=wanted.model_copy(update={"engine": engine_settings})),
        Prompts(launch.tokenizer, plan.prompt_tokens, plan.seed),
        start,
    )


def _over_http(plan: BenchmarkSettings, url: str, folder: Path) -> Subject:
    snapshot, tokenizer = SnapshotFolder.open(folder), Tokenizer(folder)
    run = _describe_run(snapshot).model_copy(
        update={"path": "HTTP", "first_token": "one-token request"}
    )
    prompts = Prompts(tokenizer, plan.prompt_tokens, plan.seed)

    def start(run: Run) -> tuple[Target, Run]:
        target = HttpTarget(url, tokenizer, _sampling(snapshot))
        target.check_tokens([prompts.cut("check", row) for row in range(plan.batch_size)])
        return target, run

    return Subject(Results(run=run, settings=_describe_settings(plan, snapshot)), prompts, start)


def _describe_run(snapshot: SnapshotFolder) -> Run:
    manifest = snapshot.manifest
    model = "bundled demo" if snapshot.path == DEMO_SNAPSHOT else None
    return Run(
        path="in process",
        model=model if manifest is None else manifest.model_id,
        commit=None if manifest is None else manifest.commit,
        parameters=snapshot.parameters,
        first_token="event",  # noqa: S106 - not that kind of token
        versions=machine.versions(),
        started=machine.utc_now(),
    )


def _sampling(snapshot: SnapshotFolder) -> Sampling:
    return Sampling.within(snapshot.config.vocab_size)


def _describe_settings(plan: BenchmarkSettings, snapshot: SnapshotFolder) -> Settings:
    return Settings(
        batch_size=plan.batch_size,
        lengths=lengths(plan, snapshot.config.n_positions),
        prompt_tokens=plan.prompt_tokens,
        warmup_rounds=plan.warmup_rounds,
        rounds=plan.rounds,
        seed=plan.seed,
        sampling=asdict(_sampling(snapshot)),
    )


def lengths(plan: BenchmarkSettings, context: int) -> list[int]:
    """Every length that is measured.

    Raises:
        PlanError: there is none, or one that was asked for is impossible.
    """
    longest = plan.max_tokens
    if "max_tokens" not in plan.model_fields_set:
        longest = min(longest, context)
    if longest > context:
        raise PlanError(f"--max_tokens {longest}: the model's context is {context}")
    if plan.min_tokens > longest:
        raise PlanError(
            f"--min_tokens {plan.min_tokens} is above the longest response, {longest}; the "
            f"model's context is {context}"
        )
    if plan.min_tokens <= plan.prompt_tokens:
        raise PlanError(
            f"--min_tokens {plan.min_tokens} counts the prompt too, which has "
            f"--prompt_tokens {plan.prompt_tokens}"
        )
    return list(range(plan.min_tokens, longest + 1, plan.step))


def _measure(subject: Subject, plan: BenchmarkSettings, earlier: Results | None) -> None:
    results = subject.results if earlier is None else _go_on(earlier, subject.results)
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


def _go_on(earlier: Results, now: Results) -> Results:
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
        # Some send one signal twice, to the process and to its group (timeout, for one).
        if time.monotonic() - first > SAME_SIGNAL_SECONDS:
            os._exit(128 + number)

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

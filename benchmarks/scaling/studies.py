"""The questions that the simulation is asked, one function each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from scaling.cluster import Outcome, Scenario, simulate
from scaling.policies import Keda, Knative
from scaling.service import ServiceTimes
from scaling.workload import Lengths, Traffic

STARTS = (60.0, 180.0, 300.0)
#: Targets that are tried, as shares of a full batch.
SHARES = (0.06, 0.12, 0.16, 0.235, 0.35, 0.47)
#: By how much a replica's load must be able to rise above its target: twofold and a margin.
HEADROOM = 2.15
#: Replicas that may be started: more than any setting needs, so that too many show.
MAX_REPLICAS = 24
DELAY = 300.0
#: A first token within this many seconds is in time.
WANTED = 1.0


@dataclass(frozen=True)
class Row:
    """One simulation's figures; seconds unless the name says otherwise.

    Attributes:
        study: Which study it belongs to.
        label: The setting in words.
        x: The setting as a number.
        start_seconds: Of a replica.
        ttft: Percentiles of the time to first token: 50, 95, 99.
        tpot_p95: 95th percentile of the time per output token.
        in_time: Share of requests whose first token came within ``WANTED``.
        failed: Share of requests that were refused or expired.
        gpu_hours_per_1000: For a thousand served requests.
        mean_replicas: GPU-hours by hours: how many started, served or drained on average.
        max_replicas: The most at once.
        wall_seconds: That the simulation took.
    """

    study: str
    label: str
    x: float
    start_seconds: float
    arrived: int
    ttft: tuple[float, float, float]
    tpot_p95: float
    in_time: float
    failed: float
    gpu_hours: float
    gpu_hours_per_1000: float
    mean_replicas: float
    max_replicas: int
    wall_seconds: float

    def as_json(self) -> dict[str, Any]:
        """For ``--output``."""
        return asdict(self)


@dataclass(frozen=True)
class Setup:
    """What all studies share.

    Attributes:
        service: Of every replica.
        lengths: Of prompts and texts.
        hours: That requests arrive.
        seed: Of arrivals, lengths and routing.
    """

    service: ServiceTimes
    lengths: Lengths
    hours: float
    seed: int

    @property
    def capacity(self) -> float:
        """Requests a second of one replica with a full batch."""
        prompt, new = self.lengths.prompt_tokens, self.lengths.new_tokens
        return self.service.throughput(self.service.max_batch, prompt, new)

    def headroom(self, sequences: int) -> float:
        """How many times a replica's load may rise from so many sequences to a full batch."""
        prompt, new = self.lengths.prompt_tokens, self.lengths.new_tokens
        return self.capacity / self.service.throughput(sequences, prompt, new)

    @property
    def targets(self) -> list[int]:
        """Requests at once for one replica, to be tried."""
        return sorted({max(1, round(share * self.service.max_batch)) for share in SHARES})

    @property
    def target(self) -> int:
        """The most requests at once that leave the wanted headroom; at least 1."""
        sizes = range(self.service.max_batch, 0, -1)
        return next((size for size in sizes if self.headroom(size) >= HEADROOM), 1)

    @property
    def steady(self) -> Traffic:
        """A Poisson process with the mean rate of ``bursty``."""
        return Traffic("Poisson", self.bursty.mean_rate)

    @property
    def bursty(self) -> Traffic:
        """Bursts of 2.5 times the load."""
        return self.bursts(2.5)

    def bursts(self, factor: float) -> Traffic:
        """Somewhat more than a replica can serve, and a multiple of it for 2 minutes in 10."""
        rate = 1.1 * self.capacity
        return Traffic("bursts", rate, factor * rate, 480.0, 120.0)

    @property
    def waking(self) -> Traffic:
        """A tenth of what a replica can serve, and twice what it can for 5 minutes in 30."""
        return Traffic("waking", 0.1 * self.capacity, 2.0 * self.capacity, 1500.0, 300.0)

    def scenario(self, policy: Knative | Keda, **changes: Any) -> Scenario:
        """The scenario that most studies change in one place."""
        base = Scenario(
            service=self.service,
            traffic=self.bursty,
            policy=policy,
            lengths=self.lengths,
            concurrency=self.service.max_batch,
            seconds=3600 * self.hours,
            initial=4,
        )
        return replace(base, **changes)

    def knative(self, target: float | None = None, **changes: Any) -> Knative:
        """Knative as recommended, but for what is changed."""
        recommended = {"min_replicas": 1, "max_replicas": MAX_REPLICAS, "scale_down_delay": DELAY}
        return Knative(target or self.target, **(recommended | changes))

    def keda(self, threshold: float | None = None, **changes: Any) -> Keda:
        """KEDA as recommended, but for what is changed."""
        recommended = {"min_replicas": 1, "max_replicas": MAX_REPLICAS}
        return Keda(threshold or self.target, **(recommended | changes))


def _row(study: str, label: str, x: float, scenario: Scenario, seed: int) -> Row:
    start = time.perf_counter()
    outcome: Outcome = simulate(scenario, seed)
    return Row(
        study=study,
        label=label,
        x=x,
        start_seconds=scenario.start_seconds,
        arrived=outcome.arrived,
        ttft=(outcome.ttft(50), outcome.ttft(95), outcome.ttft(99)),
        tpot_p95=outcome.tpot(95),
        in_time=outcome.within(WANTED),
        failed=outcome.failed,
        gpu_hours=outcome.gpu_hours,
        gpu_hours_per_1000=outcome.gpu_hours_per_1000,
        mean_replicas=outcome.gpu_hours / (scenario.seconds / 3600),
        max_replicas=outcome.max_replicas,
        wall_seconds=time.perf_counter() - start,
    )


def target(setup: Setup) -> Iterator[Row]:
    """How many requests may one replica have before another is wanted?"""
    for start in STARTS:
        for each in setup.targets:
            scenario = setup.scenario(setup.knative(each), start_seconds=start)
            yield _row("target", f"Knative, {each}", each, scenario, setup.seed)
        for each in setup.targets:
            scenario = setup.scenario(setup.keda(each), start_seconds=start)
            yield _row("target", f"KEDA, {each}", each, scenario, setup.seed)


def burst(setup: Setup) -> Iterator[Row]:
    """How large may a burst be, by the target?"""
    few, many = setup.targets[0], setup.targets[len(setup.targets) // 2]
    for each in sorted({few, setup.target, many}):
        for factor in (1.5, 2.5, 4.0):
            scenario = setup.scenario(setup.knative(each), traffic=setup.bursts(factor))
            yield _row("burst", f"target {each}, burst {factor}", factor, scenario, setup.seed)


def limit(setup: Setup) -> Iterator[Row]:
    """How many requests may one replica get at once (``containerConcurrency``)?"""
    full = setup.service.max_batch
    shares = {round(full * share) for share in (0.25, 0.5, 0.75)}
    for each in (*sorted(shares | {full}), 2 * full, 0):
        scenario = setup.scenario(
            setup.knative(min(2 * setup.target, each or full)), concurrency=each
        )
        yield _row("limit", f"at most {each or 'any number'}", each, scenario, setup.seed)


def delay(setup: Setup) -> Iterator[Row]:
    """How long must a replica not have been needed before it stops?"""
    for each in (0, 60, 180, 300, 600, 900):
        policy = setup.knative(scale_down_delay=float(each))
        scenario = setup.scenario(policy)
        yield _row("delay", f"Knative, {each} s", each, scenario, setup.seed)
    for each in (0, 60, 180, 300, 600, 900):
        scenario = setup.scenario(setup.keda(stabilization=float(each)))
        yield _row("delay", f"KEDA, {each} s", each, scenario, setup.seed)


def pool(setup: Setup) -> Iterator[Row]:
    """How many replicas are kept when little arrives?"""
    for start in STARTS:
        for each in (0, 1, 2, 3, 4):
            policy = setup.knative(min_replicas=each)
            scenario = setup.scenario(
                policy, traffic=setup.waking, start_seconds=start, initial=each, timeout=600.0
            )
            yield _row("pool", f"min {each}", each, scenario, setup.seed)


def retention(setup: Setup) -> Iterator[Row]:
    """How long does the last replica stay, for how many requests that find none?

    Single requests arrive at random, for 28 times as long as in the other studies.
    """
    for each_hour in (2, 6, 20):
        for minutes in (0, 5, 10, 15, 30, 60):
            policy = setup.knative(
                min_replicas=0, max_replicas=1, retention=60.0 * minutes, scale_down_delay=0.0
            )
            scenario = setup.scenario(
                policy,
                traffic=Traffic("sparse", each_hour / 3600),
                seconds=28 * 3600 * setup.hours,
                initial=0,
                timeout=600.0,
            )
            label = f"{each_hour} an hour, {minutes} min"
            yield _row("retention", label, minutes, scenario, setup.seed)


def policy(setup: Setup) -> Iterator[Row]:
    """Knative or KEDA, on which metric, behind which router?"""
    cases: dict[str, tuple[Callable[[], Knative | Keda], dict[str, Any]]] = {
        "Knative's defaults": (partial(setup.knative, scale_down_delay=0.0), {}),
        "Knative, scale-down-delay 300 s": (setup.knative, {}),
        "KEDA on waiting and running requests": (setup.keda, {}),
        "the same, a router that knows the load": (setup.keda, {"choices": 2}),
        "KEDA on waiting requests, threshold 5": (partial(setup.keda, 5, measure="waiting"), {}),
    }
    for traffic in (setup.steady, setup.bursty):
        for number, (label, (make, changes)) in enumerate(cases.items()):
            scenario = setup.scenario(make(), traffic=traffic, **changes)
            yield _row("policy", f"{traffic.name}: {label}", number, scenario, setup.seed)


def scale(setup: Setup) -> Iterator[Row]:
    """Does it go on with thousands of replicas? From 1,000, a minute's start, for 4 minutes."""
    traffic = Traffic("Poisson", 1500 * setup.capacity)
    changes = {"traffic": traffic, "start_seconds": 60.0, "seconds": 120 * setup.hours}
    for make in (
        partial(setup.knative, max_replicas=10_000),
        partial(setup.keda, max_replicas=10_000),
    ):
        scenario = setup.scenario(make(), initial=1000, **changes)
        yield _row("scale", type(scenario.policy).__name__, 0, scenario, setup.seed)


STUDIES: dict[str, Callable[[Setup], Iterator[Row]]] = {
    one.__name__: one for one in (target, burst, limit, delay, pool, retention, policy, scale)
}
#: What runs unless others are named.
DEFAULT = [name for name in STUDIES if name != "scale"]

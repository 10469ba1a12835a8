"""What autoscalers decide: Knative's, and the HorizontalPodAutoscaler that KEDA steers.

Written after what the programs do: ``pkg/autoscaler/scaling/autoscaler.go`` of Knative Serving, and
``replica_calculator.go`` and ``horizontal.go`` of Kubernetes' podautoscaler. Defaults are theirs.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field


def knative_target(concurrency: float, target: float | None, utilization: float) -> float:
    """Requests at once for which Knative wants one replica; at least 1.

    Args:
        concurrency: ``containerConcurrency``; 0: no limit.
        target: The annotation ``target``; None: ``concurrency``, or 100 if that is 0.
        utilization: The share of it that is aimed at; Knative's default is 0.7.
    """
    total = concurrency or 100.0
    if target is not None:
        total = min(target, concurrency) if concurrency else target
    return max(1.0, total * utilization)


class _Maximum:
    """The maximum of what was recorded within a window of time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._values: deque[tuple[float, int]] = deque()

    def record(self, now: float, value: int) -> int:
        while self._values and self._values[0][0] <= now - self._seconds:
            self._values.popleft()
        while self._values and self._values[-1][1] <= value:
            self._values.pop()
        self._values.append((now, value))
        return self._values[0][1]


@dataclass
class Knative:
    """Knative's pod autoscaler on concurrency.

    Attributes:
        target: Requests for one replica, see ``knative_target``.
        min_replicas: The warm pool.
        max_replicas: The most that are started.
        retention: ``scale-to-zero-pod-retention-period`` in seconds.
        scale_down_delay: Seconds for which a replica must not have been needed.
        stable_window: Seconds over which concurrency is averaged.
        panic_window: Seconds of the average that starts panic mode.
        panic_threshold: How many times the ready replicas must be wanted for it.
        max_scale_up_rate: How many times the ready replicas are wanted at most.
        max_scale_down_rate: By how much the ready replicas are divided at most.
    """

    target: float
    min_replicas: int = 0
    max_replicas: int = 10**6
    retention: float = 0.0
    scale_down_delay: float = 0.0
    stable_window: float = 60.0
    panic_window: float = 6.0
    panic_threshold: float = 2.0
    max_scale_up_rate: float = 1000.0
    max_scale_down_rate: float = 2.0
    tick: float = 2.0
    _panic_since: float | None = field(default=None, init=False)
    _panic_replicas: int = field(default=0, init=False)
    _zero_since: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._delayed = _Maximum(self.scale_down_delay)

    def decide(self, now: float, ready: int, stable: float, panic: float) -> int:
        """Wanted replicas.

        Args:
            now: In seconds.
            ready: Replicas that are ready.
            stable: Mean of requests at once over the stable window, those that wait included.
            panic: The same over the panic window.
        """
        base = max(1, ready)
        low = math.floor(base / self.max_scale_down_rate)
        high = math.ceil(base * self.max_scale_up_rate)
        wanted = min(max(math.ceil(stable / self.target), low), high)
        burst = math.ceil(panic / self.target)
        if burst / base >= self.panic_threshold:
            self._panic_since = now
        elif self._panic_since is not None and now - self._panic_since > self.stable_window:
            self._panic_since, self._panic_replicas = None, 0
        if self._panic_since is not None:
            wanted = max(wanted, min(max(burst, low), high), self._panic_replicas)
            self._panic_replicas = wanted
        if self.scale_down_delay:
            wanted = self._delayed.record(now, wanted)
        wanted = self._keep_last(now, wanted)
        return min(max(wanted, self.min_replicas), self.max_replicas)

    def _keep_last(self, now: float, wanted: int) -> int:
        """The last replica stays for the retention after none was wanted."""
        if wanted > 0:
            self._zero_since = None
            return wanted
        if self._zero_since is None:
            self._zero_since = now
        return 1 if now - self._zero_since < self.retention else 0


@dataclass
class Keda:
    """A HorizontalPodAutoscaler on an external metric, as KEDA makes it.

    KEDA itself decides between none and one. Its metric comes from the replicas: without one it is
    0, so nothing wakes the service.

    Attributes:
        threshold: The metric for one replica (``AverageValue``).
        min_replicas: ``minReplicaCount``.
        max_replicas: ``maxReplicaCount``.
        measure: ``requests`` that wait or run, or only those that are ``waiting``.
        cooldown: Seconds without any until the last replica stops, if ``min_replicas`` is 0.
        polling: Seconds between KEDA's looks while there is no replica.
        tolerance: Relative distance from the threshold at which nothing changes.
        stabilization: Seconds: the largest wish of so long decides about fewer replicas.
        scrape: Seconds between two scrapes of Prometheus, by which the metric is late.
        tick: Seconds between two decisions.
    """

    threshold: float
    min_replicas: int = 1
    max_replicas: int = 10**6
    measure: str = "requests"
    cooldown: float = 300.0
    polling: float = 30.0
    tolerance: float = 0.1
    stabilization: float = 300.0
    scrape: float = 10.0
    tick: float = 15.0
    _last_use: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._wishes = _Maximum(self.stabilization)

    def decide(self, now: float, current: int, metric: float) -> int:
        """Wanted replicas.

        Args:
            now: In seconds.
            current: Replicas that are ready or start.
            metric: The sum over all ready replicas.
        """
        if metric > 0:
            self._last_use = now
        if current == 0:
            return max(self.min_replicas, 1 if metric > 0 else 0)
        if self.min_replicas == 0 and now - self._last_use >= self.cooldown:
            return 0
        wish = hpa_replicas(current, metric, self.threshold, self.tolerance)
        wish = min(max(wish, self.min_replicas, 1), self.max_replicas)
        stable = self._wishes.record(now, wish)
        wish = min(stable, current) if wish < current else wish
        # Both rules of the default for scaling up hold for a tick: twice as many, or four more.
        return min(wish, max(2 * current, current + 4))


def hpa_replicas(current: int, metric: float, threshold: float, tolerance: float = 0.1) -> int:
    """Kubernetes' formula: ceil(current * (metric per replica / threshold)).

    Within the tolerance nothing changes.
    """
    if abs(metric / (threshold * current) - 1) <= tolerance:
        return current
    return math.ceil(metric / threshold)

"""The cluster: replicas that start and stop, who gets a request, and the autoscaler's loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np
from simpy import Environment
from simpy.events import Event, Timeout

from scaling.policies import Keda, Knative
from scaling.replica import Replica, Request
from scaling.service import ServiceTimes
from scaling.workload import Floats, Lengths, Traffic

#: Requests that Knative's activator holds for a revision.
MAX_HELD = 10_000


@dataclass(frozen=True)
class Scenario:
    """What is simulated.

    Attributes:
        service: Of every replica.
        traffic: When requests arrive.
        lengths: How long they are.
        policy: The autoscaler. It is used for one simulation only.
        start_seconds: From the wish for a replica until it is ready.
        concurrency: ``containerConcurrency`` (Knative only); 0: no limit.
        choices: Replicas looked at to find the one with the fewest requests (KEDA only). 1: a
            Kubernetes Service, which chooses at random. 2: a router that knows the load.
        timeout: Seconds that a request may wait for its place in a batch.
        seconds: How long requests arrive.
        initial: Replicas that are ready at the start.
    """

    service: ServiceTimes
    traffic: Traffic
    policy: Knative | Keda
    lengths: Lengths = field(default_factory=Lengths)
    start_seconds: float = 180.0
    concurrency: int = 256
    choices: int = 1
    timeout: float = 300.0
    seconds: float = 7200.0
    initial: int = 0


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        arrived: Requests.
        refused: With status 429 or 503: a queue was full, or there was no replica.
        expired: Waited longer than the timeout.
        unfinished: Still waiting or running at the end.
        served: Requests with all their tokens.
        gpu_hours: Of replicas that start, serve or drain.
        max_replicas: The most at once.
    """

    arrived: int = 0
    refused: int = 0
    expired: int = 0
    unfinished: int = 0
    gpu_hours: float = 0.0
    max_replicas: int = 0
    served: list[Request] = field(default_factory=list)

    @property
    def first_token_seconds(self) -> Floats:
        """Time to first token of each served request."""
        return np.array([one.first_token - one.arrival for one in self.served])

    def ttft(self, percent: float) -> float:
        """A percentile of the time to first token of what was served, in seconds."""
        return float(np.percentile(self.first_token_seconds, percent)) if self.served else np.nan

    def tpot(self, percent: float) -> float:
        """A percentile of the time per output token of served texts, in seconds."""
        times = [
            (r.end - r.first_token) / (r.new_tokens - 1) for r in self.served if r.new_tokens > 1
        ]
        return float(np.percentile(times, percent)) if times else np.nan

    def within(self, seconds: float) -> float:
        """The share of all requests whose first token came in time; what was refused did not."""
        settled = len(self.served) + self.refused + self.expired
        return float(np.sum(self.first_token_seconds <= seconds)) / settled if settled else np.nan

    @property
    def failed(self) -> float:
        """The share of requests that were refused or expired."""
        return (self.refused + self.expired) / self.arrived if self.arrived else 0.0

    @property
    def gpu_hours_per_1000(self) -> float:
        """GPU-hours for a thousand served requests."""
        return 1000 * self.gpu_hours / len(self.served) if self.served else np.nan


class Cluster:
    """One simulation."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self._scenario = scenario
        self._random = np.random.default_rng(seed)
        self._environment = Environment()
        self._knative = isinstance(scenario.policy, Knative)
        self._ready: list[Replica] = []
        self._starting: deque[Event] = deque()
        self._draining: set[Replica] = set()
        self._held: deque[Request] = deque()  # at Knative's activator
        self._next = 0
        self._sent = 0  # requests at ready replicas
        self._in_flight = 0
        self._integral = 0.0  # of requests in flight, over time
        self._integral_until = 0.0
        self._gpu_until = 0.0
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Simulate, and return what came of it."""
        scenario, environment = self._scenario, self._environment
        for _ in range(max(scenario.initial, scenario.policy.min_replicas)):
            self._add()
        environment.process(self._arrive())
        policy = scenario.policy
        if isinstance(policy, Knative):
            environment.process(self._scale_by_concurrency(policy))
        else:
            environment.process(self._scale_by_metric(policy))
        environment.run(until=scenario.seconds)
        self._count_gpus()
        self.outcome.unfinished = self._in_flight
        return self.outcome

    # Requests.

    def _arrive(self) -> Generator[Event, None, None]:
        scenario, environment = self._scenario, self._environment
        times = scenario.traffic.arrivals(scenario.seconds, self._random)
        lengths = scenario.lengths.draw(len(times), self._random).tolist()
        prompt = scenario.lengths.prompt_tokens
        self._dice = self._random.random(scenario.choices * len(times)).tolist()
        for time, tokens in zip(times.tolist(), lengths, strict=True):
            yield Timeout(environment, max(time - environment.now, 0.0))
            self.outcome.arrived += 1
            self._change(+1)
            request = Request(environment.now, prompt, tokens)
            if self._knative:
                self._hold_or_send(request)
            else:
                self._send_at_random(request)

    def _hold_or_send(self, request: Request) -> None:
        """Knative: to the next replica with room, in turn; without one the activator keeps it."""
        self._drop_expired()
        limit = self._scenario.concurrency or float("inf")
        if self._held or not self._ready or self._sent >= limit * len(self._ready):
            if len(self._held) >= MAX_HELD:
                self.outcome.refused += 1
                self._change(-1)
            else:
                self._held.append(request)
            return
        while True:
            self._next = (self._next + 1) % len(self._ready)
            if self._ready[self._next].in_flight < limit:
                self._send(self._ready[self._next], request)
                return

    def _send_at_random(self, request: Request) -> None:
        """A Service: one replica by chance, whatever its load; or the best of several."""
        if not self._ready:
            self.outcome.refused += 1
            self._change(-1)
            return
        number = len(self._ready)
        picked = [
            self._ready[int(self._dice.pop() * number)] for _ in range(self._scenario.choices)
        ]
        self._send(min(picked, key=lambda one: one.in_flight), request)

    def _send(self, replica: Replica, request: Request) -> None:
        self._sent += 1
        if not replica.offer(request):
            self._sent -= 1
            self.outcome.refused += 1
            self._change(-1)

    def _drop_expired(self) -> None:
        oldest = self._environment.now - self._scenario.timeout
        while self._held and self._held[0].arrival < oldest:
            self._held.popleft()
            self.outcome.expired += 1
            self._change(-1)

    def _on_end(self, replica: Replica, request: Request) -> None:
        self.outcome.served.append(request)
        self._leave(replica)

    def _on_expiry(self, replica: Replica, _: Request) -> None:
        self.outcome.expired += 1
        self._leave(replica)

    def _leave(self, replica: Replica) -> None:
        self._change(-1)
        if replica.position >= 0:
            self._sent -= 1
            self._fill(replica)
        elif replica.in_flight == 0:
            self._count_gpus()
            self._draining.discard(replica)

    def _fill(self, replica: Replica) -> None:
        """Give a replica with room what the activator holds."""
        self._drop_expired()
        limit = self._scenario.concurrency or float("inf")
        while self._held and replica.in_flight < limit:
            self._send(replica, self._held.popleft())

    def _change(self, by: int) -> None:
        """Count a request in or out."""
        self._count_requests()
        self._in_flight += by

    def _count_requests(self) -> None:
        now = self._environment.now
        self._integral += self._in_flight * (now - self._integral_until)
        self._integral_until = now

    # Replicas.

    def _count_gpus(self) -> None:
        now = self._environment.now
        number = len(self._ready) + len(self._starting) + len(self._draining)
        self.outcome.gpu_hours += number * (now - self._gpu_until) / 3600
        self.outcome.max_replicas = max(self.outcome.max_replicas, number)
        self._gpu_until = now

    def _add(self) -> None:
        """A replica that is ready."""
        scenario = self._scenario
        replica = Replica(
            self._environment,
            scenario.service,
            ended=self._on_end,
            expired=self._on_expiry,
            timeout=scenario.timeout,
        )
        replica.position = len(self._ready)
        self._ready.append(replica)
        self._fill(replica)

    def _scale_to(self, wanted: int) -> None:
        """Start replicas, or stop some: first those that still start, then the newest."""
        self._count_gpus()
        while len(self._ready) + len(self._starting) < wanted:
            started = Timeout(self._environment, self._scenario.start_seconds)
            started.callbacks.append(self._on_start)
            self._starting.append(started)
        while len(self._ready) + len(self._starting) > wanted:
            if self._starting:
                self._starting.pop()
                continue
            replica = self._ready.pop()
            replica.position = -1
            self._sent -= replica.in_flight
            if replica.in_flight:
                self._draining.add(replica)
        self._next = 0 if self._next >= len(self._ready) else self._next
        self._count_gpus()

    def _on_start(self, event: Event) -> None:
        if self._starting and event is self._starting[0]:  # they end in the order of their starts
            self._count_gpus()
            self._starting.popleft()
            self._add()

    # The autoscaler.

    def _scale_by_concurrency(self, policy: Knative) -> Generator[Event, None, None]:
        long = round(policy.stable_window / policy.tick)
        short = round(policy.panic_window / policy.tick)
        integrals = deque([0.0], maxlen=long + 1)
        while True:
            yield Timeout(self._environment, policy.tick)
            self._drop_expired()
            self._count_requests()
            integrals.append(self._integral)
            means = []
            for ticks in (long, short):
                seen = min(ticks, len(integrals) - 1)
                means.append((integrals[-1] - integrals[-1 - seen]) / (seen * policy.tick))
            now = self._environment.now
            self._scale_to(policy.decide(now, len(self._ready), *means))

    def _scale_by_metric(self, policy: Keda) -> Generator[Event, None, None]:
        metric, scraped = 0.0, 0.0
        environment = self._environment
        while True:
            current = len(self._ready) + len(self._starting)
            pause = policy.tick if current else policy.polling
            decision = environment.now + pause
            while scraped + policy.scrape <= decision:
                yield Timeout(environment, scraped + policy.scrape - environment.now)
                scraped = environment.now
                metric = float(sum(self._metric(one, policy.measure) for one in self._ready))
            yield Timeout(environment, decision - environment.now)
            current = len(self._ready) + len(self._starting)
            self._scale_to(policy.decide(environment.now, current, metric))

    @staticmethod
    def _metric(replica: Replica, measure: str) -> int:
        return replica.in_flight if measure == "requests" else replica.num_waiting


def simulate(scenario: Scenario, seed: int) -> Outcome:
    """Simulate a scenario."""
    return Cluster(scenario, seed).run()

"""The simulation of autoscaling, against results that are known in closed form."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.charts import example_values, render
from tests.support.servers import environment

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from scaling.cluster import Outcome, Scenario, simulate  # noqa: E402
from scaling.policies import Keda, Knative, hpa_replicas, knative_target  # noqa: E402
from scaling.service import CARDS, ServiceTimes, computed, measured  # noqa: E402
from scaling.studies import Setup  # noqa: E402
from scaling.workload import Lengths, Traffic  # noqa: E402

#: Ten steps after the first token, which takes no time: 1 s for a text alone.
ONE_SECOND = Lengths(0, 11, constant=True)
ALWAYS_ONE = {"min_replicas": 1, "max_replicas": 1}
ENDLESS = 1e9


def steps(*milliseconds: float, prefill: float = 0.0) -> ServiceTimes:
    return ServiceTimes("made up", (0.0, *(each / 1000 for each in milliseconds)), prefill)


def one_replica(
    service: ServiceTimes, rate: float, seconds: float, lengths: Lengths = ONE_SECOND, seed: int = 1
) -> Outcome:
    """One replica that runs from the start, with a queue that loses nobody."""
    scenario = Scenario(
        service,
        Traffic("Poisson", rate),
        Knative(ENDLESS, **ALWAYS_ONE),
        lengths,
        concurrency=service.max_batch,
        timeout=ENDLESS,
        seconds=seconds,
    )
    return simulate(scenario, seed)


def sojourn(outcome: Outcome) -> float:
    return float(np.mean([one.end - one.arrival for one in outcome.served]))


# Queues.


def test_one_sequence_with_constant_times_is_m_d_1() -> None:
    rate, service = 0.7, 1.0
    expected = rate * service**2 / (2 * (1 - rate * service))  # Pollaczek and Khinchine
    waits = one_replica(steps(100), rate, 40_000).first_token_seconds
    assert waits.mean() == pytest.approx(expected, rel=0.05)


def test_one_sequence_with_geometric_times_is_m_g_1() -> None:
    rate, tokens = 0.6, 10
    share = 1 / (tokens + 1)  # of the geometric distribution: steps are one fewer than tokens
    variance = (1 - share) / share**2 * 0.1**2
    expected = rate * (1.0 + variance) / (2 * (1 - rate))
    waits = one_replica(steps(100), rate, 60_000, Lengths(0, tokens + 1, 10**6)).first_token_seconds
    assert waits.mean() == pytest.approx(expected, rel=0.07)


def test_a_batch_that_gains_nothing_is_processor_sharing() -> None:
    """A step that takes as long as its sequences one by one: E[S] / (1 - load), of any lengths."""
    shared = steps(*(100 * size for size in range(1, 400)))
    for lengths in (ONE_SECOND, Lengths(0, 11, 10**6)):
        outcome = one_replica(shared, 0.5, 20_000, lengths)
        assert sojourn(outcome) == pytest.approx(1 / (1 - 0.5), rel=0.06)


def test_a_batch_that_costs_nothing_is_erlang_s_queue() -> None:
    """Steps of constant time are servers that do not share: M/M/c, with geometric lengths."""
    servers, load, tokens = 4, 3.0, 200
    service = steps(*([1000 / tokens] * servers))
    outcome = one_replica(service, load, 10_000, Lengths(0, tokens + 1, 10**6))
    tail = load**servers / math.factorial(servers) * servers / (servers - load)
    waits = tail / (sum(load**n / math.factorial(n) for n in range(servers)) + tail)
    seconds = outcome.first_token_seconds
    assert np.mean(seconds > 1e-9) == pytest.approx(waits, rel=0.05)
    assert seconds.mean() == pytest.approx(waits / (servers - load), rel=0.12)


def test_a_prompt_pauses_the_texts_that_run() -> None:
    """Two requests a quarter of a second apart: prompts of 0.4 s, then ten steps of 0.1 s each."""
    service = steps(100, 200, prefill=0.4)
    outcome = one_replica(service, 0.0, 10, Lengths(1, 11, constant=True))
    assert outcome.arrived == 0
    scenario = Scenario(
        service, Fixed("fixed", 0.0), Knative(ENDLESS, **ALWAYS_ONE), Lengths(1, 11, constant=True)
    )
    first, second = simulate(scenario, 0).served
    assert (first.first_token, second.first_token) == pytest.approx((0.4, 0.8))
    # From 0.8 s on both get a token in each 0.2 s.
    assert (first.end, second.end) == pytest.approx((2.8, 2.8))


class Fixed(Traffic):
    """Requests at two moments."""

    def arrivals(self, seconds: float, random: np.random.Generator) -> Any:
        return np.array([0.0, 0.25])


def test_replicas_of_a_service_are_queues_of_their_own() -> None:
    """A random choice splits a Poisson process: each of three replicas is M/D/1 at a third."""
    policy = Keda(ENDLESS, min_replicas=3, max_replicas=3)
    scenario = Scenario(
        steps(100), Traffic("Poisson", 2.1), policy, ONE_SECOND, seconds=12_000, timeout=ENDLESS
    )
    waits = simulate(scenario, 3).first_token_seconds
    assert waits.mean() == pytest.approx(0.7 / (2 * 0.3), rel=0.1)


# Nothing is lost.


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("policy", [Knative, Keda])
def test_every_request_is_served_refused_expired_or_unfinished(policy: Any, seed: int) -> None:
    """Overload, starts, stops and drains; a queue that is too short."""
    scenario = Scenario(
        steps(*range(20, 36), prefill=0.001),
        Traffic("bursts", 0.5, 60.0, 60.0, 30.0),
        policy(4.0, min_replicas=1, max_replicas=5),
        Lengths(16, 64),
        start_seconds=30.0,
        concurrency=16,
        timeout=20.0,
        seconds=900,
    )
    outcome = simulate(scenario, seed)
    lost = outcome.refused + outcome.expired
    assert lost > 0
    assert outcome.max_replicas > 1
    assert outcome.arrived == len(outcome.served) + lost + outcome.unfinished
    assert len({id(one) for one in outcome.served}) == len(outcome.served)
    for one in outcome.served:
        assert one.arrival <= one.first_token <= one.end


def test_the_same_seed_gives_the_same_figures() -> None:
    setup = Setup(computed(CARDS["a100"], 256, 256), Lengths(), 0.05, 7)
    runs = [simulate(setup.scenario(setup.knative()), seed) for seed in (7, 7, 8)]
    first, second, third = (list(run.first_token_seconds) for run in runs)
    assert first == second
    assert first != third


def test_a_full_queue_refuses() -> None:
    """One place in the batch, 512 in the queue: the 514th at once gets status 429."""
    policy = Keda(ENDLESS, min_replicas=1, max_replicas=1)
    traffic = Traffic("at once", 10_000.0)
    scenario = Scenario(steps(1000), traffic, policy, Lengths(0, 1000), seconds=0.1)
    outcome = simulate(scenario, 0)
    assert outcome.arrived > 600
    assert outcome.refused == outcome.arrived - 513


def test_knative_drops_what_waited_too_long_for_a_start() -> None:
    """A start that takes as long as the timeout loses the very request that it was for."""
    for start, expired in ((290.0, 0), (310.0, 1)):
        scenario = Scenario(
            steps(10), Fixed("two", 0.0), Knative(1.0), ONE_SECOND, start_seconds=start, seconds=900
        )
        outcome = simulate(scenario, 0)
        assert (outcome.expired > 0) == bool(expired)
        assert len(outcome.served) + outcome.expired == 2


def test_without_a_replica_a_service_refuses_and_never_wakes() -> None:
    policy = Keda(1.0, min_replicas=0)
    scenario = Scenario(steps(10), Traffic("Poisson", 1.0), policy, ONE_SECOND, seconds=600)
    outcome = simulate(scenario, 0)
    assert outcome.refused == outcome.arrived > 0
    assert outcome.gpu_hours == 0


@pytest.mark.parametrize("retention", [0.0, 60.0])
def test_the_share_of_cold_starts(retention: float) -> None:
    """A request finds no replica if none came for the retention and the window: exp(-rate * both).

    Starts are so short that hardly anybody comes during one.
    """
    rate, start, window = 1 / 60, 0.1, 60.0
    scenario = Scenario(
        steps(1),
        Traffic("sparse", rate),
        Knative(ENDLESS, max_replicas=1, retention=retention),
        Lengths(0, 2, constant=True),
        start_seconds=start,
        seconds=40 * 3600,
    )
    waits = simulate(scenario, 2).first_token_seconds
    # The average has a request for one tick more than the window.
    share = math.exp(-rate * (retention + window + 2))
    error = math.sqrt(share * (1 - share) / len(waits))
    assert np.mean(waits >= start) == pytest.approx(share, abs=3 * error)


# What the autoscalers decide.


def test_knative_s_target() -> None:
    """Its documentation: a limit of 10 at 70 % makes 7; without a limit the target is 100."""
    assert knative_target(10, None, 0.7) == pytest.approx(7)
    assert knative_target(0, None, 0.7) == pytest.approx(70)
    assert knative_target(0, 200, 1.0) == pytest.approx(200)
    assert knative_target(64, 100, 0.5) == pytest.approx(32)  # the smaller one counts
    assert knative_target(1, None, 0.7) == 1  # never below 1


def test_knative_wants_concurrency_by_target() -> None:
    """A hundred requests at once, a limit of 10 and 70 %: 100 / 7 makes 15 replicas."""
    assert Knative(knative_target(10, None, 0.7)).decide(0, 14, 100, 100) == 15


def test_knative_panics_at_twice_what_is_ready() -> None:
    policy = Knative(10)
    assert policy.decide(0, 4, 40, 79) == 8  # ceil(7.9) is twice 4
    assert policy.decide(2, 4, 40, 40) == 8  # no scaling down while it panics
    assert policy.decide(60, 8, 40, 40) == 8
    assert policy.decide(61, 8, 50, 40) == 5  # the stable window has passed
    assert Knative(10).decide(0, 4, 40, 69) == 4  # ceil(6.9) is not twice 4


def test_knative_halves_at_most() -> None:
    assert Knative(10).decide(0, 9, 10, 10) == 4


def test_knative_keeps_the_last_replica_for_the_retention() -> None:
    policy = Knative(10, retention=30)
    assert [policy.decide(now, 1, 0, 0) for now in (0, 28, 30)] == [1, 1, 0]
    policy = Knative(10, retention=30)
    assert [policy.decide(now, 1, load, load) for now, load in ((0, 0), (20, 5), (40, 0))] == [
        1
    ] * 3
    assert policy.decide(68, 1, 0, 0) == 1
    assert policy.decide(70, 1, 0, 0) == 0


def test_knative_delays_scaling_down() -> None:
    policy = Knative(10, scale_down_delay=100)
    assert [policy.decide(now, 4, load, load) for now, load in ((0, 40), (50, 20), (99, 20))] == [
        4
    ] * 3
    assert policy.decide(101, 4, 20, 20) == 2


def test_knative_s_bounds() -> None:
    assert Knative(1, max_replicas=6).decide(0, 3, 50, 50) == 6
    assert Knative(1, min_replicas=2).decide(0, 3, 0, 0) == 2


def test_the_formula_of_kubernetes() -> None:
    """Its documentation: 200m where 100m is wanted doubles, 50m halves, a tenth changes nothing."""
    assert hpa_replicas(4, 4 * 0.2, 0.1) == 8
    assert hpa_replicas(4, 4 * 0.05, 0.1) == 2
    assert hpa_replicas(10, 10 * 109, 100) == 10
    assert hpa_replicas(10, 10 * 91, 100) == 10
    assert hpa_replicas(10, 10 * 111, 100) == 12
    assert hpa_replicas(10, 10 * 89, 100) == 9


def test_kubernetes_doubles_or_adds_four() -> None:
    assert Keda(1).decide(0, 1, 100) == 5
    assert Keda(1).decide(0, 10, 100) == 20
    assert Keda(1, max_replicas=12).decide(0, 10, 100) == 12


def test_kubernetes_takes_the_largest_wish_of_five_minutes() -> None:
    policy = Keda(10)
    decided = [
        policy.decide(now, 8, load) for now, load in ((0, 80), (150, 30), (299, 20), (301, 20))
    ]
    assert decided == [8, 8, 8, 3]
    assert policy.decide(601, 3, 20) == 2


def test_keda_stops_the_last_one_after_the_cooldown() -> None:
    policy = Keda(10, min_replicas=0, stabilization=0)
    assert policy.decide(0, 1, 5) == 1
    assert policy.decide(299, 1, 0) == 1
    assert policy.decide(300, 1, 0) == 0
    assert policy.decide(330, 0, 0) == 0
    assert policy.decide(360, 0, 1) == 1


# Where the times come from.


def test_the_computed_limits_are_the_published_ones() -> None:
    """Tokens a second of one sequence without context: the weights, read once for each."""
    for card, rate in (("a40", 60), ("a100", 174), ("h200", 368)):
        assert 1 / computed(CARDS[card], 0, 1).step_seconds[1] == pytest.approx(rate, rel=0.01)


def test_a_batch_is_no_larger_than_the_kv_cache() -> None:
    assert computed(CARDS["a40"], 256, 256).max_batch == 137
    assert computed(CARDS["a40"], 1024, 1024).max_batch == 34
    assert computed(CARDS["h200"], 256, 256).max_batch == 256


def test_measured_times() -> None:
    """The committed result: a step of three takes (184.9 s - first token) / 367."""
    service = measured(ROOT / "benchmarks/results/xeon-2-cores/results.json")
    assert service.max_batch == 3
    assert service.step_seconds[3] == pytest.approx((184.92988 - 1.36146) / 367, rel=1e-5)
    assert service.prefill_seconds == pytest.approx(1.36146 / (3 * 16), rel=1e-5)
    assert service.source.startswith("measured on Intel")


# The script.


@pytest.mark.slow
def test_the_script(tmp_path: Path) -> None:
    picture, output = tmp_path / "picture.svg", tmp_path / "figures.json"
    flags = ["--hours", "0.005", "--picture", str(picture), "--output", str(output)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/autoscaling.py"), *flags],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "computed limits for GPT-J-6B on A40, not measured" in done.stdout
    rows = json.loads(output.read_text())["rows"]
    assert {row["study"] for row in rows} == {
        *("target", "burst", "limit", "delay", "pool", "retention", "policy")
    }
    assert done.stdout.count(" ms  ") >= len(rows)
    assert "<svg" in picture.read_text()


def test_the_presets_window_is_the_one_that_was_simulated() -> None:
    """And its only brake is the default of the HorizontalPodAutoscaler, which stops all at once."""
    scaled = render(example_values("keda-autoscaling")).one("ScaledObject")["spec"]
    assert scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == {
        "scaleDown": {
            "stabilizationWindowSeconds": Keda(threshold=1).stabilization,
            "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}],
        }
    }

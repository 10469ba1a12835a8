"""Which concurrency, target, retention and warm pool bring the first token in time?

    .venv/bin/python benchmarks/autoscaling.py --card a40 --picture docs/images/autoscaling.svg
    .venv/bin/python benchmarks/autoscaling.py --results results.json --studies target delay
    .venv/bin/python benchmarks/autoscaling.py --studies scale  # thousands of replicas

A simulation: no server runs and no cluster. Requests arrive at random, replicas of this server
decode them in batches, and Knative's or Kubernetes' autoscaler starts and stops replicas, each of
which takes minutes to start. How long a step takes comes from a ``results.json`` of
``gptj-predictor benchmark``, or from a card's computed limits, which nobody has measured.

The traffic goes with the replica: ``bursts`` is 1.1 times what a full batch of one replica serves,
and 2.75 times that for 2 minutes in 10, at random.

What is left out: a preempted text, prompts that begin alike, callers that try again, replicas that
fail, nodes that are missing. A prompt pauses the texts that run; the server computes both in one
step, so it is somewhat faster than this.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from gptj_predictor.bench.errors import PlanError
from scaling.picture import DRAWN, draw
from scaling.service import CARDS, ServiceTimes, computed, measured
from scaling.studies import DEFAULT, HEADROOM, STUDIES, Row, Setup
from scaling.workload import Lengths


def main() -> None:
    """Simulate what the command line asks for and print a table for each study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    times = parser.add_mutually_exclusive_group()
    times.add_argument("--card", choices=CARDS, default="a40", help="computed limits of this GPU")
    times.add_argument("--results", type=Path, help="results.json of gptj-predictor benchmark")
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=DEFAULT)
    parser.add_argument("--prompt-tokens", type=int, default=256, help="of every prompt")
    parser.add_argument("--new-tokens", type=int, default=256, help="mean of a text, geometric")
    parser.add_argument("--hours", type=float, default=2.0, help="that requests arrive")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file for all figures")
    parser.add_argument("--picture", type=Path, help="SVG; needs target, delay, pool and retention")
    arguments = parser.parse_args()
    if arguments.picture and (missing := set(DRAWN) - set(arguments.studies)):
        parser.error(f"--picture needs the studies {', '.join(sorted(missing))}, too")

    lengths = Lengths(arguments.prompt_tokens, arguments.new_tokens)
    try:
        service = service_times(arguments.results, arguments.card, lengths)
    except (PlanError, ValueError) as error:
        sys.exit(str(error))
    setup = Setup(service, lengths, arguments.hours, arguments.seed)
    describe(setup)
    rows: list[Row] = []
    for study in arguments.studies:
        print(f"\n{study}: {(STUDIES[study].__doc__ or '').splitlines()[0]}\n{HEADING}")
        for row in STUDIES[study](setup):
            rows.append(row)
            print(line(row), flush=True)
    if arguments.output:
        content = {"source": service.source, "rows": [row.as_json() for row in rows]}
        arguments.output.write_text(json.dumps(content, indent=1) + "\n")
    if arguments.picture:
        draw(rows, setup, arguments.picture)


def service_times(results: Path | None, card: str, lengths: Lengths) -> ServiceTimes:
    """Measured times if there are any, else a card's limits."""
    if results is not None:
        return measured(results)
    return computed(CARDS[card], lengths.prompt_tokens, lengths.new_tokens)


def describe(setup: Setup) -> None:
    """Print what a replica does alone."""
    service, lengths = setup.service, setup.lengths
    print(f"service times: {service.source}")
    print(f"prompts of {lengths.prompt_tokens} tokens, texts of {lengths.new_tokens} on average")
    print(f"the target below is {setup.target}: the most at once with a headroom of {HEADROOM}")
    print(f"{'in the batch':>12}  {'ms a token':>10}  {'requests/s':>10}  headroom")
    for size in sorted({1, *setup.targets, setup.target, service.max_batch}):
        rate = service.throughput(size, lengths.prompt_tokens, lengths.new_tokens)
        step = 1000 * service.step_seconds[size]
        print(f"{size:>12}  {step:>10.1f}  {rate:>10.3g}  {setup.headroom(size):>8.2f}")


HEADING = (
    f"{'':48} start   TTFT p50      p95      p99  in 1 s  failed  TPOT p95"
    "  GPU-h/1000  replicas: mean  max"
)


def line(row: Row) -> str:
    """A row of a table."""
    p50, p95, p99 = row.ttft
    return (
        f"{row.label:48} {row.start_seconds:>3.0f} s  {p50:>7.2f} s {p95:>6.2f} s {p99:>6.2f} s"
        f"  {row.in_time:>6.1%}  {row.failed:>6.1%}  {1000 * row.tpot_p95:>5.0f} ms"
        f"  {row.gpu_hours_per_1000:>10.3f}  {row.mean_replicas:>14.2f}  {row.max_replicas:>3}"
    )


if __name__ == "__main__":
    main()

"""What aiperf recorded at one rate, as one row of a table."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Of the latency within one rate, from which it counts as growing without bound.
GROWTH = 1.5
#: Full requests in a third of a rate, below which growth may be chance.
ENOUGH = 20

HEAD = (
    "| offered/s | sent | answered/s | tokens/s | first token, ms | per token, ms "
    "| latency, ms | growth | errors |\n" + "|---" * 9 + "|"
)
#: What the table's columns mean, by protocol.
STREAMED = (
    "First token (TTFT): as streamed. Per token (TPOT): (latency - first token) / (tokens - 1), "
    "each request's own."
)
NOTES = {
    "v1": STREAMED,
    "v1-unstreamed": "First token: latency of requests for one token, sent beside the load. Per "
    "token: (latency - median first token) / (new tokens - 1).",
    "openai": STREAMED,
}

Record = dict[str, Any]


@dataclass(frozen=True)
class Percentiles:
    """In milliseconds.

    ``"timeout"`` where at least that share of the requests was not answered in time, ``None`` where
    there are too few samples for one to lie beyond.
    """

    p50: float | str | None
    p95: float | str | None
    p99: float | str | None
    samples: int

    @classmethod
    def of(cls, samples: list[float]) -> Percentiles:
        """By nearest rank, since a timeout is an infinite sample."""
        ordered, count = sorted(samples), len(samples)

        def percentile(percent: int) -> float | str | None:
            if count * (100 - percent) < 100:
                return None
            found = ordered[math.ceil(count * percent / 100) - 1]
            return "timeout" if math.isinf(found) else round(found, 3)

        return cls(percentile(50), percentile(95), percentile(99), count)

    def __str__(self) -> str:
        return " / ".join(number(value) for value in (self.p50, self.p95, self.p99))


def number(value: float | str | None) -> str:
    """For a cell: three figures, but whole numbers in full."""
    if value is None or isinstance(value, str):
        return value or "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class Row:
    """What came of one rate.

    Attributes:
        offered: Full requests per second, as asked for; ``None`` if a fixed number was in flight.
        sent: Full requests, in the end.
        answered: Full requests answered, per second until all had their answers or timeouts.
        tokens_per_second: New tokens of all answers, as the generator counts them.
        first_token: See :data:`NOTES`.
        per_token: See :data:`NOTES`.
        latency: Of full requests.
        growth: Median latency of the last third of the requests over that of the first.
        errors: Of all requests, also those for one token, by kind.
        late_ms: The 99th percentile of how late the generator itself sent its requests.
    """

    offered: float | None
    sent: int
    answered: float
    tokens_per_second: float
    first_token: Percentiles
    per_token: Percentiles
    latency: Percentiles
    growth: float | None
    errors: dict[str, int]
    late_ms: float | None

    @property
    def too_much(self) -> bool:
        """Whether a higher rate can only be worse."""
        return bool(self.errors) or (self.growth or 0) > GROWTH

    def __str__(self) -> str:
        cells = [number(self.offered) if self.offered else "closed", self.sent]
        cells += [number(self.answered), f"{self.tokens_per_second:.0f}", self.first_token]
        cells += [self.per_token, self.latency, number(self.growth)]
        cells.append(", ".join(f"{many} {kind}" for kind, many in self.errors.items()) or "none")
        return f"| {' | '.join(map(str, cells))} |"


def read(folder: Path, offered: float | None, tokens: int) -> Row:
    """A row of aiperf's files: a line for each request, the payloads, the summary."""
    lines = (folder / "profile_export.jsonl").read_text().splitlines()
    records: list[Record] = [json.loads(line) for line in lines]
    records = [record for record in records if record["metadata"]["phase_kind"] == "profiling"]
    records.sort(key=lambda record: record["metadata"]["credit_issued_ns"])
    probes = probes_of(json.loads((folder / "inputs.json").read_text())["data"])
    full = [record for record in records if record["metadata"]["conversation_id"] not in probes]
    latency = milliseconds(full, "request_latency")
    if probes:
        beside = [record for record in records if record["metadata"]["conversation_id"] in probes]
        first = milliseconds(beside, "request_latency")
        per_token = pauses(latency, first, tokens)
    else:
        first = milliseconds(full, "time_to_first_token")
        per_token = milliseconds(full, "inter_token_latency")
    file = folder / "profile_export_aiperf.json"  # not there if nothing was answered
    summary = json.loads(file.read_text()) if file.exists() else {}
    full_share = answers(full) / max(answers(records), 1)
    return Row(
        offered=offered,
        sent=len(full),
        answered=summary.get("request_throughput", {}).get("avg", 0.0) * full_share,
        tokens_per_second=summary.get("output_token_throughput", {}).get("avg", 0.0),
        first_token=Percentiles.of(first),
        per_token=Percentiles.of(per_token),
        latency=Percentiles.of(latency),
        growth=growth_of(latency),
        errors=dict(Counter(kind(record["error"]) for record in records if record.get("error"))),
        late_ms=summary.get("credit_to_start_latency", {}).get("p99"),
    )


def probes_of(sessions: list[Record]) -> set[str]:
    """The sessions whose V1 payload asks for one token."""
    return {
        session["session_id"]
        for session in sessions
        if session["payloads"][0].get("parameters", {}).get("max_new_tokens") == 1
    }


def milliseconds(records: list[Record], metric: str) -> list[float]:
    """In the order of sending. A timeout is infinite; other errors are left out."""
    found: list[float] = []
    for record in records:
        if error := record.get("error"):
            found += [math.inf] if kind(error) == "timeout" else []
        elif metric in record["metrics"]:
            found.append(record["metrics"][metric]["value"])
    return found


def pauses(latency: list[float], first: list[float], tokens: int) -> list[float]:
    """Milliseconds per token after the first, where only whole answers have been timed."""
    typical = statistics.median(first) if first else math.inf
    if math.isinf(typical):
        return []
    return [(one - typical) / (tokens - 1) for one in latency]


def growth_of(latency: list[float]) -> float | None:
    """By how much the latency grew while the rate was the same."""
    third = len(latency) // 3
    if third < ENOUGH:
        return None
    early, late = statistics.median(latency[:third]), statistics.median(latency[-third:])
    return None if math.isinf(late) else late / early


def answers(records: list[Record]) -> int:
    """How many were answered."""
    return sum(not record.get("error") for record in records)


def kind(error: Record) -> str:
    """A few words for the table."""
    if error["type"] == "TimeoutError":
        return "timeout"
    return " ".join(str(error[name]) for name in ("code", "type") if error.get(name))

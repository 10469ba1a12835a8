"""The load test's arithmetic, on files as aiperf 0.13 writes them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TIMEOUT = {"type": "TimeoutError", "message": "TimeoutError()"}
REFUSED = {"code": 429, "type": "Too Many Requests", "message": "full"}


@pytest.fixture(scope="module")
def results() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks/load/aiperf_records.py"
    spec = importlib.util.spec_from_file_location("aiperf_records", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["aiperf_records"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(number: int, session: str, outcome: dict[str, float] | dict[str, Any]) -> dict[str, Any]:
    failed = "type" in outcome
    metrics = {name: {"value": value, "unit": "ms"} for name, value in outcome.items()}
    return {
        "metadata": {
            "conversation_id": session,
            "credit_issued_ns": number,
            "phase_kind": "profiling",
        },
        "metrics": {} if failed else metrics,
        "error": outcome if failed else None,
    }


def write(folder: Path, records: list[dict[str, Any]], payloads: dict[str, Any]) -> None:
    """The three files; the summary's figures are the generator's own."""
    warmup = record(-1, "full", {"request_latency": 5000.0})
    warmup["metadata"]["phase_kind"] = "warmup"
    lines = [json.dumps(one) for one in [*reversed(records), warmup]]
    (folder / "profile_export.jsonl").write_text("\n".join(lines) + "\n")
    data = [{"session_id": name, "payloads": [body]} for name, body in payloads.items()]
    (folder / "inputs.json").write_text(json.dumps({"data": data}))
    if any(one["error"] is None for one in records):
        summary = {
            "request_throughput": {"avg": 8.0},
            "output_token_throughput": {"avg": 500.0},
            "credit_to_start_latency": {"p99": 3.0},
        }
        (folder / "profile_export_aiperf.json").write_text(json.dumps(summary))


V1 = {
    "full": {"parameters": {"min_new_tokens": 11, "max_new_tokens": 11}},
    "one": {"parameters": {"min_new_tokens": 1, "max_new_tokens": 1}},
}


def test_v1_takes_the_first_token_from_the_requests_for_one(
    results: ModuleType, tmp_path: Path
) -> None:
    full = [record(n, "full", {"request_latency": 110.0 + n}) for n in range(30)]
    one = [record(100 + n, "one", {"request_latency": 10.0}) for n in range(10)]
    write(tmp_path, full + one, V1)
    row = results.read(tmp_path, 6.0, 11)
    assert (row.sent, row.answered, row.tokens_per_second) == (30, 6.0, 500.0)
    assert row.first_token == results.Percentiles(10.0, None, None, 10)
    assert row.latency == results.Percentiles(124.0, 138.0, None, 30)
    assert row.per_token == results.Percentiles(11.4, 12.8, None, 30)
    assert row.growth is None
    assert not row.too_much
    assert str(row) == (
        "| 6 | 30 | 6 | 500 | 10 / - / - | 11.4 / 12.8 / - | 124 / 138 / - | - | none |"
    )


def test_a_timeout_is_longer_than_any_answer_and_other_errors_are_not_timed(
    results: ModuleType, tmp_path: Path
) -> None:
    full = [record(n, "full", {"request_latency": 110.0}) for n in range(18)]
    lost = [record(20 + n, "full", TIMEOUT) for n in range(2)]
    refused = [record(30 + n, "one", REFUSED) for n in range(3)]
    one = [record(40 + n, "one", {"request_latency": 10.0}) for n in range(2)]
    write(tmp_path, full + lost + refused + one, V1)
    row = results.read(tmp_path, 6.0, 11)
    assert row.latency == results.Percentiles(110.0, "timeout", None, 20)
    assert row.per_token == results.Percentiles(10.0, "timeout", None, 20)
    assert row.first_token.samples == 2
    assert row.errors == {"timeout": 2, "429 Too Many Requests": 3}
    assert row.answered == pytest.approx(8.0 * 18 / 20)
    assert row.too_much


def test_a_rate_without_an_answer_has_a_row_too(results: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, [record(n, "full", TIMEOUT) for n in range(100)], V1)
    row = results.read(tmp_path, None, 11)
    assert (row.sent, row.answered, row.tokens_per_second, row.growth) == (100, 0, 0, None)
    assert str(row).endswith("timeout / timeout / timeout | - | 100 timeout |")
    assert row.too_much


@pytest.mark.parametrize(("step", "growth"), [(1.0, 149.5 / 109.5), (10.0, 595 / 195)])
def test_latency_that_grows_is_too_much(
    results: ModuleType, tmp_path: Path, step: float, growth: float
) -> None:
    grows = [record(n, "full", {"request_latency": 100 + step * n}) for n in range(60)]
    write(tmp_path, grows, V1)
    row = results.read(tmp_path, 6.0, 11)
    assert row.growth == pytest.approx(growth)
    assert row.too_much == (growth > results.GROWTH)


def test_a_stream_has_its_own_first_token(results: ModuleType, tmp_path: Path) -> None:
    outcome = {"request_latency": 70.0, "time_to_first_token": 20.0, "inter_token_latency": 5.0}
    write(tmp_path, [record(n, "full", outcome) for n in range(4)], {"full": {"max_tokens": 11}})
    row = results.read(tmp_path, 6.0, 11)
    assert (row.first_token.p50, row.per_token.p50, row.latency.p50) == (20.0, 5.0, 70.0)
    assert row.answered == 8.0

"""The command for the day of the GPU, on a CPU and tiny."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.servers import environment

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from one_card import correctness  # noqa: E402
from one_card.goals import REFERENCE_BANDWIDTH, goals_of  # noqa: E402
from one_card.plan import DRY, FULL  # noqa: E402
from one_card.record import Record  # noqa: E402
from one_card.weights import RandomWeights  # noqa: E402

#: What a machine with torch, transformers, numpy and Triton need not have.
ABSENT = ["accelerate", "grpc", "kserve", "opentelemetry", "orjson", "psutil", "pydantic"]
ABSENT += ["fastapi", "starlette", "uvicorn", "xxhash", "annotated_types", "grpc_interceptor"]

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.process
def test_dry_run(tmp_path: Path) -> None:
    """All of it, where whatever else the project needs cannot be imported."""
    output = tmp_path / "gpu_day.json"
    code = (
        "import runpy, sys\n"
        "from importlib.machinery import PathFinder\n"
        "class FindsLess(PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] not in {ABSENT}:\n"
        "            return PathFinder.find_spec(name, path, target)\n"
        "sys.meta_path[sys.meta_path.index(PathFinder)] = FindsLess\n"
        "sys.path.insert(0, 'benchmarks')\n"
        f"sys.argv = ['gpu_day.py', '--device', 'cpu', '--dry-run', '--output', {str(output)!r}]\n"
        "runpy.run_path('benchmarks/gpu_day.py', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(output.read_text())
    assert results["failures"] == []
    figures = results["figures"]
    too_large = {"batch 256", "batch 512"}
    assert {goal.name for goal in goals_of(DRY)} - set(figures) == too_large
    assert all(
        figure["value"] > 0
        for name, figure in figures.items()
        if "compiled" not in name and "cost" not in name
    )
    for name in ("batch 3, top-k and top-p", "batch 2, 8/12", "kernels of a step, batch 3"):
        assert name in figures
    assert "24 greedy tokens are transformers' generate's" in done.stdout
    assert "2 requests were timed; 64 one by one are extrapolated" in done.stdout
    assert re.search(r"^batch 64 +[\d,]+ tok/s +>= .* times the goal$", done.stdout, re.MULTILINE)
    profile = results["details"]["profile of a step, batch 3"]
    assert any("linear" in kernel["name"] for kernel in profile)


def record() -> Record:
    return Record({}, goals_of(FULL), None, budget=1000)


def test_goals_scale() -> None:
    """On a card with half the bandwidth: half the tokens, twice the time, the same ratios."""
    by_name = {goal.name: goal for goal in goals_of(FULL)}
    half = REFERENCE_BANDWIDTH / 2
    assert by_name["batch 1, decoding"].on(half) == 165
    assert by_name["first token, 128 prompt tokens"].on(half) == 12
    assert by_name["batch 1 against generate"].on(half) == 8
    assert by_name["batch 256"].is_met(8500, half)
    assert not by_name["batch 256"].is_met(8499, half)
    assert by_name["first token, 2,047 prompt tokens"].is_met(80, half)
    assert not by_name["first token, 2,047 prompt tokens"].is_met(81, half)


def test_table_says_what_is_missed() -> None:
    results = record()
    results.bandwidth = REFERENCE_BANDWIDTH
    results.figure("batch 64", 12_000, "tok/s")
    results.figure("batch 256", 16_000, "tok/s")
    table = results.table()
    assert re.search(r"batch 64 +12,000 tok/s +>= 10,900 tok/s +met, 1.10 times", table)
    assert re.search(r"batch 256 +16,000 tok/s +>= 17,000 tok/s +missed, 0.94 times", table)
    assert re.search(r"batch 512 +- +>= 17,000 tok/s +not measured", table)


@pytest.mark.parametrize("check", ["fp32", "bfloat16"])
def test_wrong_tokens_are_noticed(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' weights are a little different from ours: both comparisons have to fail."""
    make = RandomWeights.transformers_model

    def make_another(self: RandomWeights, dtype: torch.dtype | None = None) -> Any:
        model = make(self, dtype)
        layer = model.transformer.h[1].attn.out_proj
        layer.weight = torch.nn.Parameter(layer.weight * 1.5, requires_grad=False)
        return model

    monkeypatch.setattr(RandomWeights, "transformers_model", make_another)
    comparison = correctness.Comparison.of(record(), DRY, CPU)
    if check == "fp32":
        comparison.compare_fp32()
    else:
        comparison.compare_16_bit(torch.bfloat16)
    assert any(check in failure for failure in comparison.record.failures)


def test_random_weights_are_read_in_place() -> None:
    """transformers' model has the network's memory where it is not packed."""
    weights = RandomWeights(DRY.small, torch.float32, CPU)
    model = weights.transformers_model()
    places = dict(model.named_parameters())
    q, k = (places[f"transformer.h.0.attn.{name}_proj.weight"] for name in "qk")
    assert q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()
    assert not any(buffer.is_meta for buffer in model.buffers())

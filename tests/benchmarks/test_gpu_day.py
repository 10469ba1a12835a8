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

from gptj_predictor.settings import ServerSettings
from tests.support.servers import environment

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_day  # noqa: E402
from one_card import correctness, engines  # noqa: E402
from one_card.goals import REFERENCE_BANDWIDTH, goals_of  # noqa: E402
from one_card.plan import DRY, FULL  # noqa: E402
from one_card.record import Record  # noqa: E402
from one_card.weights import RandomWeights, int8_network, step_bytes  # noqa: E402

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
    for name in (
        "int8 weights, largest error of a log-probability, ours, decode",
        "int8 weights, batch 1, share of the measured copy bandwidth",
        "int8 weights, batch 1, step against 16 bit",
        "int8 weights, batch 3, step against 16 bit",
    ):
        assert re.search(rf"^{name} +\d", done.stdout, re.MULTILINE)
        assert name in figures
    assert results["details"]["engine, int8 weights"]["config"]["max_batch_size"] == 3


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


@pytest.mark.parametrize("check", ["fp32", "bfloat16", "int8 weights"])
def test_wrong_tokens_are_noticed(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' weights are a little different from ours: both comparisons have to fail."""
    make = RandomWeights.transformers_model

    def make_another(self: RandomWeights, *arguments: Any) -> Any:
        model = make(self, *arguments)
        layer = model.transformer.h[1].attn.out_proj
        layer.weight = torch.nn.Parameter(layer.weight * 1.5, requires_grad=False)
        return model

    monkeypatch.setattr(RandomWeights, "transformers_model", make_another)
    comparison = correctness.Comparison.of(record(), DRY, CPU)
    if check == "fp32":
        comparison.compare_fp32()
    elif check == "bfloat16":
        comparison.compare_16_bit(torch.bfloat16)
    else:
        comparison.compare_int8(torch.bfloat16)
    assert any(check in failure for failure in comparison.record.failures)


def test_int8_weights_are_made_of_the_same_values() -> None:
    """And transformers' model has what they stand for."""
    weights = RandomWeights(DRY.small, torch.bfloat16, CPU)
    network = int8_network(DRY.small, torch.bfloat16, CPU)
    name = "layers.1.project_out"
    scales = network.weights[f"{name}.scale"]
    plain, rounded = (
        torch.cat(
            [
                dict(model.named_parameters())[f"transformer.h.1.{one}.weight"].float()
                for one in ("attn.out_proj", "mlp.fc_out")
            ],
            dim=1,
        )
        for model in (
            weights.transformers_model(),
            weights.transformers_model(torch.float32, "int8"),
        )
    )
    assert scales.equal(plain.abs().amax(1) / 127)
    assert rounded.equal((plain / scales[:, None]).round() * scales[:, None])
    embedding = "embedding.weight"
    assert network.weights[embedding].equal(weights.network.weights[embedding])
    assert 0.4 < step_bytes(network) / weights.step_bytes < 0.6


def test_int8_is_skipped_when_the_time_is_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a line, and without a failure."""
    for name in ("compare", "measure_16_bit"):
        monkeypatch.setattr(gpu_day, name, lambda *_: None)
    late = Record({}, goals_of(DRY), None, budget=0)
    gpu_day.measure(late, DRY, CPU)
    assert "skipped: int8 weights: the time is up" in capsys.readouterr().out
    assert not late.failures


def test_the_kv_cache_is_sized_as_the_servers() -> None:
    """What the largest steps take stays free, and of the rest what the server keeps back."""
    assert ServerSettings().kv_cache_share == engines.KV_CACHE_SHARE
    network = RandomWeights(DRY.small, torch.float32, CPU).network
    page = 16 * 2 * DRY.small.n_embd * 4 * DRY.small.n_layer
    free, taken = 1000 * page, 100 * page
    assert engines.pages_beside(network, free, taken) == 900 * 9 // 10 - 1
    assert engines.pages_beside(network, free, 2 * taken) == 800 * 9 // 10 - 1
    assert engines.pages_beside(network, free, free) == 0


def test_random_weights_are_read_in_place() -> None:
    """transformers' model has the network's memory where it is not packed."""
    weights = RandomWeights(DRY.small, torch.float32, CPU)
    model = weights.transformers_model()
    places = dict(model.named_parameters())
    q, k = (places[f"transformer.h.0.attn.{name}_proj.weight"] for name in "qk")
    assert q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()
    assert not any(buffer.is_meta for buffer in model.buffers())

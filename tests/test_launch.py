"""What is decided before the weights are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptj_predictor import launch
from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.launch import LaunchPlan
from gptj_predictor.settings import Precision, ServerSettings
from tests.support.sparse import write_sparse_snapshot


def threads(folder: Path, wanted: int | None = None) -> int:
    # Two bytes a value, whether the CPU would choose that or not.
    settings = ServerSettings(device="cpu", threads=wanted, precision=Precision.BFLOAT16)
    return LaunchPlan.prepare(folder, settings).threads


def test_threads_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are CPUs, but for a model that gives them nothing to do."""
    monkeypatch.setattr(launch, "usable_cpus", lambda: 8)
    assert threads(DEMO_SNAPSHOT) == 1
    assert threads(DEMO_SNAPSHOT, 3) == 3
    shape = {"n_embd": 2048, "n_head": 8, "vocab_size": 2048}
    write_sparse_snapshot(tmp_path, "BF16", n_layer=1, **shape)  # 2 x 58.7 million values
    assert threads(tmp_path) == 7
    write_sparse_snapshot(tmp_path, "BF16", n_layer=2, **shape)
    assert threads(tmp_path) == 8

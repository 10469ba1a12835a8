"""What is decided before the weights are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptj_predictor import launch
from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.devices import cgroups
from gptj_predictor.devices.placement import DeviceError
from gptj_predictor.launch import LaunchPlan
from gptj_predictor.settings import Precision, ServerSettings
from tests.support.cgroups import MIB, CgroupTree
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


@pytest.mark.parametrize(
    ("left", "kv_cache_gib", "complaint"),
    [
        (
            600 * MIB,
            1.0,
            r"^--kv_cache_gib 1: the memory limit leaves \d+ bytes for the KV cache on",
        ),
        (260 * MIB, None, "^no memory is left for the KV cache on cpu: 272629760 bytes are free"),
    ],
)
def test_a_kv_cache_that_a_limit_has_no_room_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    left: int,
    kv_cache_gib: float | None,
    complaint: str,
) -> None:
    """Else the kernel would kill the process under load."""
    CgroupTree(tmp_path, version=1).memory("/", limit=1000 * MIB + left, used=1000 * MIB)
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    settings = ServerSettings(
        device="cpu", threads=1, kv_cache_gib=kv_cache_gib, max_prefill_tokens=2048
    )
    plan = LaunchPlan.prepare(DEMO_SNAPSHOT, settings)
    with pytest.raises(DeviceError, match=complaint):
        plan.start_engine()

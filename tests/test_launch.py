"""What is decided before the weights are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from gptj_predictor import launch
from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.devices import cgroups
from gptj_predictor.devices.placement import DeviceError
from gptj_predictor.engine.core import EngineConfig
from gptj_predictor.launch import LaunchPlan
from gptj_predictor.model.network import GPTJNetwork, Placement
from gptj_predictor.model.torch_attention import TorchAttention
from gptj_predictor.model.triton_attention import TritonAttention
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


class MadeUpGpu:
    """A GPU that tells of so much memory, to whoever asks ``launch``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, free: int, taken: int) -> None:
        self.free, self.taken = free, taken
        self.measured: list[EngineConfig] = []
        monkeypatch.setattr(launch, "free_bytes", lambda device: free)
        monkeypatch.setattr(launch, "measure_step", self.measure)

    def measure(
        self, network: GPTJNetwork, sizes: EngineConfig, *others: object
    ) -> dict[torch.device, int]:
        self.measured.append(sizes)
        if self.taken > self.free:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 bytes")
        return {GPU: self.taken}

    def size(self, **settings: Any) -> EngineConfig:
        """The engine's sizes for the demo on it."""
        plan = LaunchPlan.prepare(DEMO_SNAPSHOT, ServerSettings(device="cpu", **settings))
        plan = replace(plan, placement=Placement.on(GPU, plan.folder.config.n_layer))
        return plan._engine_config(cast("GPTJNetwork", None), None)


GPU = torch.device("cuda", 0)


def test_a_gpu_s_kv_cache_takes_its_share_of_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = MadeUpGpu(monkeypatch, free=100 * MIB, taken=60 * MIB)
    config = gpu.size(kv_cache_share=0.5, precision=Precision.FP16)
    model = LaunchPlan.prepare(DEMO_SNAPSHOT, ServerSettings(device="cpu")).folder.config
    page_bytes = 16 * model.n_layer * 2 * model.n_embd * 2
    assert config.num_pages == 20 * MIB // page_bytes - 1
    assert config.max_prefill_tokens == 2048
    assert [sizes.num_pages for sizes in gpu.measured] == [1]


@pytest.mark.parametrize(
    ("taken", "settings", "complaint"),
    [
        (101, {}, r"the largest step, of 2048 prompt tokens and 256 texts; lower --max_batch_size"),
        (100, {}, r"KV cache of 0 bytes on cuda:0 is too small; .*; lower --max_batch_size or"),
        (
            60,
            {"kv_cache_gib": 1.0},
            r"^--kv_cache_gib 1: the free GPU memory leaves 41943040 bytes for the KV cache on",
        ),
    ],
)
def test_a_gpu_without_room(
    monkeypatch: pytest.MonkeyPatch, taken: int, settings: dict[str, Any], complaint: str
) -> None:
    gpu = MadeUpGpu(monkeypatch, free=100 * MIB, taken=taken * MIB)
    with pytest.raises(DeviceError, match=complaint):
        gpu.size(**settings)


@pytest.mark.parametrize(
    ("capturable", "devices", "settings", "said"),
    [
        (True, [GPU], {}, None),
        (False, [GPU], {}, "--allow_slow_attention true measures that"),
        (False, [GPU], {"allow_slow_attention": True}, "--cuda_graphs false measures it without"),
        (False, [GPU], {"allow_slow_attention": True, "cuda_graphs": False}, None),
        (True, [GPU, torch.device("cuda", 1)], {}, "--cuda_graphs false measures it without"),
        (True, [GPU, torch.device("cuda", 1)], {"cuda_graphs": False}, None),
        (False, [torch.device("cpu")], {}, None),
    ],
)
def test_what_a_benchmark_refuses_to_measure(
    capturable: bool, devices: list[torch.device], settings: dict[str, Any], said: str | None
) -> None:
    attention = TritonAttention(1) if capturable else TorchAttention()
    plan = LaunchPlan.prepare(DEMO_SNAPSHOT, ServerSettings(device="cpu"))
    plan = replace(
        plan,
        settings=ServerSettings(**settings),
        attentions=dict.fromkeys(devices, attention),
    )
    shortfall = plan.shortfall()
    assert (shortfall is None) == (said is None)
    assert shortfall is None or shortfall.endswith(str(said))

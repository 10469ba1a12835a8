"""Which device gets which layers. The GPUs are made up: nothing is put on them."""

from __future__ import annotations

import ctypes
import re
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gptj_predictor.common.dtypes import dtype_name
from gptj_predictor.devices import placement
from gptj_predictor.devices.cuda_report import CudaReport, report_cuda
from gptj_predictor.devices.placement import DeviceError, find_devices, place
from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.network import Placement
from gptj_predictor.snapshot.layout import NetworkLayout
from tests.support.engines import RunningEngine, load
from tests.support.reference import ReferenceModel
from tests.support.requests import mixed_requests

CPU = torch.device("cpu")
GPUS = [torch.device("cuda", index) for index in range(2)]
GB = 10**9


def place_gptj_6b(
    dtype: torch.dtype,
    devices: list[torch.device],
    free: dict[torch.device, int],
    *,
    tied: bool = False,
) -> Placement:
    sizes = NetworkLayout(NetworkConfig(tie_word_embeddings=tied)).part_bytes(dtype)
    return place(sizes, devices, free, kind=dtype_name(dtype), tied=tied)


def test_what_fits_one_gpu_stays_on_it() -> None:
    placement = place_gptj_6b(
        torch.float16, [*GPUS, CPU], {GPUS[0]: 16 * GB, GPUS[1]: 16 * GB, CPU: 64 * GB}
    )
    assert placement == Placement.on(GPUS[0], 28)


def test_float32_on_two_gpus_of_16_gb() -> None:
    placement = place_gptj_6b(
        torch.float32, [*GPUS, CPU], {GPUS[0]: 16 * GB, GPUS[1]: 16 * GB, CPU: 0}
    )
    assert placement.devices == tuple(GPUS)
    assert placement.layers == tuple(sorted(placement.layers, key=str))
    assert 12 <= placement.layers.count(GPUS[0]) <= 16
    assert (placement.embedding, placement.head) == (GPUS[0], GPUS[1])


def test_float32_on_one_gpu_and_host_memory() -> None:
    placement = place_gptj_6b(torch.float32, [GPUS[1], CPU], {GPUS[1]: 16 * GB, CPU: 20 * GB})
    assert placement.devices == (GPUS[1], CPU)
    assert placement.layers[0] == GPUS[1]
    assert placement.layers[-1] == CPU


def test_tied_weights_lie_together() -> None:
    placement = place_gptj_6b(
        torch.float32, [*GPUS, CPU], dict.fromkeys([*GPUS, CPU], 16 * GB), tied=True
    )
    assert placement.embedding == placement.head


@pytest.mark.parametrize("devices", [[CPU], [GPUS[0]], [*GPUS, CPU]], ids=str)
def test_what_fits_nowhere_is_said_in_bytes(devices: list[torch.device]) -> None:
    # transformers' GPT-J-6B has so many parameters; ours has a bias for q, k and v too.
    needed = 4 * (6_050_882_784 + 28 * 3 * 4096)
    with pytest.raises(DeviceError) as caught:
        place_gptj_6b(torch.float32, devices, dict.fromkeys(devices, 7 * GB))
    text = str(caught.value)
    assert f"the weights need {needed} bytes (24.2 GB in float32)" in text
    for device in devices:
        assert f"of 7000000000 free bytes on {device}" in text


def test_names() -> None:
    assert find_devices("cpu") == [CPU]
    assert find_devices("auto")[-1] == CPU
    with pytest.raises(DeviceError, match="named twice"):
        find_devices("cpu,cpu")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match=re.escape("--device cpu,cuda:3: this machine has 0")):
            find_devices("cpu,cuda:3")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(placement, "find_trouble", lambda device: None)


@pytest.mark.usefixtures("two_gpus")
def test_gpus_by_name() -> None:
    assert find_devices("cuda") == [GPUS[0]]
    assert find_devices("cuda:0,cuda:1") == GPUS
    with pytest.raises(DeviceError, match="cuda:2: this machine has 2 CUDA devices that can"):
        find_devices("cuda:0,cuda:1,cuda:2")


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_cannot_compute_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel of the build runs on it, for example; the CPU does not take its place."""
    trouble = "CUDA error: no kernel image is available for execution on the device"
    monkeypatch.setattr(placement, "find_trouble", {GPUS[0]: None, GPUS[1]: trouble}.get)
    for named in ("cuda:0,cuda:1", "cuda:0,cuda:1,cpu", "cpu,cuda:1"):
        with pytest.raises(DeviceError) as caught:
            find_devices(named)
        assert str(caught.value).startswith(f"--device {named}: cuda:1 cannot compute: {trouble}; ")
        assert torch.__version__ in str(caught.value)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch can use a GPU")
@pytest.mark.parametrize("named", ["cuda", "cuda:0", "cpu,cuda:0"])
def test_a_gpu_without_cuda_in_torch_is_refused(named: str) -> None:
    with pytest.raises(DeviceError, match=re.escape(str(report_cuda()))):
        find_devices(named)
    assert str(report_cuda()) == f"torch {torch.__version__} is built without CUDA"


def test_what_torch_found_in_one_line() -> None:
    built = partial(CudaReport, torch_version="2.13.0+cu126", cuda_version="12.6")
    old = built(
        architectures=("sm_80", "sm_90"),
        driver=11040,
        trouble="The NVIDIA driver on your system is too old (found version 11040).",
    )
    assert str(old) == (
        "torch 2.13.0+cu126 is built for CUDA 12.6 (sm_80, sm_90); the driver is for CUDA 11.4; "
        "devices that it sees: none; "
        "its reason: The NVIDIA driver on your system is too old (found version 11040)."
    )
    none = built(driver=0)
    assert "there is no driver; devices that it sees: none" in str(none)
    seen = built(devices=("cuda:0 (NVIDIA A40, sm_86)",))
    assert str(seen).endswith("devices that it sees: cuda:0 (NVIDIA A40, sm_86)")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((0, 12080), "; the driver is for CUDA 12.8; "),
        ((999, 0), "sm_90); devices"),  # an error: the driver is left out
        (None, "; there is no driver; "),
    ],
)
def test_what_the_driver_says(
    answer: tuple[int, int] | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Architectures and the driver's version, also where no device can be used."""

    def open_library(name: str) -> SimpleNamespace:
        assert name == "libcuda.so.1"
        if answer is None:
            raise OSError(f"{name}: cannot open shared object file")
        code, version = answer

        def get_version(target: Any) -> int:
            target._obj.value = version
            return code

        return SimpleNamespace(cuDriverGetVersion=get_version)

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch._C, "_cuda_getArchFlags", lambda: "sm_80 sm_90", raising=False)
    monkeypatch.setattr(ctypes, "CDLL", open_library)
    report = str(report_cuda())
    assert "is built for CUDA 13.0 (sm_80, sm_90)" in report
    assert said in report


@pytest.mark.slow
def test_layers_on_several_devices_compute_the_same(small: ReferenceModel) -> None:
    """Two names of the CPU stand for two devices: caches, steps and results are carried over."""
    one, other = torch.device("cpu"), torch.device("cpu", 0)
    requests = mixed_requests(small, 12, seed=21)
    network = load(small.folder, placement=Placement(other, (one, other), one))
    assert set(network.attentions) == {one, other}
    with RunningEngine(
        network, kv_cache_bytes={one: 150_000, other: 300_000}, max_prefill_tokens=20
    ) as engine:
        submitted = [engine.submit(prompt, params) for prompt, params in requests]
        assert [one.result()[0] for one in submitted] == [
            small.greedy(prompt, params) for prompt, params in requests
        ]
        assert engine.pages_in_use == 0

from __future__ import annotations

import pytest
import torch

from gptj_predictor.devices.precision import (
    DeviceDescription,
    PrecisionError,
    choose_precision,
    describe_device,
)
from gptj_predictor.settings import Precision


def gpu(name: str, major: int, minor: int) -> DeviceDescription:
    return DeviceDescription("cuda", name, (major, minor))


PASCAL = gpu("Tesla P100", 6, 0)
VOLTA = gpu("Tesla V100", 7, 0)
TURING = gpu("Quadro RTX 5000", 7, 5)
AMPERE = gpu("A100", 8, 0)
AMPERE_WORKSTATION = gpu("RTX A5000", 8, 6)
HOPPER = gpu("H200", 9, 0)
BLACKWELL = gpu("B200", 10, 0)
OLD_CPU = DeviceDescription("cpu", "old", cpu_features=frozenset({"avx2", "avx512_f"}))
COOPER_LAKE = DeviceDescription("cpu", "x", cpu_features=frozenset({"avx512_f", "avx512_bf16"}))
SAPPHIRE_RAPIDS = DeviceDescription("cpu", "x", cpu_features=frozenset({"amx_bf16", "avx2"}))
GRAVITON_3 = DeviceDescription("cpu", "x", cpu_features=frozenset({"neon", "bf16"}))

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    ("wanted", "stored", "device", "expected"),
    [
        ("auto", F32, PASCAL, F32),
        ("auto", F32, VOLTA, F16),
        ("auto", BF16, VOLTA, F16),
        ("auto", F32, TURING, F16),
        ("auto", F16, AMPERE, BF16),
        ("auto", F16, AMPERE_WORKSTATION, BF16),
        ("auto", F32, HOPPER, BF16),
        ("auto", F32, BLACKWELL, BF16),
        ("auto", BF16, OLD_CPU, F32),
        ("auto", F32, COOPER_LAKE, BF16),
        ("auto", F16, SAPPHIRE_RAPIDS, BF16),
        ("auto", F32, GRAVITON_3, BF16),
        ("native", F32, VOLTA, F32),
        ("native", F16, AMPERE, F16),
        ("native", BF16, AMPERE, BF16),
        ("native", BF16, OLD_CPU, BF16),
        ("native", F16, OLD_CPU, F16),
        ("fp16", F32, VOLTA, F16),
        ("fp16", BF16, HOPPER, F16),
        ("fp16", F32, OLD_CPU, F16),
        ("bfloat16", F32, AMPERE, BF16),
        ("bfloat16", F16, OLD_CPU, BF16),
    ],
)
def test_table(
    wanted: str, stored: torch.dtype, device: DeviceDescription, expected: torch.dtype
) -> None:
    choice = choose_precision(Precision(wanted), stored, device)
    assert choice.dtype is expected
    assert choice.reason


@pytest.mark.parametrize("device", [PASCAL, VOLTA, TURING], ids=lambda device: device.name)
@pytest.mark.parametrize(("wanted", "stored"), [("bfloat16", F32), ("native", BF16)])
def test_no_bfloat16_before_ampere(
    device: DeviceDescription, wanted: str, stored: torch.dtype
) -> None:
    with pytest.raises(PrecisionError) as caught:
        choose_precision(Precision(wanted), stored, device)
    text = str(caught.value)
    assert wanted in text
    assert device.name in text
    assert "8.0" in text
    assert "--precision fp16" in text


def test_this_machine_can_be_described() -> None:
    description = describe_device(torch.device("cpu"))
    assert description.type == "cpu"
    assert description.capability is None
    assert choose_precision(Precision.AUTO, F16, description).dtype in (F32, BF16)

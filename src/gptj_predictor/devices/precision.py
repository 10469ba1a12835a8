"""Which dtype the weights are served in, and why.

The decision is made from a :class:`DeviceDescription`, a plain value, so that the whole table can
be tested on a machine that has none of the devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gptj_predictor.settings import Precision

#: First compute capability with bfloat16 tensor cores (Ampere), CUDA C++ programming guide, table
#: "Feature support per compute capability".
BFLOAT16_CAPABILITY = (8, 0)
#: First compute capability with fp16 tensor cores (Volta), same table.
FP16_CAPABILITY = (7, 0)
#: Any one of these CPU features multiplies bfloat16 without a detour through fp32.
BFLOAT16_CPU_FEATURES = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


#: The dtypes of those precisions that name one.
DTYPES = {Precision.FP16: torch.float16, Precision.BFLOAT16: torch.bfloat16}


class PrecisionError(ValueError):
    """The wanted precision does not exist on the device; the text says what to use instead."""


@dataclass(frozen=True)
class DeviceDescription:
    """What the decision depends on.

    Attributes:
        type: ``"cpu"`` or ``"cuda"``.
        name: The device's own name, for messages only.
        capability: CUDA compute capability ``(major, minor)``; ``None`` on a CPU.
        cpu_features: Lower-case CPU feature names; empty on a GPU.
    """

    type: str
    name: str
    capability: tuple[int, int] | None = None
    cpu_features: frozenset[str] = frozenset()


@dataclass(frozen=True)
class PrecisionChoice:
    """The dtype to serve in and the reason, one clause, for the start log."""

    dtype: torch.dtype
    reason: str


def describe_device(device: torch.device) -> DeviceDescription:
    """Describe a real device of this machine."""
    if device.type == "cuda":
        return DeviceDescription(
            type="cuda",
            name=torch.cuda.get_device_name(device),
            capability=torch.cuda.get_device_capability(device),
        )
    capabilities = torch.cpu.get_capabilities()
    features = frozenset(name for name, present in capabilities.items() if present is True)
    return DeviceDescription(
        type="cpu", name=str(capabilities.get("cpu_name", "CPU")), cpu_features=features
    )


def choose_precision(
    wanted: Precision, stored: torch.dtype, device: DeviceDescription
) -> PrecisionChoice:
    """Decide the dtype.

    Args:
        wanted: What the user asked for.
        stored: The dtype of the checkpoint's tensors, which ``native`` means.
        device: Where the model will run.

    Raises:
        PrecisionError: bfloat16 is wanted, by name or as the checkpoint's own dtype, on a GPU older
            than compute capability 8.0.
    """
    if wanted is Precision.AUTO:
        return _automatic(device)
    if wanted is Precision.NATIVE:
        choice = PrecisionChoice(stored, "the checkpoint's own")
    else:
        choice = PrecisionChoice(DTYPES[wanted], "asked for")
    check_precision(wanted, choice.dtype, device)
    if choice.dtype is torch.float16 and device.type == "cpu":
        return PrecisionChoice(
            choice.dtype, f"{choice.reason}; correct on a CPU but bfloat16 is usually faster there"
        )
    return choice


def check_precision(wanted: Precision, dtype: torch.dtype, device: DeviceDescription) -> None:
    """Make sure that a device computes in the dtype that a wish came to mean.

    Raises:
        PrecisionError: bfloat16 on a GPU older than compute capability 8.0.
    """
    if (
        dtype is torch.bfloat16
        and device.capability is not None
        and device.capability < BFLOAT16_CAPABILITY
    ):
        raise PrecisionError(
            f"precision {wanted.value} means bfloat16 here, and {device.name} (compute capability "
            f"{_dotted(device.capability)}) has no bfloat16 arithmetic, which starts at "
            f"{_dotted(BFLOAT16_CAPABILITY)}; use --precision fp16 or auto"
        )


def _automatic(device: DeviceDescription) -> PrecisionChoice:
    if device.capability is not None:
        text = f"compute capability {_dotted(device.capability)}"
        if device.capability >= BFLOAT16_CAPABILITY:
            return PrecisionChoice(torch.bfloat16, f"{text} has bfloat16")
        if device.capability >= FP16_CAPABILITY:
            return PrecisionChoice(torch.float16, f"{text} has fp16 and no bfloat16")
        return PrecisionChoice(torch.float32, f"{text} has neither fast fp16 nor bfloat16")
    found = sorted(device.cpu_features & BFLOAT16_CPU_FEATURES)
    if found:
        return PrecisionChoice(torch.bfloat16, f"the CPU has {found[0]}")
    return PrecisionChoice(torch.float32, "the CPU has no bfloat16 instructions")


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"

"""Which device gets which part of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from gptj_predictor.devices.cuda_report import find_trouble, report_cuda
from gptj_predictor.devices.host import free_memory
from gptj_predictor.model.network import Placement
from gptj_predictor.settings import CPU_WEIGHT_SHARE, GPU_WEIGHT_SHARE


class DeviceError(ValueError):
    """The wanted devices do not exist here, or cannot hold the weights."""


def find_devices(wanted: str) -> list[torch.device]:
    """The devices that ``--device`` names; for ``auto`` all GPUs, then the CPU.

    A GPU that is named is used or refused: nothing else takes its place.

    Raises:
        DeviceError: one of them does not exist, cannot compute, or is named twice.
    """
    count = torch.cuda.device_count()
    if wanted == "auto":
        return [*(torch.device("cuda", index) for index in range(count)), torch.device("cpu")]
    devices = []
    for name in wanted.split(","):
        device = torch.device(name)
        if device.type == "cuda":
            device = torch.device("cuda", device.index or 0)
            if device.index >= count:
                raise DeviceError(
                    f"--device {wanted}: this machine has {count} CUDA devices that can be used; "
                    f"{report_cuda()}"
                )
            trouble = find_trouble(device)
            if trouble is not None:
                raise DeviceError(
                    f"--device {wanted}: {device} cannot compute: {trouble}; {report_cuda()}"
                )
        if device in devices:
            raise DeviceError(f"--device {wanted}: {device} is named twice")
        devices.append(device)
    return devices


def free_bytes(device: torch.device) -> int:
    """Free memory of a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()


def place(
    sizes: Sequence[int],
    devices: list[torch.device],
    free: Mapping[torch.device, int],
    *,
    kind: str,
    tied: bool,
) -> Placement:
    """Use as few of the devices as the weights need, in their order; layers stay whole.

    Args:
        sizes: Bytes of the embedding, of each layer and of the head, in this order.
        devices: What may be used.
        free: Their free memory in bytes.
        kind: What the weights are, for the message: ``bfloat16``.
        tied: Whether the head shares the embedding's weight and so its device.

    Raises:
        DeviceError: the weights do not fit all of them together.
    """
    room = {
        device: int(
            free[device] * (GPU_WEIGHT_SHARE if device.type == "cuda" else CPU_WEIGHT_SHARE)
        )
        for device in devices
    }
    for count in range(1, len(devices) + 1):
        placement = _try(sizes, devices[:count], room, tied=tied)
        if placement is not None:
            return placement
    needed = sum(sizes)
    available = ", ".join(
        f"{room[device]} of {free[device]} free bytes on {device}" for device in devices
    )
    raise DeviceError(
        f"the weights need {needed} bytes ({needed / 1e9:.1f} GB in {kind}) and do not fit the "
        f"room for them: {available}; a 16-bit --precision halves float32, --quantization int8 "
        "halves 16 bits, and --device takes several devices"
    )


def _try(
    sizes: Sequence[int],
    devices: list[torch.device],
    room: Mapping[torch.device, int],
    *,
    tied: bool,
) -> Placement | None:
    layers = len(sizes) - 2
    if len(devices) == 1:
        fits = sum(sizes) <= room[devices[0]]
        return Placement.on(devices[0], layers) if fits else None
    # It imports transformers, and what fits one device need not wait for that.
    from accelerate.utils import infer_auto_device_map

    # accelerate numbers GPUs and calls the host "cpu"; the numbers are this list's.
    names: dict[Any, torch.device] = {
        number if device.type == "cuda" else "cpu": device for number, device in enumerate(devices)
    }
    found = infer_auto_device_map(
        _outline(sizes, tied=tied),
        max_memory={name: room[device] for name, device in names.items()},
        no_split_module_classes=[_Part.__name__],
        clean_result=False,
    )
    if "disk" in found.values():
        return None
    embedding = names[found["embedding"]]
    head = embedding if tied else names[found["head"]]
    parts = tuple(names[found[f"layers.{index}"]] for index in range(layers))
    return Placement(embedding, parts, head)


class _Part(nn.Module):
    """A part of the network for accelerate, which wants modules: so many bytes and no memory."""

    def __init__(self, size: int) -> None:
        super().__init__()
        memory = torch.empty(size, dtype=torch.uint8, device="meta")
        self.weights = nn.Parameter(memory, requires_grad=False)


def _outline(sizes: Sequence[int], *, tied: bool) -> nn.Module:
    """The network's parts in their order."""
    embedding, *layers, head = (_Part(size) for size in sizes)
    if tied:
        head.shared = embedding.weights
    return nn.ModuleDict({"embedding": embedding, "layers": nn.ModuleList(layers), "head": head})

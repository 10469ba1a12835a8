"""What an exception of a step means for the sequences and for the process."""

from __future__ import annotations

import enum

import torch


class Fault(enum.Enum):
    """How far a fault reaches."""

    OUT_OF_MEMORY = "the step was too large; a smaller one may run"
    STEP = "the step's sequences cannot go on; others can"
    DEVICE = "the device cannot be used any more by this process"


class DeviceFaultError(RuntimeError):
    """The device is lost to this process; only a restart helps."""


def classify(error: Exception, *, on_cuda: bool) -> Fault:
    """How far the exception that a step raised reaches.

    On a GPU torch's allocator alone says that memory is short, before anything has been launched.
    Every other error of CUDA or of a library on it leaves the process's context unusable: each
    later call raises it again, and what was launched before has not run.

    Args:
        error: What was raised.
        on_cuda: Whether a part of the network is on a GPU.
    """
    text = str(error)
    # A CPU's allocator raises a plain RuntimeError ("DefaultCPUAllocator: can't allocate memory").
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in text
    ):
        return Fault.OUT_OF_MEMORY
    if isinstance(error, torch.AcceleratorError) or "CUDA error" in text:
        return Fault.DEVICE
    # cuBLAS, Triton and torch's checks raise plain ones.
    return Fault.DEVICE if on_cuda and isinstance(error, RuntimeError) else Fault.STEP

"""What torch found of CUDA here, for the message that refuses a GPU."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CudaReport:
    """What torch was built for and what it sees.

    Attributes:
        torch_version: Of torch, with its build's suffix.
        cuda_version: That torch was built with; ``None`` if it was built without.
        architectures: That the build has kernels for, such as ``sm_80``.
        driver: CUDA version that the driver has, as ``1000 * major + 10 * minor``; 0 without a
            driver, ``None`` if it does not tell.
        devices: Name and compute capability of each device.
        trouble: Why torch cannot use CUDA; ``None`` if it says nothing.
    """

    torch_version: str
    cuda_version: str | None
    architectures: tuple[str, ...] = ()
    driver: int | None = None
    devices: tuple[str, ...] = ()
    trouble: str | None = None

    def __str__(self) -> str:
        """One line without a period."""
        if self.cuda_version is None:
            return f"torch {self.torch_version} is built without CUDA"
        kernels = ", ".join(self.architectures) or "no architectures"
        parts = [f"torch {self.torch_version} is built for CUDA {self.cuda_version} ({kernels})"]
        if self.driver is not None:
            version = f"is for CUDA {self.driver // 1000}.{self.driver % 1000 // 10}"
            parts.append(f"the driver {version}" if self.driver else "there is no driver")
        parts.append(f"devices that it sees: {', '.join(self.devices) or 'none'}")
        if self.trouble is not None:
            parts.append(f"its reason: {self.trouble}")
        return "; ".join(parts)


def report_cuda() -> CudaReport:
    """Ask torch; nothing is raised."""
    trouble, devices = None, []
    try:
        torch.cuda.init()
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            devices.append(f"cuda:{index} ({torch.cuda.get_device_name(index)}, sm_{major}{minor})")
    except (RuntimeError, AssertionError) as error:  # the second where torch has no CUDA
        trouble = first_line(error)
    # Not in a build without CUDA. torch.cuda.get_arch_list() gives none where CUDA cannot be used.
    architectures = getattr(torch._C, "_cuda_getArchFlags", lambda: None)() or ""
    return CudaReport(
        torch_version=torch.__version__,
        cuda_version=torch.version.cuda,
        architectures=tuple(architectures.split()),
        driver=_ask_driver(),
        devices=tuple(devices),
        trouble=trouble,
    )


def _ask_driver() -> int | None:
    """See :attr:`CudaReport.driver`. The driver's library tells without a device."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    version = ctypes.c_int()
    return None if library.cuDriverGetVersion(ctypes.byref(version)) else version.value


def find_trouble(device: torch.device) -> str | None:
    """Why a CUDA device cannot compute, after a try; ``None`` if it can."""
    try:
        (torch.ones(1, device=device) + 1).item()
    except RuntimeError as error:
        return first_line(error)
    return None


def first_line(error: Exception) -> str:
    """An error's first line; torch adds lines of advice for developers."""
    return str(error).strip().partition("\n")[0] or type(error).__name__

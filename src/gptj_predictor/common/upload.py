"""Bringing numbers to a device without waiting for it."""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike


def pinned(values: ArrayLike, device: torch.device) -> torch.Tensor:
    """``values`` on the host, for ``device`` to fetch by itself; torch keeps them until it has."""
    tensor = torch.as_tensor(values)
    return tensor.pin_memory() if device.type == "cuda" else tensor


def upload(
    values: ArrayLike, device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """``values`` on ``device``, for whatever is launched there after this."""
    return pinned(torch.as_tensor(values, dtype=dtype), device).to(device, non_blocking=True)

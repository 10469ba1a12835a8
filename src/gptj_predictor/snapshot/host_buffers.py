"""Host memory that values pass through on their way to a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

#: So that one is read into while a device fetches what is in the other.
PINNED_BUFFERS = 2


class Fence(Protocol):
    """Something that a device comes to after all that was launched there before."""

    def synchronize(self) -> None:
        """Wait until it has come there."""


class _NoFence:
    def synchronize(self) -> None:
        """Nothing to wait for."""


_NO_FENCE = _NoFence()


def cuda_fence(device: torch.device) -> Fence:
    """After all that the calling thread has launched on a device; none is needed on a CPU."""
    if device.type != "cuda":
        return _NO_FENCE
    fence = torch.cuda.Event(blocking=True)  # it sleeps while it waits
    fence.record(torch.cuda.current_stream(device))
    return fence


class HostBuffers:
    """Buffers of one thread, filled in turn: each only once what was in it has been fetched."""

    def __init__(
        self,
        buffers: Sequence[torch.Tensor],
        make_fence: Callable[[torch.device], Fence] | None = None,
    ) -> None:
        """Take turns.

        Args:
            buffers: At least one, uint8.
            make_fence: Marks a place behind all that was launched on a device; ``None`` if devices
                have always fetched when a launch returns.
        """
        self._buffers = list(buffers)
        self._fences: list[Fence | None] = [None] * len(self._buffers)
        self._make_fence = make_fence
        self._current = 0

    def take(self) -> torch.Tensor:
        """The next buffer, whose last content nobody needs any more."""
        self._current = (self._current + 1) % len(self._buffers)
        fence = self._fences[self._current]
        if fence is not None:
            fence.synchronize()
            self._fences[self._current] = None
        return self._buffers[self._current]

    def sent(self, device: torch.device) -> None:
        """Say that copies from the buffer last taken have been launched on ``device``."""
        if self._make_fence is not None:
            self._fences[self._current] = self._make_fence(device)


def make_host_buffers(size: int, *, pinned: bool) -> HostBuffers:
    """One buffer of ``size`` bytes, or :data:`PINNED_BUFFERS` that a GPU fetches from by itself."""
    if not pinned:
        return HostBuffers([torch.empty(size, dtype=torch.uint8)])
    buffers = [torch.empty(size, dtype=torch.uint8).pin_memory() for _ in range(PINNED_BUFFERS)]
    return HostBuffers(buffers, cuda_fence)

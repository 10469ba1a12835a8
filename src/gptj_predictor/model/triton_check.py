"""Whether Triton can compile and launch here. Importing it needs Triton."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]


def try_kernel(device: torch.device) -> None:
    """Compile a tiny kernel, launch it and look at what it gave.

    Raises:
        Exception: of Triton's, of the C compiler's or of the driver's, whatever is in the way.
        RuntimeError: the kernel gave something else than it should.
    """
    values = torch.arange(32, dtype=torch.float32, device=device)
    with torch.cuda.device_of(values):  # Triton launches on the current device
        _add_one[(1,)](values, count=32)
    if values.tolist() != list(range(1, 33)):
        raise RuntimeError("a kernel that adds one to 32 numbers gave others")


@triton.jit  # type: ignore[untyped-decorator]
def _add_one(values, count: tl.constexpr):  # type: ignore[no-untyped-def]
    place = values + tl.arange(0, count)
    tl.store(place, tl.load(place) + 1)

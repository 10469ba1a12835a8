"""How the Triton kernels are cut into programs: data, in one place, with where it was measured.

A figure that no card has shown yet is an estimate from the kernel's arithmetic. A card that shows
another one gets it here, and nothing else changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True)
class KernelConfig:
    """One kernel's cut.

    Attributes:
        num_warps: Groups of 32 threads that make a program.
        num_stages: Blocks of its loop that are on their way at once; ``None`` without such a loop.
        sizes: What else decides the cut, by name; the comment beside an entry says what it is.
        measured_on: The card that it was found best on; ``None`` if it was not measured yet.
    """

    num_warps: int
    num_stages: int | None = None
    sizes: MappingProxyType[str, int] = field(default_factory=lambda: MappingProxyType({}))
    measured_on: str | None = None


def _sizes(**sizes: int) -> MappingProxyType[str, int]:
    return MappingProxyType(sizes)


#: By the kernel's name.
KERNEL_CONFIGS: Final = MappingProxyType(
    {
        # A thread's share of 256 16-bit values is then one 16-byte access.
        "_rotate_and_store": KernelConfig(num_warps=1),
        # block_bytes: keys that one program works on at a time, and as many values: 64 bytes for
        # each of 128 threads. programs_per_processor: what splitting aims at.
        "_attend": KernelConfig(
            num_warps=4,
            num_stages=3,
            sizes=_sizes(
                block_bytes=8192, max_block_tokens=64, max_splits=32, programs_per_processor=3
            ),
        ),
        "_merge": KernelConfig(num_warps=4),
    }
)

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
        num_warps: Groups of 32 threads that make a program; of a kernel whose program is as long
            as the network is wide, the most of them.
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
        # count: numbers that the start's trial adds one to, one for each thread.
        "_add_one": KernelConfig(num_warps=1, sizes=_sizes(count=32)),
        # values_per_warp: 16 for each of 32 threads; more only where the warps do not suffice.
        "_normalize_and_add": KernelConfig(num_warps=16, sizes=_sizes(values_per_warp=512)),
        # block: the MLP's values of one program, 16 for each of 32 threads, which are two accesses
        # of 16 bytes at 16 bits. Of a head of 256 such values a thread's share is one access.
        "_rotate_store_activate": KernelConfig(num_warps=1, sizes=_sizes(block=512)),
        # block_bytes: keys that one program works on at a time, and as many values: 64 bytes for
        # each of 128 threads. programs_per_processor: what splitting aims at.
        "_attend": KernelConfig(
            num_warps=4,
            num_stages=3,
            sizes=_sizes(
                block_bytes=8192, max_block_tokens=64, max_splits=32, programs_per_processor=3
            ),
        ),
        # Logits that a program works on at a time: 8 for each thread, 16 bytes, of bfloat16. Of the
        # other dtypes so many would not fit the registers on sm_70 (fp32) and sm_120.
        "_sample": KernelConfig(
            num_warps=16, sizes=_sizes(bfloat16_block=4096, block=2048, values_per_warp=128)
        ),
    }
)

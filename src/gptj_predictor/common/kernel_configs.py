"""How the Triton kernels are cut into programs: data, in one place, with where it was measured.

A figure that no card has shown yet is an estimate from the kernel's arithmetic. A card that shows
another one gets it here, and nothing else changes.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def _tensor_cores(
    rows: int, outputs: int, inputs: int, *, warps: int, stages: int, max_registers: int = 255
) -> KernelConfig:
    """A cut of products that are multiplied on tensor cores."""
    sizes = _sizes(rows=rows, outputs=outputs, inputs=inputs, max_registers=max_registers)
    return KernelConfig(num_warps=warps, num_stages=stages, sizes=sizes)


def _one_by_one(rows: int, outputs: int, *, max_registers: int) -> KernelConfig:
    """A cut of products without. One stage: a thread keeps what it loads in registers."""
    sizes = _sizes(rows=rows, outputs=outputs, inputs=256, max_registers=max_registers)
    return KernelConfig(num_warps=4, num_stages=1, sizes=sizes)


#: By the kernel's name, and behind a space by which of several it is.
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
        # rows, outputs, inputs: a product's of one program, of the inputs those that it takes at a
        # time. max_registers: of a thread; without it ptxas may keep a few values in local memory,
        # to have more programs at once. 8 rows are the least that one instruction of a tensor core
        # takes. Warps lie along the outputs, so that each weight is dequantized by one thread only,
        # and in groups of 2 where 4 would make Hopper's larger instruction, for which Triton
        # dequantizes worse. All of it comes from counting: instructions per weight in the machine
        # code, and bytes on their way per multiprocessor.
        "_multiply tensor cores, 8 rows": _tensor_cores(
            8, 64, 128, warps=4, stages=4, max_registers=128
        ),
        "_multiply tensor cores, 16 rows": _tensor_cores(16, 64, 128, warps=2, stages=4),
        "_multiply tensor cores, 32 rows": _tensor_cores(32, 64, 64, warps=2, stages=4),
        "_multiply tensor cores, 64 rows": _tensor_cores(64, 128, 64, warps=8, stages=3),
        "_multiply tensor cores, 128 rows": _tensor_cores(128, 128, 64, warps=8, stages=3),
        "_multiply one by one, 1 row": _one_by_one(1, 16, max_registers=128),
        "_multiply one by one, 2 rows": _one_by_one(2, 8, max_registers=168),
        "_multiply one by one, 4 rows": _one_by_one(4, 8, max_registers=168),
        "_multiply one by one, 8 rows": _one_by_one(8, 8, max_registers=255),
        # block: values of a row that one program works on, 16 for each of 256 threads.
        "_dequantize": KernelConfig(num_warps=8, sizes=_sizes(block=4096)),
        # Logits that a program works on at a time: 8 for each thread, 16 bytes, of bfloat16. Of the
        # other dtypes so many would not fit the registers on sm_70 (fp32) and sm_120.
        "_sample": KernelConfig(
            num_warps=16, sizes=_sizes(bfloat16_block=4096, block=2048, values_per_warp=128)
        ),
    }
)


#: How products are computed on cards that have shown what is quickest, so that a start does not
#: measure it. By the card's name, the dtypes of activations and of the weight ("bfloat16", "int8"),
#: outputs, inputs, and rows (1, 2, 4, 8, ...): what follows "_multiply" in a name above, or
#: "cuBLAS". Empty, as no card has been measured yet.
MEASURED_PRODUCTS: Final[Mapping[tuple[str, str, str, int, int, int], str]] = MappingProxyType({})

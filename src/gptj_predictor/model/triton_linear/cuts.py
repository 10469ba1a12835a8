"""How a product is cut into programs, and which ways to compute it there are: plain data.

No card has measured any of this yet. The cuts come from counting: instructions per weight in the
machine code that Triton makes, and bytes on their way per multiprocessor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import torch


@dataclass(frozen=True)
class Card:
    """What a GPU is, as far as products depend on it.

    Attributes:
        name: Its own, as CUDA gives it.
        capability: Ten times the major compute capability plus the minor one: 80, 90, 120.
        processors: Multiprocessors.
    """

    name: str
    capability: int
    processors: int


@dataclass(frozen=True)
class ProductShape:
    """``[rows, inputs]`` times ``[outputs, inputs]`` transposed.

    Attributes:
        dtype: Of the rows.
        weight_dtype: The same, or int8.
    """

    rows: int
    outputs: int
    inputs: int
    dtype: torch.dtype
    weight_dtype: torch.dtype

    @classmethod
    def of(cls, x: torch.Tensor, weight: torch.Tensor) -> ProductShape:
        """Of ``[rows, inputs]`` and ``[outputs, inputs]``."""
        outputs, inputs = weight.shape
        return cls(len(x), outputs, inputs, x.dtype, weight.dtype)


@dataclass(frozen=True)
class Cut:
    """A product's cut into programs.

    A program makes a tile of ``block_rows`` times ``block_outputs`` values, or with more than one
    split a part of their sums, and takes ``block_inputs`` inputs at a time.

    Attributes:
        tensor_cores: Multiply on tensor cores, else one by one in fp32.
        block_rows: A power of two.
        block_outputs: A power of two.
        block_inputs: A power of two.
        num_warps: Groups of 32 threads of a program.
        num_stages: Blocks of inputs that are on their way at once.
        max_registers: Of a thread. Without it ptxas may keep a few values in local memory, to have
            more programs at once.
        splits: Programs that share a tile's inputs.
    """

    tensor_cores: bool
    block_rows: int
    block_outputs: int
    block_inputs: int
    num_warps: int
    num_stages: int
    max_registers: int
    splits: int = 1

    def tiles(self, shape: ProductShape) -> int:
        """How many tiles there are."""
        return -(-shape.rows // self.block_rows) * -(-shape.outputs // self.block_outputs)

    def scratch_values(self, shape: ProductShape) -> int:
        """fp32 values that the splits leave for the last one."""
        if self.splits == 1:
            return 0
        return self.tiles(shape) * self.splits * self.block_rows * self.block_outputs


#: How to compute a product: by a kernel with this cut, or by cuBLAS, which wants int8 weights
#: dequantized before.
Way = Cut | None
CUBLAS: Final = None

#: The compute capability from which on Triton multiplies on tensor cores. On Volta and Turing it
#: makes single multiplications of a dot product, and too many of them for the registers.
TENSOR_CORES: Final = 80
#: Rows up to which kernels with 16-bit weights are tried, and with int8 weights those that read
#: each weight once. Above these a product computes more than it reads.
MAX_ROWS_16_BIT: Final = 8
MAX_ROWS_INT8: Final = 32
#: Rows up to which tiles are tried for int8 weights; more rows hide what it takes to dequantize.
MAX_ROWS_TILES: Final = 512
#: Rows up to which a kernel does the layer norm too: every program reads all inputs of its rows for
#: that, which must stay little beside its weights.
MAX_ROWS_NORM: Final = 8

#: With tensor cores, by rows up to which they are good. 8 rows are the least that one instruction
#: takes. Warps lie along the outputs, so that each weight is dequantized by one thread only, and in
#: groups of 2 where 4 would make Hopper's larger instruction, for which Triton dequantizes worse.
_FEW_ROWS: Final = (
    (8, Cut(True, 8, 64, 128, num_warps=4, num_stages=4, max_registers=128)),
    (16, Cut(True, 16, 64, 128, num_warps=2, num_stages=4, max_registers=255)),
    (32, Cut(True, 32, 64, 64, num_warps=2, num_stages=4, max_registers=255)),
)
_TILES: Final = (
    Cut(True, 64, 128, 64, num_warps=8, num_stages=3, max_registers=255),
    Cut(True, 128, 128, 64, num_warps=8, num_stages=3, max_registers=255),
)
#: Without, by rows of a block. One stage: a thread keeps what it loads in registers.
_ONE_BY_ONE: Final = MappingProxyType(
    {
        1: Cut(False, 1, 16, 256, num_warps=4, num_stages=1, max_registers=128),
        2: Cut(False, 2, 8, 256, num_warps=4, num_stages=1, max_registers=168),
        4: Cut(False, 4, 8, 256, num_warps=4, num_stages=1, max_registers=168),
        8: Cut(False, 8, 8, 256, num_warps=4, num_stages=1, max_registers=255),
    }
)
#: Programs for each multiprocessor that splitting aims at; it doubles, so it makes less than twice
#: as many.
_PROGRAMS_PER_PROCESSOR: Final = 4
_MAX_SPLITS: Final = 32
#: Blocks of inputs that a split should have at least: to fill its stages.
_MIN_BLOCKS: Final = 4

#: What was measured, by the card's name and the product's shape with :func:`padded_rows`. None yet.
MEASURED: Mapping[tuple[str, ProductShape], Way] = MappingProxyType({})

#: Takes seconds for what computes the same product in one of its ways: the seam to the GPU's clock.
Timer = Callable[[Way], float]


def padded_rows(rows: int) -> int:
    """The rows that a product is chosen for: the next power of two."""
    return 1 << max(rows - 1, 0).bit_length()


def max_rows(weight_dtype: torch.dtype) -> int:
    """Up to how many rows there is a choice at all; above, it is :data:`CUBLAS`."""
    return MAX_ROWS_TILES if weight_dtype is torch.int8 else MAX_ROWS_16_BIT


def split(cut: Cut, shape: ProductShape, processors: int) -> Cut:
    """The cut with as many splits as keep a GPU busy: a power of two, at most 32."""
    splits, blocks = 1, -(-shape.inputs // cut.block_inputs)
    while (
        splits < _MAX_SPLITS
        and cut.tiles(shape) * splits < _PROGRAMS_PER_PROCESSOR * processors
        and blocks >= 2 * splits * _MIN_BLOCKS
    ):
        splits *= 2
    return replace(cut, splits=splits)


def candidates(shape: ProductShape, card: Card) -> tuple[Way, ...]:
    """The ways that are worth a measurement; the first is taken without one.

    With 16-bit weights that is cuBLAS, and with int8 weights and few rows the kernel, as cuBLAS has
    to read and write five times as many bytes then.
    """
    rows, is_int8 = shape.rows, shape.weight_dtype is torch.int8
    on_tensor_cores = card.capability >= TENSOR_CORES and shape.dtype is not torch.float32
    ways: list[Way] = []
    if rows <= (MAX_ROWS_INT8 if is_int8 else MAX_ROWS_16_BIT):
        if on_tensor_cores:
            ways += [next(cut for most, cut in _FEW_ROWS if rows <= most)]
        if rows == 1 or (not on_tensor_cores and rows <= 2 * MAX_ROWS_16_BIT):
            ways += [_ONE_BY_ONE[min(padded_rows(rows), max(_ONE_BY_ONE))]]
        ways = [cut and split(cut, shape, card.processors) for cut in ways]
    elif is_int8 and on_tensor_cores and rows <= MAX_ROWS_TILES:
        ways = [CUBLAS, *(cut for cut in _TILES if cut.block_rows <= padded_rows(rows))]
    if CUBLAS not in ways:
        ways.insert(len(ways) if is_int8 else 0, CUBLAS)
    return tuple(ways)


def choose(
    shape: ProductShape,
    card: Card,
    timer: Timer | None,
    measured: Mapping[tuple[str, ProductShape], Way] = MEASURED,
) -> Way:
    """How to compute a product.

    Args:
        shape: With :func:`padded_rows`.
        card: Where.
        timer: Measures a way if the card's table does not have the shape; of equals the first wins.
            ``None`` takes the first without a measurement.
        measured: What was measured before.
    """
    if (card.name, shape) in measured:
        return measured[card.name, shape]
    ways = candidates(shape, card)
    return ways[0] if timer is None or len(ways) == 1 else min(ways, key=timer)


def scratch_size(processors: int) -> tuple[int, int]:
    """Values and tiles that are enough for every cut that :func:`split` makes on a card."""
    programs = 2 * _PROGRAMS_PER_PROCESSOR * processors
    cuts: Sequence[Cut] = [*(cut for _, cut in _FEW_ROWS), *_ONE_BY_ONE.values()]
    return programs * max(cut.block_rows * cut.block_outputs for cut in cuts), programs

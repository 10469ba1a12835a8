"""How a product is cut into programs, and which ways to compute it there are.

The sizes are data in :mod:`common.kernel_configs`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch

from gptj_predictor.common.dtypes import dtype_name
from gptj_predictor.common.kernel_configs import KERNEL_CONFIGS, MEASURED_PRODUCTS


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
        max_registers: Of a thread.
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

    @classmethod
    def of(cls, name: str) -> Cut:
        """By its name in :data:`KERNEL_CONFIGS`, behind the kernel's."""
        config = KERNEL_CONFIGS[f"_multiply {name}"]
        return cls(
            name.startswith("tensor cores"),
            config.sizes["rows"],
            config.sizes["outputs"],
            config.sizes["inputs"],
            config.num_warps,
            config.num_stages or 1,
            config.sizes["max_registers"],
        )

    def __str__(self) -> str:
        """In a few words, for logs and records."""
        how = "tensor cores" if self.tensor_cores else "one by one"
        blocks = f"{self.block_rows} x {self.block_outputs} x {self.block_inputs}"
        return f"kernel, {how}, {blocks}, {self.splits} splits"

    @property
    def may_split(self) -> bool:
        """Whether it is for few rows, of which there may be fewer tiles than a GPU is busy with."""
        return self.block_rows <= MAX_ROWS_INT8

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

#: With tensor cores, by rows up to which they are good.
_FEW_ROWS: Final = tuple((rows, Cut.of(f"tensor cores, {rows} rows")) for rows in (8, 16, 32))
_TILES: Final = tuple(Cut.of(f"tensor cores, {rows} rows") for rows in (64, 128))
#: Without, by rows of a block.
_ONE_BY_ONE: Final = {
    rows: Cut.of(f"one by one, {rows} {'row' if rows == 1 else 'rows'}") for rows in (1, 2, 4, 8)
}
#: Programs for each multiprocessor that splitting aims at; it doubles, so it makes less than twice
#: as many.
_PROGRAMS_PER_PROCESSOR: Final = 4
_MAX_SPLITS: Final = 32
#: Blocks of inputs that a split should have at least: to fill its stages.
_MIN_BLOCKS: Final = 4

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
        cut.may_split
        and splits < _MAX_SPLITS
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
    measured: Mapping[tuple[str, str, str, int, int, int], str] = MEASURED_PRODUCTS,
) -> Way:
    """How to compute a product.

    Args:
        shape: With :func:`padded_rows`.
        card: Where.
        timer: Measures a way if the card's table does not have the shape; of equals the first wins.
            ``None`` takes the first without a measurement.
        measured: What was measured before.
    """
    dtypes = dtype_name(shape.dtype), dtype_name(shape.weight_dtype)
    known = measured.get((card.name, *dtypes, shape.outputs, shape.inputs, shape.rows))
    if known is not None:
        return CUBLAS if known == "cuBLAS" else split(Cut.of(known), shape, card.processors)
    ways = candidates(shape, card)
    return ways[0] if timer is None or len(ways) == 1 else min(ways, key=timer)


def scratch_size(processors: int) -> tuple[int, int]:
    """Values and tiles that are enough for every cut that :func:`split` makes on a card."""
    programs = 2 * _PROGRAMS_PER_PROCESSOR * processors
    cuts: Sequence[Cut] = [*(cut for _, cut in _FEW_ROWS), *_ONE_BY_ONE.values()]
    return programs * max(cut.block_rows * cut.block_outputs for cut in cuts), programs

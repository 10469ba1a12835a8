"""int8 weights in the blocked layout in which oneDNN multiplies them on a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch.nn import functional

#: Inputs of a block, which :func:`_arrange` needs to be whole.
_BLOCK_INPUTS = 64
#: Outputs of a block, by what oneDNN prefers for a weight and a processor.
_BLOCK_OUTPUTS = (64, 48, 32, 16)
#: How many blocks of outputs are compared with oneDNN's.
_COMPARED_BLOCKS = 8
#: Bytes that are arranged at a time, few enough to stay in a core's own cache.
_PIECE_BYTES = 2 * 2**20
#: Between two rows of a piece. Rows a power of two apart would share few lines of the cache:
#: arranging them takes five times as long.
_GAP_BYTES = 64


class Int8Packer:
    """Packs weights ``[outputs, inputs]``.

    Only torch can make a packed tensor, and it writes value by value: 380 ms where this takes 29
    (117 million weights, two cores). So it packs one made-up weight of each shape. If the layout of
    that is known here, real values are written into it and into copies of it; if not, torch packs
    them as well.
    """

    def __init__(self) -> None:
        self._layouts: dict[tuple[int, ...], Future[_Layout]] = {}

    def prepare(self, shapes: Iterable[tuple[int, ...]]) -> None:
        """Start to pack the made-up weights, in this order, in a thread that ends with them."""
        threads = torch.get_num_threads()
        thread = ThreadPoolExecutor(1, "packer", torch.set_num_threads, (threads,))
        for shape in dict.fromkeys(shapes):
            self._layouts[shape] = thread.submit(_Layout, shape)
        thread.shutdown(wait=False)

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        """A packed copy of an int8 weight ``[outputs, inputs]``, for :class:`Int8Projection`.

        It waits for the made-up weight of that shape.
        """
        if weight.shape not in self._layouts:
            self.prepare([weight.shape])
        layout = self._layouts[weight.shape].result()
        if layout.block_outputs is None:
            return _reorder(weight)
        packed = layout.make_packed()
        _arrange(weight, layout.block_outputs, _memory(packed))
        return packed


class _Layout:
    """How oneDNN lays out weights of a shape, found out with a made-up one.

    Attributes:
        block_outputs: How many outputs a block has; ``None`` if it is none of the known layouts.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.block_outputs = None
        self._is_given = False
        if shape[1] % _BLOCK_INPUTS:
            return
        weight = torch.empty(shape, dtype=torch.int8)  # only what is compared needs values
        compared = weight[: _COMPARED_BLOCKS * max(_BLOCK_OUTPUTS)]
        compared.random_(-128, 128, generator=torch.Generator().manual_seed(0))
        self._packed = _reorder(weight)
        self.block_outputs = _find_block_outputs(compared, self._packed, len(weight))

    def make_packed(self) -> torch.Tensor:
        """A packed weight of any values."""
        packed = self._packed.clone() if self._is_given else self._packed
        self._is_given = True
        return packed


def _reorder(weight: torch.Tensor) -> torch.Tensor:
    return torch.ops.onednn.qlinear_prepack(weight, None)


def _memory(packed: torch.Tensor) -> torch.Tensor:
    """The bytes of a packed tensor, as long as that lives."""
    size = torch.ops.mkldnn._nbytes(packed)
    memory = (ctypes.c_uint8 * size).from_address(torch.ops.mkldnn.data_ptr(packed))
    return torch.frombuffer(memory, dtype=torch.uint8)


def _find_block_outputs(compared: torch.Tensor, packed: torch.Tensor, outputs: int) -> int | None:
    """How many outputs oneDNN's blocks have; ``None`` if it arranged the weight in another way.

    Args:
        compared: The first of the weight's outputs.
        packed: The weight, as oneDNN packed it.
        outputs: How many it has.
    """
    memory = _memory(packed)
    inputs = compared.shape[1]
    for count in _BLOCK_OUTPUTS:
        padded = -(-outputs // count) * count
        if len(memory) != padded * (inputs + torch.int32.itemsize):
            continue
        some = compared[: _COMPARED_BLOCKS * count]
        arranged = memory.new_empty(min(padded, _COMPARED_BLOCKS * count) * inputs)
        _arrange(some, count, arranged)
        if arranged.equal(memory[: len(arranged)]):
            return count
    return None


def _arrange(weight: torch.Tensor, block_outputs: int, memory: torch.Tensor) -> None:
    """Write a weight to memory in oneDNN's layout ``BA16a{block_outputs}b4a``.

    Per block of outputs: for every four inputs, these four of each output (oneDNN's developer
    guide, "Blocked memory layout"). Behind the last block it keeps a sum for each output, for
    activations whose zero is not 0 (the guide's "Quantization"): not for ours, so those stay.
    """
    inputs = weight.shape[1]
    rest = len(weight) % block_outputs
    if rest:
        last = functional.pad(weight[len(weight) - rest :], (0, 0, 0, block_outputs - rest))
        weight = weight[: len(weight) - rest]
        _arrange(last, block_outputs, memory[weight.numel() :])
    lanes = weight.view(torch.int32).unflatten(0, (-1, block_outputs))
    blocks = memory[: weight.numel()].view(torch.int32).view(-1, inputs // 4, block_outputs)
    count = max(1, _PIECE_BYTES // (block_outputs * inputs))
    apart = lanes.new_empty(count, block_outputs, inputs // 4 + _GAP_BYTES // 4)[..., : inputs // 4]
    for source, target in zip(lanes.split(count), blocks.split(count), strict=True):
        rows = apart[: len(source)]
        rows.copy_(source)
        target.copy_(rows.transpose(1, 2))

"""int8 weights in the blocked layout in which oneDNN multiplies them on a CPU."""

from __future__ import annotations

import ctypes

import torch
from torch.nn import functional

#: Inputs of a block, which :func:`_arrange` needs to be whole.
_BLOCK_INPUTS = 64
#: Outputs of a block, by what oneDNN prefers for a weight and a processor.
_BLOCK_OUTPUTS = (64, 48, 32, 16)
#: How many blocks of outputs are compared with oneDNN's. With all, 2.6 GB of weights took 0.6 s
#: longer to load.
_COMPARED_BLOCKS = 8


class Int8Packer:
    """Packs weights ``[outputs, inputs]``.

    torch can only reorder one weight after the other and value by value: 106 ms where this takes 14
    (29 million weights, two cores). So the first weight of a shape goes through torch, and is
    compared with the layout that is known here. If they are the same, later ones are copies of it,
    into whose memory the values are written; if not, torch packs them as well.
    """

    def __init__(self) -> None:
        self._templates: dict[torch.Size, tuple[torch.Tensor, int | None]] = {}

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        """A packed copy of an int8 weight ``[outputs, inputs]``, for :class:`Int8Projection`."""
        if weight.shape not in self._templates:
            packed = _reorder(weight)
            self._templates[weight.shape] = packed, _find_block_outputs(weight, packed)
            return packed
        template, block_outputs = self._templates[weight.shape]
        if block_outputs is None:
            return _reorder(weight)
        packed = template.clone()
        _arrange(weight, block_outputs, _memory(packed))
        return packed


def _reorder(weight: torch.Tensor) -> torch.Tensor:
    return torch.ops.onednn.qlinear_prepack(weight, None)


def _memory(packed: torch.Tensor) -> torch.Tensor:
    """The bytes of a packed tensor, as long as that lives."""
    size = torch.ops.mkldnn._nbytes(packed)
    memory = (ctypes.c_uint8 * size).from_address(torch.ops.mkldnn.data_ptr(packed))
    return torch.frombuffer(memory, dtype=torch.uint8)


def _find_block_outputs(weight: torch.Tensor, packed: torch.Tensor) -> int | None:
    """How many outputs oneDNN's blocks have; ``None`` if it arranged the weight in another way."""
    memory = _memory(packed)
    for count in _BLOCK_OUTPUTS:
        if weight.shape[1] % _BLOCK_INPUTS or len(memory) != sum(_sizes(weight, count)):
            continue
        some = weight[: _COMPARED_BLOCKS * count]
        arranged = memory.new_empty(sum(_sizes(some, count)))
        _arrange(some, count, arranged)
        pairs = zip(
            arranged.split(_sizes(some, count)), memory.split(_sizes(weight, count)), strict=True
        )
        if all(ours.equal(theirs[: len(ours)]) for ours, theirs in pairs):
            return count
    return None


def _sizes(weight: torch.Tensor, block_outputs: int) -> tuple[int, int]:
    """Bytes of the values, padded to whole blocks, and of a sum for each output."""
    outputs = -(-weight.shape[0] // block_outputs) * block_outputs
    return outputs * weight.shape[1], outputs * torch.int32.itemsize


def _arrange(weight: torch.Tensor, block_outputs: int, memory: torch.Tensor) -> None:
    """Write a weight to memory in oneDNN's layout ``BA16a{block_outputs}b4a``.

    Per block of outputs: for every four inputs, these four of each output. After all values the
    negative sum of each output's, for activations whose zero is not 0 (oneDNN's developer guide,
    "Blocked memory layout" and "Quantization").
    """
    values, sums = memory.split(_sizes(weight, block_outputs))
    outputs = weight.shape[0]
    padding = -outputs % block_outputs
    lanes = functional.pad(weight, (0, 0, 0, padding)) if padding else weight
    lanes = lanes.view(torch.int32).unflatten(0, (-1, block_outputs))
    values.view(torch.int32).view(lanes.shape[0], -1, block_outputs).copy_(lanes.transpose(1, 2))
    sums = sums.view(torch.int32).zero_()
    # Sums of up to 2^24 are exact in fp32, which is much quicker to add than int8.
    blocks = weight.split(256)
    sums[:outputs] = torch.cat([rows.float().sum(1) for rows in blocks]).neg_()

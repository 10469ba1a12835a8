"""Weights as 8-bit integers with a scale per output: a value is its integer times the scale."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch

#: How the weights of products are held: in the network's dtype, or as int8 with scales.
WeightQuantization = Literal["none", "int8"]

#: Largest integer. -128 is not used, so that the range is symmetric.
MAX_INT8 = 127

#: Values of a weight that are worked on at once, so that they stay in a processor's cache.
_BLOCK_VALUES = 2**18


def scales_of(weight: torch.Tensor) -> torch.Tensor:
    """The scale of each output: its largest magnitude becomes 127.

    Args:
        weight: ``[outputs, inputs]``, of the dtype that it would be served in.

    Returns:
        ``[outputs]`` fp32; 1 for outputs whose weights are all zero.
    """
    scales = torch.cat([rows.abs().amax(1).float() for rows in _blocks(weight)]) / MAX_INT8
    return scales.where(scales > 0, 1.0)


def quantize(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Round a weight to multiples of its scales.

    Args:
        weight: ``[outputs, inputs]``, of the dtype that it would be served in.
        scales: ``[outputs]`` fp32, :func:`scales_of` it, or of a weight that it is a part of.

    Returns:
        ``[outputs, inputs]`` int8.
    """
    quantized = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    start = 0
    for rows in _blocks(weight):
        end = start + len(rows)
        quantized[start:end] = (rows / scales[start:end, None]).round_()
        start = end
    return quantized


def _blocks(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    return iter(weight.split(max(1, _BLOCK_VALUES // weight.shape[1])))

"""Weights and activations as 8-bit integers.

Weights have a scale per output, activations one per row, both symmetric: a value is its integer
times the scale. So a product of integers, summed in 32 bits, is the product of the values but for
two scales (Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, 2018, section 2).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch

#: How the weights of products are held: in the network's dtype, or as int8 with scales.
WeightQuantization = Literal["none", "int8"]

#: Largest integer. -128 is not used, so that the range is symmetric.
MAX_INT8 = 127

#: Steps of a second row that make one of the first: what that rounds off is at most half a step.
FINE_STEPS = 2 * MAX_INT8

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


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round activations to integers, each row by itself, so that none depends on its neighbors.

    A row becomes two: one whose largest magnitude is 127, and one for what that rounds off, in
    steps of ``1 / FINE_STEPS``. In models of billions of parameters a few features are tens of
    times larger than the rest (Dettmers et al., LLM.int8(), 2022), which 8 bits say little of then.
    And without such features, too, 8 bits change one text in twenty more: docs/measurements.md.

    Args:
        x: ``[T, inputs]``.

    Returns:
        ``[2 T, inputs]`` int8, first rows first, and their ``[T, 1]`` fp32 scales. A row is
        ``(values[t] + values[T + t] / FINE_STEPS) * scales[t]``.
    """
    exact = x.to(torch.float32, copy=True)
    # The floor keeps a row of zeros from a division by zero.
    scales = exact.abs().amax(1, keepdim=True).div_(MAX_INT8).clamp_min_(1e-30)
    exact.mul_(scales.reciprocal())
    coarse = exact.round()
    fine = exact.sub_(coarse).mul_(FINE_STEPS).round_()
    return torch.cat([coarse.to(torch.int8), fine.to(torch.int8)]), scales


def combine_rows(product: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """From a product with the integers of :func:`quantize_rows` to one with the activations.

    Args:
        product: ``[2 T, outputs]`` fp32; its memory is used for the result.
        scales: ``[T, 1]``.

    Returns:
        ``[T, outputs]`` fp32.
    """
    coarse, fine = product.chunk(2)
    return coarse.add_(fine, alpha=1 / FINE_STEPS).mul_(scales)

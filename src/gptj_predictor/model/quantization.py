"""Weights and activations as 8-bit integers.

Weights have a scale per output, activations one per row, both symmetric: a value is its integer
times the scale. So a product of integers, summed in 32 bits, is the product of the values but for
two scales (Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, 2018, section 2).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch

#: How the weights of products are held: in the network's dtype, or as int8 with scales.
WeightQuantization = Literal["none", "int8"]

#: Largest integer. -128 is not used, so that the range is symmetric.
MAX_INT8 = 127

#: How many steps of a fine row make one of the coarse row: what is rounded off is half a step.
FINE_STEPS = 2 * MAX_INT8

#: The root mean square of a row, times this, is the largest peak that 8 bits are enough for.
#: Rows of normal values reach 3.6 (2,048 values) to 4 (16,384). Measured: docs/measurements.md.
FINE_PEAK = 5.0

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


class QuantizedRows(NamedTuple):
    """T rows of activations as integers.

    Row t is ``values[t] * scales[t]``; of those S that ``fine`` names, the s-th is more closely
    ``(values[fine[s]] + values[T + s] / FINE_STEPS) * scales[fine[s]]``.

    Attributes:
        values: ``[T + S, inputs]`` int8.
        scales: ``[T, 1]`` fp32.
        fine: ``[S]`` int64, rising; ``None`` if it is all T.
    """

    values: torch.Tensor
    scales: torch.Tensor
    fine: torch.Tensor | None

    def combine(self, product: torch.Tensor) -> torch.Tensor:
        """From ``[T + S, outputs]`` fp32, made of ``values``, to ``[T, outputs]`` made of the rows.

        It uses the memory of ``product``.
        """
        coarse, fine = product.split([len(self.scales), len(product) - len(self.scales)])
        if self.fine is None:
            coarse.add_(fine, alpha=1 / FINE_STEPS)
        elif len(fine):
            coarse.index_add_(0, self.fine, fine, alpha=1 / FINE_STEPS)
        return coarse.mul_(self.scales)


def quantize_rows(x: torch.Tensor, *, always_fine: bool = False) -> QuantizedRows:
    """Round activations to integers, each row by itself, so that none depends on its neighbors.

    A row's largest magnitude becomes 127. In models of billions of parameters a few features are
    tens of times larger than the rest (Dettmers et al., LLM.int8(), 2022), which 8 bits would then
    say little of. So a row that is :data:`FINE_PEAK` times as large at its peak as on average gets
    a second row of integers for what the first one rounds off.

    Args:
        x: ``[T, inputs]``.
        always_fine: Whether each row gets a second one.
    """
    copy = x.to(torch.float32, copy=True)
    peaks = copy.abs().amax(1, keepdim=True)
    fine = None
    if not always_fine:
        mean_squares = copy.square().mean(1, keepdim=True)
        [fine] = (peaks.square() > FINE_PEAK**2 * mean_squares)[:, 0].nonzero(as_tuple=True)
        fine = None if len(fine) == len(x) else fine
    # The floor keeps a row of zeros from a division by zero.
    scales = peaks.div_(MAX_INT8).clamp_min_(1e-30)
    exact = copy.mul_(scales.reciprocal())
    coarse = exact.round()
    values = coarse.to(torch.int8)
    if fine is None or len(fine):
        rest = exact.sub_(coarse) if fine is None else exact[fine].sub_(coarse[fine])
        values = torch.cat([values, rest.mul_(FINE_STEPS).round_().to(torch.int8)])
    return QuantizedRows(values, scales, fine)

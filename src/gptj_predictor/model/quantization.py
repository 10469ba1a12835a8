"""Weights and activations as 8-bit integers.

Weights have a scale per output: a value is its integer times the scale. Activations have a scale
per row and an offset for each part of it: a value is its integer, from 0 to 255, times the scale,
plus the offset. So a product of values is a product of integers, summed in 32 bits, but for two
scales and the offset times the sum of the weights (Jacob et al., Quantization and Training of
Neural Networks for Efficient Integer-Arithmetic-Only Inference, 2018, sections 2.1 and 2.3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch

#: How the weights of products are held: in the network's dtype, or as int8 with scales.
WeightQuantization = Literal["none", "int8"]

#: Largest integer. -128 is not used, so that the range is symmetric.
MAX_INT8 = 127

#: How many steps of a fine row make one of the coarse row: what is rounded off is half a step.
FINE_STEPS = 2 * MAX_INT8

#: Half of the widest range of a row that 8 bits are enough for, in units of its root mean square.
#: With more the logits of the demo are further from fp32's than CTranslate2's int8
#: (``benchmarks/int8_accuracy.py``). Most rows that come from a GELU are below it.
FINE_RANGE = 4.75

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

    Row t is ``values[t] * scales[t]`` plus its offset; of those S that ``fine`` names, the s-th is
    ``(values[fine[s]] + values[T + s] / FINE_STEPS) * scales[fine[s]]`` plus its offset.

    Attributes:
        values: ``[T + S, inputs]`` uint8.
        scales: ``[T, 1]`` fp32.
        offsets: ``[T, 1]`` fp32 for each part of the inputs.
        fine: ``[S]`` int64, rising; ``None`` if it is all T or none.
    """

    values: torch.Tensor
    scales: torch.Tensor
    offsets: list[torch.Tensor]
    fine: torch.Tensor | None = None

    def combine(self, product: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
        """The product ``[T, outputs]`` of the rows, fp32.

        Args:
            product: ``[T + S, outputs]`` fp32, of ``values``. Its memory is used.
            sums: ``[parts, outputs]`` fp32, of each part's weights of each output.
        """
        coarse = product
        if len(product) > len(self.scales):
            coarse, fine = product.tensor_split([len(self.scales)])
            if self.fine is None:
                coarse.add_(fine, alpha=1 / FINE_STEPS)
            else:
                coarse.index_add_(0, self.fine, fine, alpha=1 / FINE_STEPS)
        coarse.mul_(self.scales)
        for offset, part in zip(self.offsets, sums, strict=True):
            coarse.addcmul_(offset, part)  # addmm_ takes twice as long
        return coarse


def quantize_rows(x: torch.Tensor, parts: Sequence[int]) -> QuantizedRows:
    """Round activations to integers, each row by itself, so that none depends on its neighbors.

    The smallest value of each of a row's parts becomes 0, as what comes from a GELU has no negative
    values to speak of, and attention's has; the largest of the part with the widest range becomes
    255. In models of billions of parameters a few features are tens of times larger than the rest
    (Dettmers et al., LLM.int8(), 2022), which 8 bits would then say little of. So a row whose range
    is wide beside its root mean square, see :data:`FINE_RANGE`, gets a second row of integers for
    what the first one rounds off.

    Args:
        x: ``[T, inputs]``. If it is fp32, its memory is used.
        parts: Neighboring inputs of each part, one or two.
    """
    exact = x.float()
    pieces = exact.split(parts, 1)
    offsets = [piece.amin(1, keepdim=True) for piece in pieces]
    ranges = [p.amax(1, keepdim=True).sub_(low) for p, low in zip(pieces, offsets, strict=True)]
    widest = ranges[0] if len(ranges) == 1 else torch.maximum(*ranges)
    sizes = torch.linalg.vector_norm(exact, dim=1, keepdim=True)
    limit = 2 * FINE_RANGE / math.sqrt(x.shape[1])
    # The floor keeps a row of equal values from a division by zero.
    scales = widest.div(255).clamp_min_(1e-30)
    for piece, low in zip(pieces, offsets, strict=True):
        piece.sub_(low.add(scales, alpha=128))
    exact.div_(scales)
    fine = (widest > sizes.mul_(limit)).nonzero()
    if not len(fine):
        return QuantizedRows(_as_unsigned(exact.round_()), scales, offsets)
    coarse, fine, is_all = exact.round(), fine[:, 0], len(fine) == len(x)
    rest = exact.sub_(coarse) if is_all else exact[fine].sub_(coarse[fine])
    values = torch.cat([_as_unsigned(coarse), _as_unsigned(rest.mul_(FINE_STEPS).round_())])
    for low in offsets:
        # A fine row's 0 stands for half a step less than what the first row says.
        low.index_add_(0, fine, scales[fine], alpha=-128 / FINE_STEPS)
    return QuantizedRows(values, scales, offsets, None if is_all else fine)


def _as_unsigned(values: torch.Tensor) -> torch.Tensor:
    """Whole numbers from -128 to 127 as 0 to 255."""
    # Conversions to uint8 take three times as long.
    return values.to(torch.int8).view(torch.uint8).bitwise_xor_(128)

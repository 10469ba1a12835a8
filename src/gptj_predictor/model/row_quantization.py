"""Activations as 8-bit integers, each row by itself, so that none depends on its neighbors.

A row has a scale, an input a zero point: a value is its integer, from 0 to 255, less the zero
point, times the scale. So a product with int8 weights is one of integers, summed in 32 bits, but
for the scales and for what the zero points add, which is the same for every row (Jacob et al.,
Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, 2018,
sections 2.1 and 2.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch

#: Zero point of values that may as well be negative as positive.
SIGNED: Final = 128

#: Zero point of what comes from a GELU: it has no values below -0.17, and its largest are some 20
#: times that.
GELU_ZERO_POINT: Final = 16

#: How many steps of a fine row make one of the coarse row: what is rounded off is half a step.
FINE_STEPS: Final = 254

#: Half of the widest range of a row that 8 bits are enough for, in units of its root mean square.
#: With more the logits of the demo are further from fp32's than CTranslate2's int8
#: (``benchmarks/int8_accuracy.py``). Most rows that come from a GELU are below it.
FINE_RANGE: Final = 5.5

#: Added to an fp32 number, it leaves it as an integer in the lowest bits: the sum has no room for
#: fractions (Hecker, Let's Get to the (Floating) Point, Game Developer, 1996).
_ROUNDING = 1.5 * 2**23


@dataclass(frozen=True)
class Inputs:
    """``count`` neighboring inputs of a product that come from the same place."""

    count: int
    zero_point: int = SIGNED


class QuantizedRows(NamedTuple):
    """T rows of activations as integers.

    With zero points z row t is ``(values[t] - z) * scales[t]``. Of those S that ``fine`` names, the
    s-th has ``(values[T + s] - SIGNED) / FINE_STEPS * scales[fine[s]]`` added.

    Attributes:
        values: ``[T + S, inputs]`` uint8.
        scales: ``[T, 1]`` fp32.
        fine: ``[S]`` int64, rising; ``None`` if it is all T or none.
    """

    values: torch.Tensor
    scales: torch.Tensor
    fine: torch.Tensor | None = None


class RowQuantizer:
    """Rounds rows of activations.

    In models of billions of parameters a few features are tens of times larger than the rest
    (Dettmers et al., LLM.int8(), 2022), which 8 bits would then say little of. So a row whose range
    is wide beside its root mean square, see :data:`FINE_RANGE`, gets a second row of integers for
    what the first one rounds off.

    Attributes:
        zero_points: ``[inputs]`` uint8.
    """

    def __init__(self, parts: Sequence[Inputs], device: torch.device) -> None:
        """For rows of these parts, in their order."""
        points = [torch.full((part.count,), part.zero_point) for part in parts]
        zero_points = torch.cat(points).to(device)
        self.zero_points = zero_points.to(torch.uint8)
        self._rounding = zero_points + _ROUNDING
        self._fine_rounding = torch.tensor(SIGNED + _ROUNDING, device=device)
        self._counts = [part.count for part in parts]
        # Of each part: how many times further a negative value reaches, and a positive one's scale.
        limits = [(part.zero_point, 255 - part.zero_point) for part in parts]
        self._slopes = [-up / min(down, up) for down, up in limits]
        self._shares = [1 / up for _, up in limits]
        self._smallest = torch.tensor(1e-30, device=device)
        self._limit = 127.5 / FINE_RANGE * math.sqrt(len(zero_points))

    def __call__(self, x: torch.Tensor) -> QuantizedRows:
        """Round rows ``[T, inputs]``, whose memory is used if they are fp32."""
        x = x.float()
        scales = self._scales(x)
        x.div_(scales)
        sizes = torch.linalg.vector_norm(x, dim=1).tolist()
        wide = [row for row, size in enumerate(sizes) if size < self._limit]
        if not wide:
            return QuantizedRows(_lowest_bytes([x.add_(self._rounding)]), scales)
        fine = None if len(wide) == len(x) else torch.tensor(wide, device=x.device)
        rest = x.clone() if fine is None else x[fine]
        rest.sub_((rest + self._rounding).sub_(self._rounding))
        rest.mul_(FINE_STEPS).add_(self._fine_rounding)
        return QuantizedRows(_lowest_bytes([x.add_(self._rounding), rest]), scales, fine)

    def _scales(self, x: torch.Tensor) -> torch.Tensor:
        """``[T, 1]``, positive for a row of zeros too."""
        scales = None
        parts = x.split(self._counts, 1)
        for part, slope, share in zip(parts, self._slopes, self._shares, strict=True):
            # With a negative slope a leaky ReLU makes negative values positive, and larger.
            reach = torch.ops.aten.leaky_relu.default(part, slope).amax(1, keepdim=True)
            own = torch.add(self._smallest, reach, alpha=share)
            scales = own if scales is None else torch.maximum(scales, own)
        assert scales is not None
        return scales


def _lowest_bytes(sums: list[torch.Tensor]) -> torch.Tensor:
    """Of all rows of fp32 numbers to which :data:`_ROUNDING` was added; uint8."""
    # A conversion from fp32 to uint8 takes four times as long.
    integers = [rows.view(torch.int32) for rows in sums]
    if len(integers) == 1:
        return integers[0].to(torch.uint8)
    counts = [len(rows) for rows in integers]
    values = sums[0].new_empty(sum(counts), sums[0].shape[1], dtype=torch.uint8)
    for place, rows in zip(values.split(counts), integers, strict=True):
        place.copy_(rows)
    return values

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

#: Zero point of what comes from a GELU. It has no values below -0.17, and of thousands some are 15
#: times as large.
GELU_ZERO_POINT: Final = 16

#: How many steps of a fine row make one of the coarse row: what is rounded off is half a step.
FINE_STEPS: Final = 254

#: Half of the widest range of a row that 8 bits are enough for, in units of its root mean square.
#: Few rows have a wider one without outliers. With 4.75 there are seven times as many, and the
#: logits' error is 0 to 10 percent smaller (docs/measurements.md).
FINE_RANGE: Final = 5.5

#: Added to an fp32 number, it leaves it as an integer in the lowest bits: the sum has no room for
#: fractions (Hecker, Let's Get to the (Floating) Point, Game Developer, 1996).
_ROUNDING = 1.5 * 2**23

#: Values of the fine rows that are worked on at once.
_BLOCK_VALUES = 2**18


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
        # The scales of a part whose largest and whose smallest value is 1 and -1.
        reaches = [(255 - part.zero_point, part.zero_point) for part in parts]
        self._units = [
            (torch.tensor(1 / up, device=device), torch.tensor(-1 / min(up, down), device=device))
            for up, down in reaches
        ]
        self._limit = 127.5 / FINE_RANGE * math.sqrt(len(zero_points))

    def __call__(self, x: torch.Tensor) -> QuantizedRows:
        """Round rows ``[T, inputs]``, whose memory is used if they are fp32."""
        x = x.float()
        scales = self._scales(x)
        x.div_(scales)
        sizes = torch.linalg.vector_norm(x, dim=1).tolist()
        wide = [row for row, size in enumerate(sizes) if size < self._limit]
        # A few at a time, so that no large memory comes and goes.
        count = max(1, _BLOCK_VALUES // x.shape[1])
        rests = [self._rest(x[wide[at : at + count]]) for at in range(0, len(wide), count)]
        values = _lowest_bytes(x.add_(self._rounding))
        if not rests:
            return QuantizedRows(values, scales)
        fine = torch.tensor(wide, device=x.device) if len(wide) < len(x) else None
        return QuantizedRows(torch.cat([values, *rests]), scales, fine)

    def _scales(self, x: torch.Tensor) -> torch.Tensor:
        """``[T, 1]``; 0 for a row of zeros, which makes 0 of whatever integers come of it."""
        scales = None
        for part, (up, down) in zip(x.split(self._counts, 1), self._units, strict=True):
            for reach in (
                part.amax(1, keepdim=True).mul_(up),
                part.amin(1, keepdim=True).mul_(down),
            ):
                scales = reach if scales is None else torch.maximum(scales, reach)
        assert scales is not None
        return scales

    def _rest(self, rows: torch.Tensor) -> torch.Tensor:
        """What rounding takes off, as integers; uses the memory of the rows."""
        rest = rows.sub_((rows + self._rounding).sub_(self._rounding))
        return _lowest_bytes(rest.mul_(FINE_STEPS).add_(self._fine_rounding))


def _lowest_bytes(sums: torch.Tensor) -> torch.Tensor:
    """Of fp32 numbers to which :data:`_ROUNDING` was added; uint8."""
    # A conversion from fp32 to uint8 takes four times as long.
    return sums.view(torch.int32).to(torch.uint8)

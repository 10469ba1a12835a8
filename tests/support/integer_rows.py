"""Rows of activations to round to integers, and what the integers say."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gptj_predictor.model.row_quantization import FINE_STEPS, SIGNED, Inputs, QuantizedRows


def rows_of_all_sizes(count: int, inputs: int, *, zeros: bool = True) -> torch.Tensor:
    """Random rows of very different sizes, one of ``zeros``."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, inputs, generator=generator) * torch.logspace(-3, 3, count)[:, None]
    if zeros:
        x[count // 2] = 0
    return x


def integers_of(rows: QuantizedRows, parts: Sequence[Inputs]) -> torch.Tensor:
    """The values that the integers stand for, ``[T, inputs]`` float64."""
    points = torch.cat([torch.full((part.count,), part.zero_point) for part in parts])
    count = len(rows.scales)
    values = rows.values[:count].double() - points
    rest = (rows.values[count:].double() - SIGNED) / FINE_STEPS
    if rows.fine is not None:
        values[rows.fine] += rest
    elif len(rest):
        values += rest
    return values * rows.scales.double()

"""Activations as 8-bit integers, row by row."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch.nn import functional

from gptj_predictor.model import row_quantization
from gptj_predictor.model.row_quantization import (
    FINE_RANGE,
    FINE_STEPS,
    GELU_ZERO_POINT,
    SIGNED,
    Inputs,
    RowQuantizer,
)
from tests.support.integer_rows import integers_of, rows_of_all_sizes

CPU = torch.device("cpu")
SIGNED_ONLY = [Inputs(96)]
MIXED = [Inputs(32), Inputs(64, GELU_ZERO_POINT)]


@pytest.mark.parametrize("parts", [SIGNED_ONLY, MIXED], ids=["signed", "mixed"])
@pytest.mark.parametrize("peaks", [[], [3], [0, 3, 5], range(6)])
def test_rows_are_rounded_each_by_itself(
    monkeypatch: pytest.MonkeyPatch, peaks: Sequence[int], parts: list[Inputs]
) -> None:
    monkeypatch.setattr(row_quantization, "_BLOCK_VALUES", 2 * 96)
    x = rows_of_all_sizes(6, 96, zeros=False)
    if parts is MIXED:
        x[:, 32:] = x[:, 32:].abs()
    for row in peaks:
        x[row, 7] = 30 * x[row].std()
    quantize = RowQuantizer(parts, CPU)
    together = quantize(x.clone())
    assert len(together.values) == 6 + len(peaks)
    integers = integers_of(together, parts)
    for row in range(6):
        step = together.scales[row].double() / (FINE_STEPS if row in peaks else 1)
        assert (integers[row] - x[row]).abs().le(step * 0.502).all()
        alone = quantize(x[row : row + 1].clone())
        assert integers_of(alone, parts)[0].equal(integers[row])


def test_the_part_that_reaches_furthest_makes_the_scale() -> None:
    """A negative value of a part with a low zero point reaches further than a positive one."""
    quantize = RowQuantizer(MIXED, CPU)
    x = torch.zeros(4, 96)
    x[0, 0], x[1, 0], x[2, 40], x[3, 40] = 1, -1, 1, -1
    positive = 255 - GELU_ZERO_POINT
    steps = torch.tensor([127, 127, positive, GELU_ZERO_POINT])
    result = quantize(x)
    torch.testing.assert_close(result.scales[:, 0], 1 / steps)
    values, points = result.values[:4].int(), [SIGNED, SIGNED, GELU_ZERO_POINT, GELU_ZERO_POINT]
    reached = values[range(4), [0, 0, 40, 40]] - torch.tensor(points)
    assert reached.tolist() == [127, -127, positive, -GELU_ZERO_POINT]


def test_every_value_of_a_gelu_has_a_place() -> None:
    """None of many rows wraps around, whatever its range."""
    x = torch.randn(500, 96) * torch.logspace(-2, 2, 500)[:, None]
    x[:, 32:] = functional.gelu(x[:, 32:], approximate="tanh")
    result = RowQuantizer(MIXED, CPU)(x.clone())
    error = (integers_of(result, MIXED) - x).abs()
    assert (error <= result.scales * 0.502).all()


@pytest.mark.parametrize(
    "parts",
    [[Inputs(200)], [Inputs(40), Inputs(160, GELU_ZERO_POINT)]],
    ids=["signed", "mixed"],
)
def test_a_wide_range_beside_the_mean_square_makes_a_row_fine(parts: list[Inputs]) -> None:
    x = torch.ones(2, 200)
    x[:, 1:40:2] = -1
    up = 255 - parts[-1].zero_point
    # With this value the scale is 1, and half the range 127.5.
    for row, ratio in enumerate((0.98, 1.02)):
        others = (127.5 * ratio / FINE_RANGE) ** 2 * 200 - up**2
        x[row] *= (others / 199) ** 0.5
        x[row, 60] = up
    result = RowQuantizer(parts, CPU)(x)
    assert result.fine is not None
    assert result.fine.tolist() == [0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_harms_no_other(value: float) -> None:
    x = rows_of_all_sizes(4, 96)
    x[1, 5] = 50 * x[1].std()  # a fine one
    wanted = RowQuantizer(SIGNED_ONLY, CPU)(x.clone())
    x[0, 3] = value
    result = RowQuantizer(SIGNED_ONLY, CPU)(x)
    assert result.values[1:].equal(wanted.values[1:])
    assert not result.scales[0].isfinite()
    assert result.fine is not None
    assert wanted.fine is not None
    assert result.fine.equal(wanted.fine)

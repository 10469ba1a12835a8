"""int8 weights: their rounding, their packed layout, and the products with them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch

from gptj_predictor.model import int8_packing
from gptj_predictor.model.int8_packing import Int8Packer
from gptj_predictor.model.linear import Int8Projection, can_multiply_int8
from gptj_predictor.model.quantization import (
    FINE_STEPS,
    QuantizedRows,
    quantize,
    quantize_rows,
    scales_of,
)

needs_vnni = pytest.mark.skipif(not can_multiply_int8(), reason="the CPU has no VNNI")


def int8_weight(outputs: int, inputs: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8, generator=generator)


def rows(count: int, inputs: int) -> torch.Tensor:
    """Of very different sizes, one of zeros."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, inputs, generator=generator) * torch.logspace(-3, 3, count)[:, None]
    x[count // 2] = 0
    return x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_weight_is_rounded_to_the_nearest_multiple(dtype: torch.dtype) -> None:
    weight = torch.randn(700, 512).to(dtype)
    weight[3] = 0
    scales = scales_of(weight)
    quantized = quantize(weight, scales)
    assert quantized.dtype is torch.int8
    assert quantized.abs().amax(1).eq(127).sum() == 699
    assert quantized[3].eq(0).all()
    error = quantized.double() * scales.double()[:, None] - weight.double()
    assert (error.abs() <= scales.double()[:, None] * 0.50001).all()


def values_of(rows: QuantizedRows, row: int, parts: list[int]) -> torch.Tensor:
    """What the integers say of a row."""
    count = len(rows.scales)
    value = rows.values[row].double()
    fine = range(len(rows.values) - count) if rows.fine is None else rows.fine.tolist()
    if row in fine:
        value = value + rows.values[count + list(fine).index(row)].double() / FINE_STEPS
    offsets = [
        offset[row].double().expand(n) for offset, n in zip(rows.offsets, parts, strict=True)
    ]
    return value * rows.scales[row].double() + torch.cat(offsets)


@pytest.mark.parametrize("parts", [[96], [32, 64]])
@pytest.mark.parametrize("peaks", [[], [3], [0, 3, 5], range(6)])
def test_rows_are_rounded_each_by_itself(peaks: Sequence[int], parts: list[int]) -> None:
    x = rows(6, 96)
    for row in peaks:
        x[row, 7] = 30 * x[row].std() + 1
    together = quantize_rows(x.clone(), parts)
    assert len(together.values) == 6 + len(peaks)
    for row in range(6):
        step = together.scales[row].double() / (FINE_STEPS if row in peaks else 1)
        assert (values_of(together, row, parts) - x[row]).abs().le(step * 0.502).all()
        alone = quantize_rows(x[row : row + 1].clone(), parts)
        assert values_of(alone, 0, parts).equal(values_of(together, row, parts))


def test_parts_share_the_widest_range() -> None:
    """What lies on both sides of 0 does not widen the range of what lies on one."""
    x = torch.cat([torch.linspace(-1, 1, 64), torch.linspace(0, 2, 64)])[None]
    together, apart = quantize_rows(x.clone(), [128]), quantize_rows(x.clone(), [64, 64])
    assert together.scales.item() == pytest.approx(3 / 255)
    assert apart.scales.item() == pytest.approx(2 / 255)
    assert [offset.item() for offset in apart.offsets] == [-1, 0]


@needs_vnni
@pytest.mark.parametrize("count", [1, 2, 17, 300])
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 64), (130, 192), (50, 36), (512, 2048)])
def test_packed_product_is_exact(count: int, outputs: int, inputs: int) -> None:
    """It is that of the integers, for the first packed weight of a shape and for later ones."""
    packer = Int8Packer()
    ones = torch.ones(outputs)
    x = rows(count, inputs)
    for seed in range(3):
        weight = int8_weight(outputs, inputs, seed)
        projection = Int8Projection(packer.pack(weight), ones, torch.zeros(outputs))
        quantized = quantize_rows(x.clone(), [inputs])
        product = (quantized.values.double() @ weight.double().T).float()
        sums = weight.sum(1, dtype=torch.float32)[None]
        assert projection(x.clone()).equal(quantized.combine(product, sums))


@needs_vnni
def test_the_largest_sums_are_exact() -> None:
    weight = torch.full((64, 20480), 127, dtype=torch.int8)
    projection = Int8Projection(Int8Packer().pack(weight), torch.ones(64), torch.zeros(64))
    product = projection(torch.full((1, 20480), -1.0))
    assert torch.allclose(product, torch.tensor(-127.0 * 20480), rtol=1e-6)


@needs_vnni
def test_later_weights_are_packed_as_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    reorders: list[torch.Tensor] = []
    reorder = int8_packing._reorder

    def counted(weight: torch.Tensor) -> torch.Tensor:
        reorders.append(weight)
        return reorder(weight)

    monkeypatch.setattr(int8_packing, "_reorder", counted)
    packer = Int8Packer()
    for seed in range(4):
        weight = int8_weight(200, 128, seed)
        packed, wanted = packer.pack(weight), reorder(weight)
        assert int8_packing._memory(packed).equal(int8_packing._memory(wanted))
    assert len(reorders) == 1


@needs_vnni
def test_an_unknown_layout_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_packing, "_BLOCK_OUTPUTS", (7,))
    packer = Int8Packer()
    for seed in range(2):
        weight = int8_weight(128, 128, seed)
        packed, wanted = packer.pack(weight), int8_packing._reorder(weight)
        assert int8_packing._memory(packed).equal(int8_packing._memory(wanted))


@pytest.mark.parametrize("parts", [[128], [32, 96]])
@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=needs_vnni)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_projection(packed: bool, dtype: torch.dtype, parts: list[int]) -> None:
    weight, bias = torch.randn(256, 128), torch.randn(256).to(dtype)
    scales = scales_of(weight)
    quantized = quantize(weight, scales)
    held = Int8Packer().pack(quantized) if packed else quantized
    projection = Int8Projection(held, scales, bias, parts)
    x, residual = torch.randn(5, 128).to(dtype), torch.randn(5, 256).to(dtype)
    x[:, :32] -= 3
    rows = quantize_rows(x.clone(), parts)
    values = torch.stack([values_of(rows, row, parts) for row in range(len(x))])
    wanted = values @ (quantized.double() * scales[:, None]).T + bias
    tolerance = 2e-2 if dtype is torch.bfloat16 else 1e-4
    close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    close(projection(x.clone()), wanted.float())
    close(projection.add_to(residual.clone(), x), (wanted + residual).to(dtype))


def test_a_cpu_without_vnni_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert not can_multiply_int8.__wrapped__()

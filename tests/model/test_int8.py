"""int8 weights: their rounding, their packed layout, and the products with them."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch

from gptj_predictor.model import int8_packing
from gptj_predictor.model.int8_packing import Int8Packer
from gptj_predictor.model.linear import Int8Projection, can_multiply_int8
from gptj_predictor.model.quantization import quantize, scales_of
from gptj_predictor.model.row_quantization import GELU_ZERO_POINT, Inputs, RowQuantizer
from tests.support.integer_rows import integers_of, rows_of_all_sizes

needs_vnni = pytest.mark.skipif(not can_multiply_int8(), reason="the CPU has no VNNI")


def int8_weight(outputs: int, inputs: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8, generator=generator)


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


@needs_vnni
@pytest.mark.parametrize("count", [1, 2, 17, 300])
@pytest.mark.parametrize(
    ("outputs", "inputs"), [(64, 64), (50, 64), (130, 192), (50, 36), (700, 2048)]
)
def test_packed_product_is_exact(count: int, outputs: int, inputs: int) -> None:
    """It is that of the integers, for the first weight of a shape and for later ones."""
    packer = Int8Packer()
    parts = [Inputs(inputs // 4), Inputs(inputs - inputs // 4, GELU_ZERO_POINT)]
    ones = torch.ones(outputs)
    x = rows_of_all_sizes(count, inputs)
    rows = RowQuantizer(parts, x.device)(x.clone())
    integers = integers_of(rows, parts)
    for seed in range(3):
        weight = int8_weight(outputs, inputs, seed)
        projection = Int8Projection(packer.pack(weight), ones, torch.zeros(outputs), parts)
        product = (rows.values.double() @ weight.double().T).float()
        assert projection._multiply(rows.values).equal(product)
        wanted = integers @ weight.double().T
        # Its sums are exact; they are rounded as often as fp32 numbers are added.
        largest = wanted.abs().amax(1, keepdim=True) + integers.abs().amax(1, keepdim=True) * 2**14
        assert ((projection(x.clone()) - wanted).abs() <= largest * 2**-21).all()


@needs_vnni
def test_the_largest_sums_are_exact() -> None:
    weight = torch.full((64, 20480), 127, dtype=torch.int8)
    projection = Int8Projection(Int8Packer().pack(weight), torch.ones(64), torch.zeros(64))
    for value in (-1.0, 1.0):
        product = projection(torch.full((1, 20480), value))
        assert torch.allclose(product, torch.tensor(value * 127 * 20480), rtol=1e-6)


@needs_vnni
@pytest.mark.parametrize(("outputs", "inputs"), [(50, 64), (200, 128), (700, 2048)])
def test_weights_are_packed_as_by_torch(
    outputs: int, inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their values, which the sums follow; of each shape torch packs one weight only."""
    reorders: list[torch.Size] = []
    reorder = int8_packing._reorder

    def counted(weight: torch.Tensor) -> torch.Tensor:
        reorders.append(weight.shape)
        return reorder(weight)

    monkeypatch.setattr(int8_packing, "_reorder", counted)
    packer = Int8Packer()
    for seed in range(4):
        weight = int8_weight(outputs, inputs, seed)
        packed, wanted = packer.pack(weight), reorder(weight)
        ours, theirs = int8_packing._memory(packed), int8_packing._memory(wanted)
        sums = len(theirs) // (inputs + 4) * 4
        assert ours[:-sums].equal(theirs[:-sums])
    assert reorders == [(outputs, inputs)]


@needs_vnni
@pytest.mark.parametrize(("known", "inputs"), [((7,), 128), (int8_packing._BLOCK_OUTPUTS, 36)])
def test_an_unknown_layout_is_left_to_torch(
    known: tuple[int, ...], inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_packing, "_BLOCK_OUTPUTS", known)
    packer = Int8Packer()
    for seed in range(2):
        weight = int8_weight(128, inputs, seed)
        packed, wanted = packer.pack(weight), int8_packing._reorder(weight)
        assert int8_packing._memory(packed).equal(int8_packing._memory(wanted))


@needs_vnni
def test_shapes_are_prepared_in_a_thread_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [int8_weight(128, 64), int8_weight(64, 128), int8_weight(64, 192)]
    go_on, reorder = threading.Event(), int8_packing._reorder
    threads: list[threading.Thread] = []

    def waiting(weight: torch.Tensor) -> torch.Tensor:
        threads.append(threading.current_thread())
        assert go_on.wait(60)
        return reorder(weight)

    monkeypatch.setattr(int8_packing, "_reorder", waiting)
    packer = Int8Packer()
    packer.prepare(weight.shape for weight in weights)
    go_on.set()
    for weight in reversed(weights):
        assert packer.pack(weight).shape == weight.shape[::-1]
    assert len(threads) == 3
    (thread,) = set(threads)
    assert thread is not threading.current_thread()
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    "parts", [[Inputs(128)], [Inputs(32), Inputs(96, GELU_ZERO_POINT)]], ids=["one", "two"]
)
@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=needs_vnni)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_projection(packed: bool, dtype: torch.dtype, parts: list[Inputs]) -> None:
    weight, bias = torch.randn(256, 128), torch.randn(256).to(dtype)
    scales = scales_of(weight)
    quantized = quantize(weight, scales)
    held = Int8Packer().pack(quantized) if packed else quantized
    projection = Int8Projection(held, scales, bias, parts)
    x, residual = torch.randn(5, 128).to(dtype), torch.randn(5, 256).to(dtype)
    x[:, 32:].clamp_(min=-0.1)
    x[3, 7] = 60
    integers = integers_of(RowQuantizer(parts, x.device)(x.clone()), parts)
    wanted = integers @ (quantized.double() * scales[:, None]).T + bias
    tolerance = 2e-2 if dtype is torch.bfloat16 else 1e-4
    close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    close(projection(x.clone()), wanted.float())
    close(projection.add_to(residual.clone(), x.clone()), (wanted + residual).to(dtype))
    close(projection.accumulate(residual.clone(), x), (wanted - bias + residual).to(dtype))


def test_a_cpu_without_vnni_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert not can_multiply_int8.__wrapped__()

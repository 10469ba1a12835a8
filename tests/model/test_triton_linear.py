"""The Triton kernels of products against float64, on a GPU or else in Triton's interpreter."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")

triton: Any = pytest.importorskip("triton")

if not ON_GPU and isinstance(triton.language.sum, triton.JITFunction):
    # Triton was imported before, by transformers, and its own functions are not interpreted yet.
    importlib.reload(triton.language.standard)
    importlib.reload(triton.language)

from triton.runtime.interpreter import InterpreterBuilder  # type: ignore[import-untyped]  # noqa: E402

from gptj_predictor.common.kernel_configs import (  # noqa: E402
    KERNEL_CONFIGS,
    MEASURED_PRODUCTS,
)
from gptj_predictor.model.attention import rotary_table  # noqa: E402
from gptj_predictor.model.config import NetworkConfig  # noqa: E402
from gptj_predictor.model.kv_cache import PagedKVCache  # noqa: E402
from gptj_predictor.model.layer import GPTJLayer  # noqa: E402
from gptj_predictor.model.layer_norm import LayerNorm  # noqa: E402
from gptj_predictor.model.prefill_plan import PrefillChunk  # noqa: E402
from gptj_predictor.model.product_choice import describe  # noqa: E402
from gptj_predictor.model.projections import MakeProjection, make_projection  # noqa: E402
from gptj_predictor.model.quantization import quantize, scales_of  # noqa: E402
from gptj_predictor.model.step_inputs import StepInputs  # noqa: E402
from gptj_predictor.model.torch_attention import TorchAttention  # noqa: E402
from gptj_predictor.model.triton_linear import cuts, projection  # noqa: E402
from gptj_predictor.model.triton_linear.choice import choose_products  # noqa: E402
from gptj_predictor.model.triton_linear.cuts import (  # noqa: E402
    CUBLAS,
    Card,
    Cut,
    ProductShape,
    Way,
    candidates,
    choose,
    scratch_size,
    split,
)
from gptj_predictor.model.triton_linear.kernels import (  # noqa: E402
    SplitScratch,
    dequantize,
    multiply,
)
from gptj_predictor.model.triton_linear.projection import (  # noqa: E402
    TritonProjection,
    Workspace,
)
from tests.support.projections import triton_projections  # noqa: E402
from tests.support.triton_interpreter import correct_bfloat16  # noqa: E402

pytestmark = pytest.mark.slow

DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
AMPERE, TURING = Card("an Ampere", 80, 4), Card("a Turing", 75, 4)
#: Of values of about 1: a rounding of the result, and some of fp32's.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 6e-4, torch.bfloat16: 5e-3}


@pytest.fixture(autouse=True)
def _corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    correct_bfloat16(monkeypatch)


def named(value: object) -> str | None:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def cut_of(tensor_cores: bool, block_rows: int, splits: int = 1) -> Cut:
    return Cut(tensor_cores, block_rows, 16, 32, 4, 3, 255, splits)


@dataclass(kw_only=True)
class Case:
    """A product whose rows lie in a wider poisoned matrix, and so does its result."""

    rows: int = 3
    outputs: int = 35
    inputs: int = 75
    dtype: torch.dtype = torch.float16
    quantized: bool = False
    bias: bool = True
    norm: bool = False
    gelu_from: int | None = None
    add: bool = False
    seed: int = 0
    scratch: SplitScratch | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        x = torch.full((self.rows, self.inputs + 8), math.nan, dtype=self.dtype)
        self.x = x[:, : self.inputs].copy_(normal(self.rows, self.inputs) + 0.5).to(DEVICE)
        weight = normal(self.outputs, self.inputs) / math.sqrt(self.inputs)
        self.scale = None
        if self.quantized:
            scale = (weight.abs().amax(1) / 127).float()
            steps = (weight / scale[:, None]).round().clamp(-127, 127)
            self.weight, self.scale = steps.to(DEVICE, torch.int8), scale.to(DEVICE)
        else:
            self.weight = weight.to(DEVICE, self.dtype)
        self.biases = normal(self.outputs).to(DEVICE, self.dtype) if self.bias else None
        gain, shift = (normal(self.inputs).to(DEVICE, self.dtype) for _ in range(2))
        self.norms = LayerNorm(gain, shift, 1e-5) if self.norm else None
        self.wide = torch.full((self.rows, self.outputs + 8), math.nan).to(DEVICE, self.dtype)
        self.out = self.wide[:, 8:]
        self.residual = normal(self.rows, self.outputs).to(DEVICE, self.dtype)

    @property
    def shape(self) -> ProductShape:
        return ProductShape(self.rows, self.outputs, self.inputs, self.dtype, self.weight.dtype)

    def run(self, cut: Cut) -> torch.Tensor:
        residual = None
        if self.add:
            residual = self.out.copy_(self.residual)
        if self.scratch is None:
            self.scratch = SplitScratch(100_000, 1000, DEVICE)
            self.scratch.sums.fill_(math.nan)
        multiply(
            *(self.x, self.weight, self.out, cut),
            scale=self.scale,
            bias=self.biases,
            norm=self.norms,
            gelu_from=self.gelu_from,
            residual=residual,
            scratch=self.scratch,
        )
        assert self.wide[:, :8].isnan().all(), "wrote outside of its columns"
        assert not self.scratch.arrivals.any(), "the next launch would count wrong"
        return self.out.clone()

    def expected(self) -> torch.Tensor:
        x = self.x.double()
        if self.norms:
            gain, shift = self.norms.weight.double(), self.norms.bias.double()
            x = functional.layer_norm(x, [self.inputs], gain, shift, self.norms.epsilon)
        y = x @ self.weight.double().t()
        if self.scale is not None:
            y *= self.scale.double()
        if self.biases is not None:
            y += self.biases.double()
        if self.gelu_from is not None:
            y[:, self.gelu_from :] = functional.gelu(y[:, self.gelu_from :], approximate="tanh")
        return y + self.residual.double() if self.add else y

    def check(self, cut: Cut) -> None:
        tolerance = TOLERANCE[self.dtype] * (3 if self.norm else 1)
        torch.testing.assert_close(
            self.run(cut).double(), self.expected(), rtol=tolerance, atol=tolerance
        )


ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 31, 32, 33, 64]


@pytest.mark.parametrize("quantized", [False, True], ids=["plain", "int8"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(
    "cut",
    [cut_of(False, 4), cut_of(False, 8, 2), cut_of(True, 8, 2), cut_of(True, 32, 3)],
    ids=str,
)
def test_every_number_of_rows(cut: Cut, rows: int, quantized: bool) -> None:
    Case(rows=rows, quantized=quantized, gelu_from=17, add=True, seed=rows).check(cut)


@pytest.mark.parametrize("quantized", [False, True], ids=["plain", "int8"])
@pytest.mark.parametrize("dtype", DTYPES, ids=named)
@pytest.mark.parametrize("inputs", [4, 33, 64, 130])
@pytest.mark.parametrize("outputs", [1, 16, 33])
def test_every_tail(outputs: int, inputs: int, dtype: torch.dtype, quantized: bool) -> None:
    case = Case(outputs=outputs, inputs=inputs, dtype=dtype, quantized=quantized, norm=inputs > 32)
    for splits in (1, 3):
        case.check(cut_of(False, 4, splits))
        if dtype is not torch.float32:
            case.check(cut_of(True, 8, splits))


@pytest.mark.parametrize("tensor_cores", [False, True])
@pytest.mark.parametrize("quantized", [False, True], ids=["plain", "int8"])
@pytest.mark.parametrize("add", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("gelu_from", [None, 0, 20])
@pytest.mark.parametrize("norm", [False, True], ids=["", "norm"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_everything_before_and_after(
    bias: bool,
    norm: bool,
    gelu_from: int | None,
    add: bool,
    quantized: bool,
    tensor_cores: bool,
) -> None:
    case = Case(rows=2, bias=bias, norm=norm, gelu_from=gelu_from, add=add, quantized=quantized)
    for splits in (1, 2):
        case.check(cut_of(tensor_cores, 8 if tensor_cores else 2, splits))


@pytest.mark.parametrize("gelu_from", [1, 15, 16, 17, 34, 35])
def test_gelu_begins_anywhere(gelu_from: int) -> None:
    Case(gelu_from=gelu_from).check(cut_of(False, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=named)
@pytest.mark.parametrize("quantized", [False, True], ids=["plain", "int8"])
@pytest.mark.parametrize("card", [AMPERE, TURING], ids=lambda card: card.name)
@pytest.mark.parametrize("rows", [1, 4, 13, 32, 64, 130])
def test_cuts_of_the_product(rows: int, card: Card, quantized: bool, dtype: torch.dtype) -> None:
    """The cuts that are really launched, with a tail each way."""
    case = Case(rows=rows, outputs=140, inputs=1100, dtype=dtype, quantized=quantized, gelu_from=99)
    for way in candidates(replace(case.shape, rows=cuts.padded_rows(rows)), card):
        if way is not CUBLAS:
            case.check(way)


@pytest.mark.parametrize("spread", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_norm_of_other_sizes(offset: float, spread: float) -> None:
    """A mean far above the deviation, where a difference of squares would have no digits left."""
    case = Case(rows=4, inputs=700, dtype=torch.float32, norm=True)
    case.x.mul_(spread).add_(offset * spread)
    torch.testing.assert_close(
        case.run(cut_of(False, 4)).double(), case.expected(), rtol=2e-3, atol=2e-3
    )


def test_outliers() -> None:
    """A few inputs sixty times as large as the others, as GPT-J's features are."""
    case = Case(rows=8, inputs=512, dtype=torch.bfloat16, quantized=True)
    case.x[:, [3, 77]] *= 60
    expected = case.expected()
    error = (case.run(cut_of(True, 8, 2)).double() - expected).abs().max()
    assert error < 2 * TOLERANCE[torch.bfloat16] * expected.abs().max()


@pytest.mark.skipif(ON_GPU, reason="a GPU's programs have an order of their own")
@pytest.mark.parametrize("tensor_cores", [False, True])
def test_the_order_of_splits_changes_no_bit(
    tensor_cores: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(
        rows=4, outputs=17, inputs=256, dtype=torch.float32 if not tensor_cores else torch.float16
    )
    cut = cut_of(tensor_cores, 8, 8)
    before = case.run(cut)
    assert torch.equal(case.run(cut), before), "a second launch, as of a CUDA graph"
    set_grid_idx = InterpreterBuilder.set_grid_idx
    for order in ([7, 6, 5, 4, 3, 2, 1, 0], [3, 0, 7, 1, 2, 6, 4, 5]):
        monkeypatch.setattr(
            InterpreterBuilder,
            "set_grid_idx",
            lambda self, x, y, z, order=order: set_grid_idx(self, x, order[y], z),
        )
        assert torch.equal(case.run(cut), before)


def test_no_rows() -> None:
    case = Case(rows=0)
    assert case.run(cut_of(True, 8)).shape == (0, 35)


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_any_product(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    tensor_cores = dtype is not torch.float32 and data.draw(st.booleans(), "tensor cores")
    outputs = data.draw(st.integers(1, 70), "outputs")
    case = Case(
        rows=data.draw(st.integers(1, 20), "rows"),
        outputs=outputs,
        inputs=data.draw(st.integers(2, 300), "inputs"),
        dtype=dtype,
        quantized=data.draw(st.booleans(), "quantized"),
        bias=data.draw(st.booleans(), "bias"),
        norm=data.draw(st.booleans(), "norm"),
        gelu_from=data.draw(st.none() | st.integers(0, outputs), "gelu from"),
        add=data.draw(st.booleans(), "add"),
        seed=data.draw(st.integers(0, 2**32), "seed"),
    )
    blocks = [8, 16, 32] if tensor_cores else [1, 2, 4, 8]
    splits = data.draw(st.integers(1, 9), "splits")
    case.check(cut_of(tensor_cores, data.draw(st.sampled_from(blocks), "block"), splits))


@pytest.mark.parametrize("dtype", DTYPES, ids=named)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (3, 4096), (2, 5000)])
def test_dequantize(outputs: int, inputs: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(inputs)
    weight = torch.randint(-128, 128, (outputs, inputs), generator=generator, dtype=torch.int8)
    scale = torch.rand(outputs, generator=generator)
    out = torch.full((outputs, inputs), math.nan, dtype=dtype, device=DEVICE)
    dequantize(weight.to(DEVICE), scale.to(DEVICE), out)
    expected = weight.float() * scale[:, None]
    assert torch.equal(out.cpu(), expected.to(dtype))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda case: setattr(case, "x", case.x[:, 1:]), r"x must be \[T, 75\], not \[3, 74\]"),
        (lambda case: setattr(case, "weight", case.weight.t().contiguous().t()), "contiguous"),
        (lambda case: setattr(case, "weight", case.weight.bfloat16()), "must be of torch.float16"),
        (lambda case: setattr(case, "weight", case.weight.to(torch.int8)), "has a scale"),
        (lambda case: setattr(case, "scale", torch.ones(35)), "has a scale"),
        (lambda case: setattr(case, "x", case.x.t().contiguous().t()), "each row of x"),
        (lambda case: setattr(case, "out", case.out[:, 1:]), r"out must be \[3, 35\]"),
        (lambda case: setattr(case, "out", case.out.t().contiguous().t()), "each row of x"),
        (lambda case: setattr(case, "scratch", SplitScratch(1, 9, DEVICE)), "a larger scratch"),
    ],
)
def test_what_it_refuses(change: Callable[[Case], None], message: str) -> None:
    case = Case()
    change(case)
    with pytest.raises(ValueError, match=message):
        case.run(cut_of(False, 4, 2))


def test_tensor_cores_refuse_fp32() -> None:
    with pytest.raises(ValueError, match="not float32"):
        Case(dtype=torch.float32).run(cut_of(True, 8))


# ---- which way is taken


def shape_of(
    rows: int, *, quantized: bool, outputs: int = 28672, inputs: int = 4096
) -> ProductShape:
    weight = torch.int8 if quantized else torch.float16
    return ProductShape(rows, outputs, inputs, torch.float16, weight)


def test_without_a_measurement_16_bit_weights_are_cublas_and_int8_ones_a_kernel() -> None:
    for card in (AMPERE, TURING):
        for rows in (1, 2, 4, 8):
            assert choose(shape_of(rows, quantized=False), card, None) is CUBLAS
            way = choose(shape_of(rows, quantized=True), card, None)
            assert way is not None
            assert way.tensor_cores is (card is AMPERE)
        assert choose(shape_of(64, quantized=True), card, None) is CUBLAS


def test_the_quickest_is_taken() -> None:
    shape = shape_of(1, quantized=True)
    ways = candidates(shape, AMPERE)
    assert len(ways) == len(set(ways)) == 3
    for best in ways:
        asked: list[Way] = []

        def seconds(way: Way, best: Way = best, asked: list[Way] = asked) -> float:
            asked.append(way)
            return 1.0 if way == best else 2.0

        assert choose(shape, AMPERE, seconds) == best
        assert asked == list(ways)


def test_what_a_card_has_measured_is_not_measured_again() -> None:
    shape, known = shape_of(2, quantized=False), "tensor cores, 8 rows"
    key = (AMPERE.name, "float16", "float16", 28672, 4096, 2)

    def seconds(way: Way) -> float:
        raise AssertionError(way)

    way = choose(shape, AMPERE, seconds, {key: known})
    assert way == split(Cut.of(known), shape, AMPERE.processors)
    assert choose(shape, AMPERE, seconds, {key: "cuBLAS"}) is CUBLAS
    assert choose(shape, TURING, None, {key: known}) is CUBLAS


def test_what_was_measured_names_a_configuration() -> None:
    names = {name.removeprefix("_multiply ") for name in KERNEL_CONFIGS if "_multiply" in name}
    assert {*MEASURED_PRODUCTS.values()} <= {*names, "cuBLAS"}


def test_there_is_no_choice_where_there_is_no_kernel() -> None:
    def seconds(way: Way) -> float:
        raise AssertionError(way)

    assert choose(shape_of(16, quantized=False), AMPERE, seconds) is CUBLAS
    assert choose(shape_of(1024, quantized=True), AMPERE, seconds) is CUBLAS
    assert choose(shape_of(64, quantized=True), TURING, seconds) is CUBLAS


@settings(deadline=None, max_examples=150)
@given(
    rows=st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128, 256, 512]),
    outputs=st.integers(1, 60_000),
    inputs=st.integers(1, 30_000),
    quantized=st.booleans(),
    card=st.builds(
        Card, st.just("a card"), st.sampled_from([70, 75, 80, 90, 120]), st.integers(1, 200)
    ),
)
def test_splits_fit_the_scratch(
    rows: int, outputs: int, inputs: int, quantized: bool, card: Card
) -> None:
    values, tiles = scratch_size(card.processors)
    for way in candidates(
        shape_of(rows, quantized=quantized, outputs=outputs, inputs=inputs), card
    ):
        if way is CUBLAS or way.splits == 1:
            continue
        # Fewer rows than the choice was made for do not take more.
        for fewer in {rows // 2 + 1, rows}:
            shape = shape_of(fewer, quantized=quantized, outputs=outputs, inputs=inputs)
            assert way.scratch_values(shape) <= values
            assert way.tiles(shape) <= tiles
        assert way.splits <= 32
        assert -(-inputs // way.block_inputs) >= 4 * way.splits


def test_splits_keep_a_gpu_busy() -> None:
    h200, cut = 132, candidates(shape_of(8, quantized=True), AMPERE)[0]
    assert cut is not None
    unsplit = replace(cut, splits=1)
    assert split(unsplit, shape_of(8, quantized=True), h200).splits == 2
    narrow = shape_of(8, quantized=True, outputs=4096, inputs=20480)
    assert split(unsplit, narrow, h200).splits == 16
    assert split(unsplit, shape_of(8, quantized=True, outputs=50400), h200).splits == 1


# ---- projections


@pytest.fixture(params=[AMPERE, TURING], ids=lambda card: card.name)
def shared(request: pytest.FixtureRequest) -> Workspace:
    return Workspace(request.param, DEVICE)


def projection_of(case: Case, shared: Workspace) -> TritonProjection:
    assert case.biases is not None
    return TritonProjection(case.weight, case.biases, case.scale, shared)


@pytest.mark.parametrize("quantized", [False, True], ids=["plain", "int8"])
@pytest.mark.parametrize("rows", [1, 8, 9, 33])
@pytest.mark.parametrize(
    ("norm", "gelu_from", "add"),
    [(False, None, False), (True, 20, False), (False, None, True), (True, 20, True)],
)
def test_projection(
    norm: bool,
    gelu_from: int | None,
    add: bool,
    rows: int,
    quantized: bool,
    shared: Workspace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a kernel and by cuBLAS, which takes the dequantized weight in parts of some outputs."""
    monkeypatch.setattr(projection, "_DEQUANTIZED_BYTES", 10 * 300 * 2)
    case = Case(
        rows=rows,
        inputs=300,
        quantized=quantized,
        norm=norm,
        gelu_from=gelu_from,
        add=add,
        seed=rows,
    )
    product = projection_of(case, shared)
    for way in {product.way(rows), CUBLAS, *candidates(case.shape, shared.card)}:
        product.choose(cuts.padded_rows(rows), way)
        residual = case.residual.clone() if add else None
        result = product.apply(case.x, norm=case.norms, gelu_from=gelu_from, residual=residual)
        if residual is not None:
            assert result.data_ptr() == residual.data_ptr()
        # Without a kernel there are more roundings: weight, product and activation.
        tolerance = 6 * TOLERANCE[case.dtype]
        torch.testing.assert_close(result.double(), case.expected(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("quantized", [False, True], ids=["plain", "int8"])
@pytest.mark.parametrize("rows", [1, 12, 40])
def test_projection_as_the_network_calls_it(rows: int, quantized: bool, shared: Workspace) -> None:
    case = Case(rows=rows, quantized=quantized)
    product, residual, expected = projection_of(case, shared), case.residual, case.expected()
    assert case.biases is not None

    def check(result: torch.Tensor, wanted: torch.Tensor) -> None:
        tolerance = 6 * TOLERANCE[case.dtype]  # by cuBLAS the weights are rounded too
        torch.testing.assert_close(result.double(), wanted, rtol=tolerance, atol=tolerance)

    check(product(case.x), expected)
    added = residual.clone()
    assert product.add_to(added, case.x).data_ptr() == added.data_ptr()
    check(added, expected + residual.double())
    added = residual.clone()
    product.accumulate(added, case.x)
    check(added, expected + residual.double() - case.biases.double())
    product.write(case.x, case.out)
    check(case.out, expected)
    assert case.wide[:, :8].isnan().all()


@pytest.mark.parametrize("gelu_from", [None, 20])
@pytest.mark.parametrize("rows", [2, 40])
def test_a_residual_is_kept_where_there_is_memory_for_the_result(
    rows: int, gelu_from: int | None, shared: Workspace
) -> None:
    case = Case(rows=rows, quantized=True, gelu_from=gelu_from, add=True)
    residual, out = case.residual.clone(), torch.empty_like(case.residual)
    product = projection_of(case, shared)
    for way in (CUBLAS, product.way(rows)):
        product.choose(cuts.padded_rows(rows), way)
        result = product.apply(case.x, gelu_from=gelu_from, residual=residual, out=out)
        assert result is out
        assert torch.equal(residual, case.residual)
        torch.testing.assert_close(out.double(), case.expected(), rtol=4e-3, atol=4e-3)


def layer_of(shared: Workspace, seed: int) -> GPTJLayer:
    generator = torch.Generator().manual_seed(seed)

    def projection(outputs: int, inputs: int) -> TritonProjection:
        weight, bias = torch.randn(outputs, inputs, generator=generator), torch.zeros(outputs)
        scales = scales_of(weight)
        return TritonProjection(quantize(weight, scales), bias.half(), scales, shared)

    norm = LayerNorm(torch.ones(16).half(), torch.zeros(16).half(), 1e-5)
    return GPTJLayer(2, norm, projection(56, 16), projection(16, 24), "gelu_new", torch.relu_)


@pytest.mark.skipif(ON_GPU, reason="its tensors are on the CPU")
def test_products_are_measured_together_and_choose_alike(shared: Workspace) -> None:
    layers = [layer_of(shared, seed) for seed in range(3)]
    head = projection_of(Case(outputs=5, inputs=16), shared)
    calls: list[int] = []

    def seconds(work: list[Callable[[], object]]) -> float:
        calls.append(len(work))
        return float(-len(calls))  # the last one asked for is the quickest

    choices = choose_products(layers, layers[0].norm, head, seconds)
    assert set(calls) == {1, 3}
    assert [(one.product, one.rows) for one in choices] == [
        (product, 2**power)
        for product, powers in (("project_in", 10), ("project_out", 10), ("head", 4))
        for power in range(powers)
    ]
    for one in choices:
        product: Any = head if one.product == "head" else getattr(layers[0], one.product)
        quantized = one.product != "head"
        shape = ProductShape(
            *(one.rows, one.outputs, one.inputs, torch.float16),
            torch.int8 if quantized else torch.float16,
        )
        last = candidates(shape, shared.card)[-1]
        assert one.way == ("cuBLAS" if last is CUBLAS else str(last))
        assert product.way(one.rows) == last
        # Where there is no choice, nothing is measured.
        assert len(one.seconds) == len(candidates(shape, shared.card)) or not one.seconds
    for layer in layers[1:]:
        for rows in (1, 8, 64):
            for name in ("project_in", "project_out"):
                others: Any = getattr(layer, name), getattr(layers[0], name)
                assert others[0].way(rows) == others[1].way(rows)
    text = describe(choices)
    assert text.startswith("cpu project_in: ")
    assert "; cpu head: kernel for 1/2/4/8 rows" in text


def test_a_projection_wants_a_scale_for_int8_alone(shared: Workspace) -> None:
    weight, bias = torch.zeros(4, 4, dtype=torch.int8), torch.zeros(4, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"torch\.int8 has a scale"):
        TritonProjection(weight, bias, None, shared)
    with pytest.raises(ValueError, match=r"torch\.float16 has a scale"):
        TritonProjection(weight.half(), bias, torch.ones(4), shared)


@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_a_layer_with_int8_weights(tokens: int, shared: Workspace) -> None:
    """A prompt through the network's own layer, against one with the same values in fp32."""
    config = NetworkConfig(vocab_size=50, n_positions=64, n_embd=32, n_head=2, rotary_dim=8)
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE)

    exact: dict[str, torch.Tensor] = {"norm.weight": normal(32), "norm.bias": normal(32)}
    int8 = {name: weight.half() for name, weight in exact.items()}
    for name, outputs, inputs in (("project_in", 224, 32), ("project_out", 32, 160)):
        weight, bias = normal(outputs, inputs).half() / 8, normal(outputs).half()
        scales = scales_of(weight)
        int8 |= {f"{name}.weight": quantize(weight, scales), f"{name}.scale": scales}
        exact[f"{name}.weight"] = int8[f"{name}.weight"].float() * scales[:, None]
        int8[f"{name}.bias"], exact[f"{name}.bias"] = bias, bias.float()
    exact = {
        name: weight.half().float() if "norm" in name else weight for name, weight in exact.items()
    }

    def run(
        weights: dict[str, torch.Tensor], dtype: torch.dtype, make: MakeProjection
    ) -> torch.Tensor:
        named = {f"a.{name}": weight for name, weight in weights.items()}
        layer = GPTJLayer.of(config, named, "a", make)
        cache = PagedKVCache(
            devices=[DEVICE], pages=8, page_size=8, heads=2, head_size=16, dtype=dtype
        )
        places = torch.arange(tokens, device=DEVICE)
        step = StepInputs(
            token_ids=places,
            positions=places,
            slot_mapping=places + 8,
            page_tables=places.new_zeros(0, 8).int(),
            context_lengths=places.new_zeros(0).int(),
            contexts=[],
            chunks=[PrefillChunk(tokens, [])],
        )
        residual = rows.to(dtype, copy=True)
        attention = TorchAttention()
        rotations = attention.rotations(rotary_table(64, 8, DEVICE), places)
        return attention.layer(layer, residual, rotations, cache.layer(0), step)

    rows = normal(tokens, 32).half()
    expected = run(exact, torch.float32, make_projection)
    result = run(int8, torch.float16, triton_projections(shared)).float()
    torch.testing.assert_close(result, expected, rtol=1e-2, atol=1e-2)
    assert not torch.equal(result, expected)

"""The Triton kernels against float64, on a GPU or else in Triton's interpreter."""

from __future__ import annotations

import importlib
import math
import os
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")

triton: Any = pytest.importorskip("triton")

if not ON_GPU and isinstance(triton.language.sum, triton.JITFunction):
    # Triton was imported before, by transformers, and its own functions are not interpreted yet.
    importlib.reload(triton.language.standard)
    importlib.reload(triton.language)

from triton.runtime.interpreter import (  # type: ignore[import-untyped]  # noqa: E402
    interpreter_builder,
)

from gptj_predictor.model.triton import decode_attention as kernels  # noqa: E402
from gptj_predictor.model.triton.norm import normalize_and_add  # noqa: E402
from gptj_predictor.model.triton.rotary import rotate_store_activate  # noqa: E402
from tests.support import triton_interpreter  # noqa: E402, F401  (quicker)

# Rotating what is then masked: numpy sees infinity times zero.
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.slow,
]

DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SPLITS = [1, 2, 4, 8, 32]
#: One rounding to the dtype, and some of fp32's. The interpreter rounds to bf16 towards zero.
TOLERANCE = {
    torch.float32: (1e-5, 1e-5),
    torch.float16: (6e-4, 1e-5),
    torch.bfloat16: (5e-3 if ON_GPU else 8e-3, 1e-5),
}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    relative, absolute = TOLERANCE[dtype]
    torch.testing.assert_close(actual.double(), expected.double(), rtol=relative, atol=absolute)


def dtype_name(value: object) -> str | None:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def poison(generator: torch.Generator, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    """NaNs and infinities of both signs: none survives a sum unseen."""
    kinds = torch.tensor([math.nan, math.inf, -math.inf], dtype=dtype)
    return kinds[torch.randint(3, shape, generator=generator)].to(DEVICE)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """For comparisons in which a NaN equals itself."""
    return tensor.contiguous().view(torch.int16 if tensor.itemsize == 2 else torch.int32)


def empty_caches(generator: torch.Generator, layout: str, dtype: torch.dtype, *shape: int) -> Any:
    """A tensor full of poison, and keys and values within it."""
    pages, page_size, heads, head_size = shape
    if layout == "layers":
        whole = poison(generator, 2, 2, *shape, dtype=dtype)
        return whole, whole[1, 0], whole[1, 1]
    if layout == "pairs of pages":
        whole = poison(generator, pages, 2, page_size, heads, head_size, dtype=dtype)
        return whole, whole[:, 0], whole[:, 1]
    whole = poison(generator, pages, page_size, 2, heads, head_size, dtype=dtype)
    return whole, whole[:, :, 0], whole[:, :, 1]


LAYOUTS = ["layers", "pairs of pages", "pairs of rows"]


@dataclass(kw_only=True)
class Case:
    """What the cases of both kernels have in common."""

    page_size: int = 16
    heads: int = 2
    head_size: int = 64
    dtype: torch.dtype = torch.float32
    layout: str = "layers"
    seed: int = 0


@dataclass
class Decoding(Case):
    """Sequences in a poisoned cache, where only the slots within their lengths hold numbers."""

    lengths: list[int]
    shared_pages: int = 0
    sharpness: float = 2.0
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = generator = torch.Generator().manual_seed(self.seed)
        counts = [-(-length // self.page_size) for length in self.lengths]
        pages = 2 + sum(counts)
        shape = (pages, self.page_size, self.heads, self.head_size)
        _, self.keys, self.values = empty_caches(generator, self.layout, self.dtype, *shape)
        order = torch.randperm(pages, generator=generator).tolist()
        nobody = order.pop()
        width = max(counts) + 2
        tables, first = [], order[: self.shared_pages]
        for length, count in zip(self.lengths, counts, strict=True):
            own = (first + [order.pop() for _ in range(count)])[:count]
            tables.append(own + [nobody] * (width - count))
            for place in range(length):
                row = own[place // self.page_size], place % self.page_size
                for cache in (self.keys, self.values):
                    if not cache[row].isfinite().all():
                        cache[row] = normal(generator, self.heads, self.head_size).to(cache)
        # Rows of a wider table and of a wider projection.
        self.tables = torch.tensor(tables, dtype=torch.int32, device=DEVICE)[:, :-1]
        wide = poison(generator, len(tables), 3 * self.heads * self.head_size + 8, dtype=self.dtype)
        self.queries = self.columns(wide)
        self.queries.copy_(self.sharpness * normal(generator, *self.queries.shape))

    def columns(self, wide: torch.Tensor) -> torch.Tensor:
        """The second of three projections, its heads in every other place."""
        size = self.heads * self.head_size
        return wide[:, size : 3 * size].unflatten(1, (self.heads, 2, -1))[:, :, 1]

    def run(self, splits: int) -> torch.Tensor:
        shape = (len(self.lengths), 3 * self.heads * self.head_size + 8)
        wide = poison(self.generator, *shape, dtype=self.dtype)
        before = wide.clone()
        out = self.columns(wide)
        lengths = torch.tensor(self.lengths, dtype=torch.int32, device=DEVICE)
        scratch = kernels.DecodeScratch(
            len(self.lengths) * self.heads * min(abs(splits), 32), self.head_size, DEVICE
        )
        kernels.decode_attention(
            self.queries, self.keys, self.values, self.tables, lengths, out, splits, scratch
        )
        assert not scratch.arrivals.any(), "the next launch would count from elsewhere"
        result = out.clone()
        self.columns(before).copy_(result)
        assert torch.equal(bits(wide), bits(before)), "wrote outside of its columns"
        return result

    def expected(self) -> torch.Tensor:
        rows = []
        for index, length in enumerate(self.lengths):
            pages = self.tables[index].long()
            places = torch.arange(length, device=DEVICE)
            where = pages[places // self.page_size], places % self.page_size
            key, value = self.keys[where].double(), self.values[where].double()
            scores = torch.einsum("hd,thd->ht", self.queries[index].double(), key)
            weights = torch.softmax(scores / math.sqrt(self.head_size), dim=1)
            rows.append(torch.einsum("ht,thd->hd", weights, value))
        return torch.stack(rows)

    def check(self, splits: int) -> None:
        assert_close(self.run(splits), self.expected(), self.dtype)


@pytest.mark.parametrize(
    ("page_size", "head_size", "splits"),
    [(1, 64, 1), (1, 64, 4), (16, 256, 1), (16, 256, 4), (24, 256, 1), (24, 64, 2), (64, 64, 1)],
)
def test_every_tail(page_size: int, head_size: int, splits: int) -> None:
    """Lengths that end everywhere in a page and in a block of tokens, all in one batch."""
    lengths = list(range(1, 2 * page_size + 2))
    case = Decoding(lengths, page_size=page_size, heads=1, head_size=head_size, seed=page_size)
    case.check(splits)


@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("head_size", [16, 64, 256])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_dtypes_and_head_sizes(dtype: torch.dtype, head_size: int, splits: int) -> None:
    lengths, seed = [70, 5], splits + head_size
    Decoding(lengths, heads=1, head_size=head_size, dtype=dtype, seed=seed).check(splits)


@pytest.mark.parametrize("sequences", [1, 2, 3, 4, 5, 7, 8, 9])
def test_batch_sizes(sequences: int) -> None:
    lengths = [1 + 37 * index % 50 for index in range(sequences)]
    case = Decoding(lengths, page_size=8, heads=3, head_size=256, dtype=torch.float16)
    case.check(1 if sequences > 4 else 4)


@pytest.mark.parametrize("splits", [1, 8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strided_cache(layout: str, splits: int) -> None:
    Decoding([40, 17], layout=layout, head_size=256, dtype=torch.float16).check(splits)


@pytest.mark.parametrize("splits", [1, 4])
def test_sequences_that_share_pages(splits: int) -> None:
    case = Decoding([60, 48, 50, 32, 7], shared_pages=2, head_size=64)
    assert torch.equal(case.tables[0, :2], case.tables[1, :2])
    case.check(splits)


@pytest.mark.parametrize("splits", SPLITS)
def test_one_token_is_its_own_value(splits: int) -> None:
    """More splits than tokens, and the one weight exactly 1."""
    case = Decoding([1, 1], head_size=64, dtype=torch.float16)
    page = case.tables[:, 0].long()
    assert torch.equal(case.run(splits), case.values[page, 0])


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("sharpness", [0.0, 60.0, 3000.0])
def test_flat_and_steep_scores(sharpness: float, splits: int) -> None:
    """Exponents far outside of what fp32 holds, so each step's and each split's maximum matters."""
    case = Decoding([90, 64, 33], head_size=256, sharpness=sharpness, seed=int(sharpness))
    torch.testing.assert_close(case.run(splits).double(), case.expected(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("splits", [1, 4])
def test_padding_rows(splits: int) -> None:
    """Rows of no tokens, as in a captured graph of a larger batch, do no harm."""
    case = Decoding([20, 0, 3, 0], head_size=64)
    assert_close(case.run(splits)[::2], case.expected()[::2], case.dtype)


def test_splits_agree() -> None:
    case = Decoding([100, 3], heads=1, head_size=256)
    whole = case.run(1)
    for splits in SPLITS[1:]:
        assert_close(case.run(splits), whole, case.dtype)


@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_any_decoding(data: st.DataObject) -> None:
    page_size = data.draw(st.one_of(st.sampled_from([1, 16, 24, 64]), st.integers(1, 40)), "page")
    case = Decoding(
        lengths=data.draw(st.lists(st.integers(1, 90), min_size=1, max_size=3), "lengths"),
        page_size=page_size,
        heads=data.draw(st.integers(1, 2), "heads"),
        head_size=data.draw(st.sampled_from([16, 32, 64, 128, 256]), "head size"),
        dtype=data.draw(st.sampled_from(DTYPES), "dtype"),
        layout=data.draw(st.sampled_from(LAYOUTS), "layout"),
        seed=data.draw(st.integers(0, 2**32), "seed"),
    )
    case.check(data.draw(st.sampled_from(SPLITS), "splits"))


@pytest.mark.parametrize("seed", range(4))
def test_whoever_arrives_last_merges_in_order(monkeypatch: Any, seed: int) -> None:
    """Bit for bit the same whatever the order in which the programs run."""
    if ON_GPU:
        pytest.skip("the GPU decides on the order")
    case = Decoding([100, 3, 70], heads=2, head_size=64, dtype=torch.float16)
    ordered = case.run(8)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(8, generator=generator).tolist()
    ran = []

    def shuffled(x: int, y: int, z: int) -> None:
        ran.append(order[y])
        interpreter_builder.grid_idx = (x, order[y], z)

    monkeypatch.setattr(interpreter_builder, "set_grid_idx", shuffled)
    assert torch.equal(bits(case.run(8)), bits(ordered))
    assert len(ran) == 8 * 2 * 3


def test_scratch_is_large_enough() -> None:
    """Whatever the batch, for the splits that are chosen."""
    for processors in (1, 40, 132):
        scratch = kernels.DecodeScratch.enough_for(processors, 16, DEVICE)
        for sequences in range(1, 600):
            for heads in (1, 3, 16):
                splits = kernels.splits_for(sequences, heads, processors)
                assert splits == 1 or sequences * heads * splits <= scratch.programs


def test_too_little_scratch() -> None:
    case = Decoding([3], head_size=64)
    scratch = kernels.DecodeScratch(3, 64, DEVICE)
    lengths = torch.tensor([3], dtype=torch.int32, device=DEVICE)
    with pytest.raises(ValueError, match="1 sequences of 2 heads in 2 splits"):
        kernels.decode_attention(
            case.queries, case.keys, case.values, case.tables, lengths, case.queries, 2, scratch
        )


@dataclass
class Rotating(Case):
    """Tokens whose queries, keys, values and MLP values are slices of one projection."""

    tokens: int = 3
    rotary_dim: int = 16
    inner: int = 24
    gelu: bool = True

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        size = 3 * self.heads * self.head_size
        self.wide = 3 * normal(generator, self.tokens, 8 + size + self.inner + 3)
        self.wide = self.wide.to(DEVICE, self.dtype)
        self.projected = self.wide[:, 8:-3]
        qkv = self.projected[:, :size].unflatten(1, (3, self.heads, self.head_size))
        self.queries, self.new_keys, self.new_values = qkv.unbind(1)
        self.mlp = self.projected[:, size:]
        for heads in (self.queries, self.new_keys, self.new_values):
            # What is not rotated has to pass through bit for bit, whatever it is.
            heads[:, ::2, self.rotary_dim :] = torch.inf
        angles = 7 * normal(generator, 11, self.rotary_dim // 2)
        self.exact = torch.polar(torch.ones_like(angles), angles).to(DEVICE)
        self.rotations = self.exact.to(torch.complex64)
        self.positions = torch.randint(11, (self.tokens,), generator=generator).to(DEVICE)
        pages = -(-self.tokens // self.page_size) + 2
        slots = torch.randperm(pages * self.page_size, generator=generator)[: self.tokens]
        self.slots = slots.to(DEVICE)
        shape = (pages, self.page_size, self.heads, self.head_size)
        self.caches, self.keys, self.values = empty_caches(
            generator, self.layout, self.dtype, *shape
        )

    def expected(self, heads: torch.Tensor) -> torch.Tensor:
        """Rotated in float64."""
        pairs = heads[..., : self.rotary_dim].double().unflatten(-1, (-1, 2)).contiguous()
        turns = self.exact[self.positions][:, None]
        turned = torch.view_as_real(torch.view_as_complex(pairs) * turns)
        result = heads.double()
        result[..., : self.rotary_dim] = turned.flatten(-2)
        return result

    def close(self, actual: torch.Tensor, expected: torch.Tensor) -> None:
        rotary = slice(None, self.rotary_dim)
        assert_close(actual[..., rotary], expected[..., rotary], self.dtype)
        rest = slice(self.rotary_dim, None)
        assert torch.equal(bits(actual[..., rest]), bits(expected[..., rest].to(self.dtype)))

    def run(self) -> None:
        rotate_store_activate(
            self.projected,
            self.rotations,
            self.positions,
            self.slots,
            self.keys,
            self.values,
            gelu=self.gelu,
        )

    def check(self) -> None:
        queries, keys = self.expected(self.queries), self.expected(self.new_keys)
        mlp = torch.nn.functional.gelu(self.mlp.double(), approximate="tanh")
        wide, caches = self.wide.clone(), self.caches.clone()
        self.run()
        where = self.slots // self.page_size, self.slots % self.page_size
        self.close(self.queries, queries)
        self.close(self.new_keys, keys)
        self.close(self.keys[where], keys)
        assert torch.equal(bits(self.values[where]), bits(self.new_values))
        if self.gelu:
            assert_close(self.mlp, mlp, self.dtype)
        # Put back what was to change: nothing else did.
        size = self.heads * self.head_size
        wide[:, 8 : 8 + 2 * size] = self.projected[:, : 2 * size]
        if self.gelu:
            wide[:, 8 + 3 * size : -3] = self.mlp
        assert torch.equal(bits(self.wide), bits(wide))
        self.keys[where] = self.values[where] = 0
        for cache in (self.keys, self.values):
            offset = cache.storage_offset()
            caches.as_strided(cache.shape, cache.stride(), offset)[where] = 0
        assert torch.equal(bits(self.caches), bits(caches))


@pytest.mark.parametrize("inner", [0, 1, 37, 511, 512, 513, 1100])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_activation(dtype: torch.dtype, inner: int) -> None:
    """Every tail, also of values where tanh is 1 and where exp overflows."""
    case = Rotating(dtype=dtype, inner=inner, seed=inner)
    extremes = torch.tensor([-60.0, 60.0, 0.0, -9.0, 9.0, -0.5], dtype=dtype)[:inner]
    case.mlp[-1, : len(extremes)] = extremes
    case.check()


def test_another_activation_is_left_alone() -> None:
    Rotating(gelu=False).check()


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize(
    ("head_size", "rotary_dim"),
    [(16, 2), (16, 8), (16, 16), (64, 10), (64, 64), (128, 64), (256, 64), (256, 254)],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_rotation(dtype: torch.dtype, head_size: int, rotary_dim: int, tokens: int) -> None:
    Rotating(
        tokens=tokens, rotary_dim=rotary_dim, head_size=head_size, dtype=dtype, seed=tokens
    ).check()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("page_size", [1, 3, 16, 24, 64])
def test_slots(page_size: int, layout: str) -> None:
    Rotating(tokens=9, heads=3, page_size=page_size, layout=layout, seed=page_size).check()


def test_no_tokens() -> None:
    Rotating(tokens=0).check()


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_any_rotation(data: st.DataObject) -> None:
    head_size = data.draw(st.sampled_from([16, 32, 64, 128, 256]), "head size")
    Rotating(
        tokens=data.draw(st.integers(1, 6), "tokens"),
        heads=data.draw(st.integers(1, 4), "heads"),
        head_size=head_size,
        rotary_dim=2 * data.draw(st.integers(1, head_size // 2), "pairs"),
        page_size=data.draw(st.integers(1, 70), "page size"),
        dtype=data.draw(st.sampled_from(DTYPES), "dtype"),
        layout=data.draw(st.sampled_from(LAYOUTS), "layout"),
        inner=data.draw(st.integers(0, 600), "inner"),
        gelu=data.draw(st.booleans(), "gelu"),
        seed=data.draw(st.integers(0, 2**32), "seed"),
    ).check()


@pytest.mark.parametrize("stride", [3 * 2 * 2 * 16, 2**30])
def test_rotated_then_attended(stride: int) -> None:
    """The two kernels agree on where slots and pages lie, also far beyond 32 bits."""
    generator = torch.Generator().manual_seed(5)
    heads, head_size, page_size, tokens, pages = 2, 16, 3, 8, 3
    # On a CPU, memory that is not written costs nothing.
    size = (pages - 1) * stride + 2 * page_size * heads * head_size
    cache = torch.empty(size, dtype=torch.float16, device=DEVICE)
    shape, steps = (pages, page_size, heads, head_size), (stride, 2 * heads * head_size, head_size)
    keys = cache.as_strided(shape, (*steps, 1))
    values = cache.as_strided(shape, (*steps, 1), heads * head_size)
    table = torch.tensor([2, 0, 1], device=DEVICE)
    qkv = normal(generator, tokens, 3, heads, head_size).half().to(DEVICE)
    query, key, value = qkv.unbind(1)
    still = torch.ones(tokens, 4, dtype=torch.complex64, device=DEVICE)
    places = torch.arange(tokens, device=DEVICE)
    slots = table[places // page_size] * page_size + places % page_size
    rotate_store_activate(qkv.flatten(1), still, places, slots, keys, values, gelu=True)
    out = torch.full_like(query[-1:], torch.nan)
    lengths = torch.tensor([tokens], dtype=torch.int32, device=DEVICE)
    scratch = kernels.DecodeScratch(4, head_size, DEVICE)
    kernels.decode_attention(query[-1:], keys, values, table[None].int(), lengths, out, 2, scratch)
    weights = torch.einsum("hd,thd->ht", query[-1].double(), key.double()).div(4).softmax(1)
    assert_close(out[0], torch.einsum("ht,thd->hd", weights, value.double()), out.dtype)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Decoding([3], head_size=24), "no kernel for heads of 24"),
        (Decoding([3], head_size=512), "no kernel for heads of 512"),
    ],
)
def test_unsupported_heads(case: Decoding, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        case.run(1)


@pytest.mark.parametrize("splits", [-1, 0, 3, 64])
def test_wrong_splits(splits: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        Decoding([3]).run(splits)


def test_wrong_strides() -> None:
    case = Decoding([3])
    case.values = case.values.clone(memory_format=torch.contiguous_format)[:, ::2]
    with pytest.raises(ValueError, match="same strides"):
        case.run(1)
    case = Decoding([3])
    case.queries = case.queries[..., ::2].repeat_interleave(2, -1).mT.contiguous().mT
    with pytest.raises(ValueError, match="each head's contiguous"):
        case.run(1)
    case = Decoding([3])
    case.tables = case.tables.repeat_interleave(2, 1)[:, ::2]
    with pytest.raises(ValueError, match="page_tables"):
        case.run(1)
    rotating = Rotating()
    rotating.keys = rotating.keys[:, ::2]
    with pytest.raises(ValueError, match="same strides"):
        rotating.run()
    rotating = Rotating()
    rotating.projected = rotating.projected.mT.contiguous().mT
    with pytest.raises(ValueError, match="each token's contiguous"):
        rotating.run()
    rotating = Rotating()
    rotating.rotations = rotating.rotations.mT.contiguous().mT
    with pytest.raises(ValueError, match="must be contiguous"):
        rotating.run()
    with pytest.raises(ValueError, match="no kernel for heads of 24"):
        Rotating(head_size=24).run()


@pytest.mark.parametrize("tokens", [0, 1, 5])
@pytest.mark.parametrize("hidden", [1, 24, 37, 64, 1000, 4096])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_norm(dtype: torch.dtype, hidden: int, tokens: int) -> None:
    generator = torch.Generator().manual_seed(hidden)
    residual = normal(generator, tokens, hidden) * 3 + 5  # far from a mean of 0
    weight, bias, addend = normal(generator, 3, hidden).to(DEVICE, dtype)
    residual = residual.to(DEVICE, dtype)
    exact = residual.double()
    normed = torch.nn.functional.layer_norm(
        exact, [hidden], weight.double(), bias.double(), epsilon := 1e-5
    )
    out = normalize_and_add(residual, weight, bias, epsilon, addend)
    relative, _ = TOLERANCE[dtype]
    torch.testing.assert_close(out.double(), normed, rtol=relative, atol=3e-5)
    assert_close(residual, exact + addend.double(), dtype)


def test_norm_of_strided_rows() -> None:
    residual = torch.zeros(3, 8, device=DEVICE)
    with pytest.raises(ValueError, match="contiguous"):
        normalize_and_add(residual[:, ::2], residual[0], residual[1], 1e-5, residual[2])


def test_supports() -> None:
    sizes = [size for size in range(600) if kernels.supports(size, torch.float16)]
    assert sizes == [16, 32, 64, 128, 256]
    assert all(kernels.supports(64, dtype) for dtype in DTYPES)
    assert not any(kernels.supports(64, dtype) for dtype in (torch.float64, torch.int8))


@given(
    sequences=st.integers(1, 600),
    heads=st.integers(1, 64),
    processors=st.sampled_from([1, 68, 132]),
)
def test_splits_for(sequences: int, heads: int, processors: int) -> None:
    splits = kernels.splits_for(sequences, heads, processors)
    assert splits in (1, 2, 4, 8, 16, 32)
    programs = sequences * heads * splits
    assert programs >= 3 * processors or splits == 32
    assert programs < 6 * processors or splits == 1


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
@pytest.mark.parametrize("splits", [1, 8])
def test_graph_replay(splits: int) -> None:
    """A captured launch, replayed after lengths and tables have grown."""
    case = Decoding([200, 90], head_size=256, dtype=torch.float16)
    out = torch.full_like(case.queries, torch.nan)
    lengths = torch.ones(2, dtype=torch.int32, device=DEVICE)
    scratch = kernels.DecodeScratch(4 * splits, 256, DEVICE)
    inputs = case.queries, case.keys, case.values, case.tables, lengths, out, splits, scratch
    kernels.decode_attention(*inputs)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernels.decode_attention(*inputs)
    lengths.copy_(torch.tensor(case.lengths))
    for _ in range(3):
        out.fill_(torch.nan)
        graph.replay()
        assert_close(out, case.expected(), case.dtype)

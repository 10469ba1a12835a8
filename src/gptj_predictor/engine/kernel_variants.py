"""Every way in which the product launches its Triton kernels, as calls on tensors without memory.

What a kernel is compiled for depends on its arguments' dtypes, on which of them can be divided by
16, and on its constants. The calls here go through the product's own functions, so these follow.
Importing it needs Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch

from gptj_predictor.common.kernel_configs import KERNEL_CONFIGS
from gptj_predictor.engine.decode_inputs import DecodeInputs
from gptj_predictor.engine.decode_step import choose_tokens
from gptj_predictor.model.ahead_of_time import Launch
from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.kv_cache import LayerCache, PagedKVCache
from gptj_predictor.model.layer import GELU, GPTJLayer
from gptj_predictor.model.layer_norm import LayerNorm
from gptj_predictor.model.linear import FloatProjection, Projection
from gptj_predictor.model.projections import KERNEL_DTYPES
from gptj_predictor.model.quantization import WeightQuantization
from gptj_predictor.model.triton.decode_attention import DecodeScratch, decode_attention, supports
from gptj_predictor.model.triton.norm import normalize_and_add
from gptj_predictor.model.triton.rotary import rotate_store_activate
from gptj_predictor.model.triton_check import add_one
from gptj_predictor.model.triton_linear.cuts import Card, Way, candidates
from gptj_predictor.model.triton_linear.in_layer import project_in, project_out
from gptj_predictor.model.triton_linear.projection import TritonProjection, Workspace

#: Any size will do: the kernels are compiled for all of them.
_TOKENS, _PAGES, _POSITIONS = 4, 8, 32
_NOWHERE = torch.device("meta")


@dataclass(frozen=True)
class KernelShape:
    """What the kernels of a network depend on.

    Attributes:
        config: The network's.
        dtype: Of activations and KV cache.
        capability: The card's, 80 for 8.0.
        quantization: Of the weights of products.
        max_rows: Of products; more are left out.
        page_size: Of the KV cache.
    """

    config: NetworkConfig
    dtype: torch.dtype
    capability: int
    quantization: WeightQuantization = "none"
    max_rows: int = 2**31
    page_size: int = 16

    @property
    def head_size(self) -> int:
        """Values per attention head."""
        return self.config.n_embd // self.config.n_head

    @property
    def has_kernels(self) -> bool:
        """Whether kernels may compute the products."""
        return self.quantization == "int8" or self.dtype in KERNEL_DTYPES

    def projected(self, tokens: int = _TOKENS) -> torch.Tensor:
        """What a layer's first product gives."""
        columns = 3 * self.config.n_embd + self.config.inner_size
        return _empty(tokens, columns, dtype=self.dtype)

    def norm(self) -> LayerNorm:
        """A layer's."""
        vector = _empty(self.config.n_embd, dtype=self.dtype)
        return LayerNorm(vector, vector, self.config.layer_norm_epsilon)

    def projection(self, outputs: int, inputs: int) -> Projection:
        """As a GPU has it."""
        bias = _empty(outputs, dtype=self.dtype)
        if not self.has_kernels:
            return FloatProjection(_empty(outputs, inputs, dtype=self.dtype), bias)
        # How often a product is split depends on the multiprocessors, and its kernel does not.
        shared = Workspace(Card("any", self.capability, processors=1), _NOWHERE)
        is_int8 = self.quantization == "int8"
        weight = _empty(outputs, inputs, dtype=torch.int8 if is_int8 else self.dtype)
        scale = _empty(outputs, dtype=torch.float32) if is_int8 else None
        return TritonProjection(weight, bias, scale, shared)

    def layer(self) -> GPTJLayer:
        """One of the network."""
        hidden, inner = self.config.n_embd, self.config.inner_size
        activation = self.config.activation_function
        return GPTJLayer(
            self.config.n_head,
            self.norm(),
            self.projection(3 * hidden + inner, hidden),
            self.projection(hidden, hidden + inner),
            activation,
            lambda x: x,
        )

    def cache(self) -> LayerCache:
        """A layer's keys and values."""
        return PagedKVCache(
            devices=[_NOWHERE],
            pages=_PAGES,
            page_size=self.page_size,
            heads=self.config.n_head,
            head_size=self.head_size,
            dtype=self.dtype,
        ).layer(0)


def trial_launches(_: KernelShape) -> Iterator[Launch]:
    """Of :mod:`model.triton_check`."""
    count = KERNEL_CONFIGS["_add_one"].sizes["count"]
    yield partial(add_one, _empty(count, dtype=torch.float32))


def norm_launches(shape: KernelShape) -> Iterator[Launch]:
    """Of :mod:`model.triton.norm`."""
    hidden = shape.config.n_embd
    residual = _empty(_TOKENS, hidden, dtype=shape.dtype)
    vector = _empty(hidden, dtype=shape.dtype)
    epsilon = shape.config.layer_norm_epsilon
    yield partial(normalize_and_add, residual, vector, vector, epsilon, vector)


def rotary_launches(shape: KernelShape) -> Iterator[Launch]:
    """Of :mod:`model.triton.rotary`."""
    rotations = _empty(_POSITIONS, shape.config.rotary_dim // 2, dtype=torch.complex64)
    inputs = _inputs()
    is_gelu = shape.config.activation_function == GELU
    # The first product's kernel does GELU too.
    for gelu in {is_gelu, is_gelu and not shape.has_kernels}:
        yield partial(
            rotate_store_activate,
            *(shape.projected(), rotations, inputs.positions, inputs.slot_mapping, *shape.cache()),
            gelu=gelu,
        )


def product_launches(shape: KernelShape) -> Iterator[Launch]:
    """Of :mod:`model.triton_linear`, in every way that a start may choose."""
    if not shape.has_kernels:
        return
    layer, norm = shape.layer(), shape.norm()
    head = shape.projection(shape.config.vocab_size, shape.config.n_embd)
    for rows, ways in _ways(shape, layer.project_in, layer.project_out):
        yield partial(_compute_layer, shape, layer, rows, ways)
    for rows, (way,) in _ways(shape, head):
        yield partial(_compute_head, shape, norm, head, rows, way)


def _ways(shape: KernelShape, *products: Projection) -> Iterator[tuple[int, tuple[Way, ...]]]:
    """Numbers of rows, and with each all ways of some products at once."""
    own = [one for one in products if isinstance(one, TritonProjection)]
    for shapes in zip(*(one.shapes() for one in own), strict=True):
        if (rows := shapes[0].rows) <= shape.max_rows:
            choices = [candidates(s, one.card) for s, one in zip(shapes, own, strict=True)]
            for ways in product(*choices):
                yield rows, ways


def _compute_layer(shape: KernelShape, layer: GPTJLayer, rows: int, ways: tuple[Way, ...]) -> None:
    for projection, way in zip((layer.project_in, layer.project_out), ways, strict=True):
        assert isinstance(projection, TritonProjection)
        projection.choose(rows, way)
    hidden = shape.config.n_embd
    residual = _empty(rows, hidden, dtype=shape.dtype)
    project_in(layer, residual)
    project_out(layer, residual, shape.projected(rows)[:, 2 * hidden :])


def _compute_head(
    shape: KernelShape, norm: LayerNorm, head: Projection, rows: int, way: Way
) -> None:
    assert isinstance(head, TritonProjection)
    head.choose(rows, way)
    x = _empty(rows, shape.config.n_embd, dtype=shape.dtype)
    head.write(x, _empty(rows, shape.config.vocab_size, dtype=shape.dtype), norm)


def attention_launches(shape: KernelShape) -> Iterator[Launch]:
    """Of :mod:`model.triton.decode_attention`, with every number of splits."""
    qkv = shape.projected()[:, : 3 * shape.config.n_embd]
    queries, _, values = qkv.unflatten(1, (3, shape.config.n_head, -1)).unbind(1)
    inputs = _inputs()
    scratch = DecodeScratch(_TOKENS * shape.config.n_head * 32, shape.head_size, _NOWHERE)
    splits = 1
    while splits <= KERNEL_CONFIGS["_attend"].sizes["max_splits"]:
        keys, cached = shape.cache()
        tables = inputs.page_tables, inputs.lengths
        yield partial(
            decode_attention, queries, keys, cached, *tables, values, splits=splits, scratch=scratch
        )
        splits *= 2


def sampling_launches(shape: KernelShape) -> Iterator[Launch]:
    """Of :mod:`sampling.fused`."""
    yield partial(
        choose_tokens,
        _empty(_TOKENS, shape.config.vocab_size, dtype=shape.dtype),
        _inputs(),
        token_table=_empty(_TOKENS, _POSITIONS, dtype=torch.int64),
        out=_empty(_TOKENS, dtype=torch.int64),
    )


#: One for every kernel that is launched; a new one is a line here.
_FAMILIES: tuple[Callable[[KernelShape], Iterator[Launch]], ...] = (
    trial_launches,
    norm_launches,
    rotary_launches,
    product_launches,
    attention_launches,
    sampling_launches,
)


def launches(shape: KernelShape) -> Iterator[Launch]:
    """A call for every variant of every kernel that a network of this shape needs on a GPU.

    On a machine without one, :mod:`ahead_of_time` has the calls compile and launch nothing. There
    are none if the kernels do not support the shape.
    """
    if supports(shape.head_size, shape.dtype):
        for family in _FAMILIES:
            yield from family(shape)


def _inputs() -> DecodeInputs:
    size = DecodeInputs.num_bytes(_TOKENS, _PAGES)
    return DecodeInputs.of(_empty(size, dtype=torch.uint8), _TOKENS, _PAGES)


def _empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=_NOWHERE)

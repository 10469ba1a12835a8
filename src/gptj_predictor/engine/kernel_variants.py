"""Every way in which the product launches its Triton kernels, as calls on tensors without memory.

What a kernel is compiled for depends on its arguments' dtypes, on which of them can be divided by
16, and on its constants. The calls here go through the product's own functions, so these follow.
Importing it needs Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from gptj_predictor.common.kernel_configs import KERNEL_CONFIGS
from gptj_predictor.engine.decode_inputs import DecodeInputs
from gptj_predictor.engine.decode_step import choose_tokens
from gptj_predictor.model.ahead_of_time import Launch
from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.kv_cache import LayerCache, PagedKVCache
from gptj_predictor.model.layer import GELU
from gptj_predictor.model.triton.decode_attention import DecodeScratch, decode_attention, supports
from gptj_predictor.model.triton.norm import normalize_and_add
from gptj_predictor.model.triton.rotary import rotate_store_activate
from gptj_predictor.model.triton_check import add_one

#: Any size will do: the kernels are compiled for all of them.
_TOKENS, _PAGES, _POSITIONS = 4, 8, 32
_NOWHERE = torch.device("meta")


@dataclass(frozen=True)
class KernelShape:
    """What the kernels of a network depend on."""

    config: NetworkConfig
    dtype: torch.dtype  # of activations and KV cache
    page_size: int = 16

    @property
    def head_size(self) -> int:
        """Values per attention head."""
        return self.config.n_embd // self.config.n_head

    def projected(self) -> torch.Tensor:
        """What a layer's first product gives."""
        columns = 3 * self.config.n_embd + self.config.inner_size
        return _empty(_TOKENS, columns, dtype=self.dtype)

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
    yield partial(
        rotate_store_activate,
        *(shape.projected(), rotations, inputs.positions, inputs.slot_mapping, *shape.cache()),
        gelu=shape.config.activation_function == GELU,
    )


def attention_launches(shape: KernelShape) -> Iterator[Launch]:
    """Of :mod:`model.triton.decode_attention`, with every number of splits."""
    qkv = shape.projected()[:, : 3 * shape.config.n_embd]
    queries, _, values = qkv.unflatten(1, (3, shape.config.n_head, -1)).unbind(1)
    inputs = _inputs()
    scratch = DecodeScratch(_TOKENS * shape.config.n_head * 32, shape.head_size, _NOWHERE)
    splits = 1
    while splits <= KERNEL_CONFIGS["_attend"].sizes["max_splits"]:
        tables = inputs.page_tables, inputs.lengths
        yield partial(decode_attention, queries, *shape.cache(), *tables, values, splits, scratch)
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

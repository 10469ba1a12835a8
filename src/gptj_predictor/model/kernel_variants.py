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

from gptj_predictor.model import triton_kernels
from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.kernel_configs import KERNEL_CONFIGS
from gptj_predictor.model.kv_cache import PagedKVCache

Launch = Callable[[], object]

#: Any size will do: the kernels are compiled for all of them.
_TOKENS, _PAGES = 4, 8
_NOWHERE = torch.device("meta")


@dataclass(frozen=True)
class KernelShape:
    """What the kernels of a network depend on."""

    config: NetworkConfig
    dtype: torch.dtype  # of weights, activations and KV cache
    page_size: int = 16

    @property
    def head_size(self) -> int:
        """Values per attention head."""
        return self.config.n_embd // self.config.n_head

    @property
    def inner(self) -> int:
        """The MLP's hidden size."""
        return 4 * self.config.n_embd if self.config.n_inner is None else self.config.n_inner


def attention_launches(shape: KernelShape) -> Iterator[Launch]:
    """Of :mod:`triton_kernels`; none if it does not support the shape."""
    if not triton_kernels.supports(shape.head_size, shape.dtype):
        return
    config, heads = shape.config, shape.config.n_head
    columns = 3 * config.n_embd + shape.inner
    projected = _empty(_TOKENS, columns, dtype=shape.dtype)
    qkv = projected[:, : 3 * config.n_embd].unflatten(1, (3, heads, -1))
    queries, keys, values = qkv.unbind(1)
    cache = PagedKVCache(
        devices=[_NOWHERE],
        pages=_PAGES,
        page_size=shape.page_size,
        heads=heads,
        head_size=shape.head_size,
        dtype=shape.dtype,
    ).layer(0)
    rotations = _empty(_TOKENS, config.rotary_dim // 2, dtype=torch.complex64)
    slots = _empty(_TOKENS, dtype=torch.int64)
    yield partial(triton_kernels.rotate_and_store, queries, keys, values, rotations, slots, *cache)
    tables = _empty(_TOKENS, _PAGES, dtype=torch.int32)
    lengths = _empty(_TOKENS, dtype=torch.int32)
    splits = 1
    while splits <= KERNEL_CONFIGS["_attend"].sizes["max_splits"]:
        yield partial(
            triton_kernels.decode_attention, queries, *cache, tables, lengths, values, splits
        )
        splits *= 2


#: Of every module of kernels the function above; a new one is a line here.
_FAMILIES: tuple[Callable[[KernelShape], Iterator[Launch]], ...] = (attention_launches,)


def launches(shape: KernelShape) -> Iterator[Launch]:
    """A call for every variant of every kernel that a network of this shape needs on a GPU.

    On a machine without one, :mod:`ahead_of_time` has the calls compile and launch nothing.
    """
    for family in _FAMILIES:
        yield from family(shape)


def _empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=_NOWHERE)

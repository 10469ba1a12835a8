"""Attention of prompts on a GPU: one launch of torch's own kernels for all chunks of a step."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gptj_predictor.model.kv_cache import LayerCache
from gptj_predictor.model.step_inputs import StepInputs

#: First compute capability of the flash kernels: Ampere (Dao, FlashAttention-2, 2023).
FLASH_CAPABILITY = (8, 0)
#: Largest head that the flash kernels have.
MAX_FLASH_HEAD_SIZE = 256
#: Heads are read in pieces of 16 bytes, in either kernel.
HEAD_SIZE_MULTIPLE = 8
#: ``CausalFromBottomRight`` of the memory-efficient kernels: the last query sees all keys.
_CAUSAL_FROM_BOTTOM_RIGHT = 2


#: Causal attention of C sequences that lie end to end, whose last query is their last key's.
#:
#: It takes ``query`` ``[T, heads, head_size]``, ``key`` and ``value`` ``[K, heads, head_size]``,
#: ``cum_seq_q`` and ``cum_seq_k`` (``[C + 1]`` int32, contiguous: where each sequence's queries and
#: keys begin, and T and K), ``max_q`` and ``max_k`` (queries and keys of the longest sequences). It
#: returns ``[T, heads, head_size]``. Strides are free but for the last, which is 1.
VarlenKernel = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, int], torch.Tensor
]


def flash_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cum_seq_q: torch.Tensor,
    cum_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
) -> torch.Tensor:
    """A :data:`VarlenKernel`: FlashAttention-2, for 16-bit values and Ampere or newer.

    The call that ``torch.nn.attention.varlen`` makes. Its causal mask is aligned to the bottom
    right (flash-attention's README, version 2.1).
    """
    return torch.ops.aten._flash_attention_forward(
        *(query, key, value, cum_seq_q, cum_seq_k, max_q, max_k),
        0.0,  # dropout_p
        True,  # is_causal
        False,  # return_debug_mask
    )[0]


def efficient_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cum_seq_q: torch.Tensor,
    cum_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
) -> torch.Tensor:
    """A :data:`VarlenKernel`: memory-efficient attention, for older GPUs and for fp32."""
    return torch.ops.aten._efficient_attention_forward(
        *(query[None], key[None], value[None]),
        None,  # bias
        *(cum_seq_q, cum_seq_k, max_q, max_k),
        0.0,  # dropout_p
        _CAUSAL_FROM_BOTTOM_RIGHT,
        False,  # compute_log_sumexp
    )[0][0]


class VarlenPrefill:
    """All chunks of a step in one launch.

    If a chunk has a context, keys and values of all are gathered from the cache first, those of
    this step among them. Else the kernel reads the step's own where they are.
    """

    def __init__(self, kernel: VarlenKernel, name: str) -> None:
        """Launch ``kernel``, which the start log calls ``name``."""
        self.name = name
        self._kernel = kernel

    def __call__(
        self, qkv: torch.Tensor, cache: LayerCache, step: StepInputs, out: torch.Tensor
    ) -> None:
        """:meth:`Attention.attend` for the tokens of the prefill chunks alone."""
        first = step.num_decodes
        for launch in step.prefill_launches:
            end = first + launch.num_tokens
            query, key, value = qkv[first:end].unbind(1)
            if launch.slots is not None:
                key, value = (half.flatten(0, 1).index_select(0, launch.slots) for half in cache)
            out[first:end] = self._kernel(
                *(query, key, value, launch.cum_seq_q, launch.cum_seq_k),
                *(launch.max_q, launch.max_k),
            )
            first = end


def choose_prefill(
    capability: tuple[int, int], dtype: torch.dtype, head_size: int, *, has_flash: bool
) -> VarlenPrefill | None:
    """The quickest way for a GPU to attend for prompts; ``None`` if no such kernel takes the heads.

    Args:
        capability: The GPU's compute capability.
        dtype: Of queries, keys and values.
        head_size: Values per head.
        has_flash: Whether torch was built with the flash kernels.
    """
    if head_size % HEAD_SIZE_MULTIPLE:
        return None
    if (
        has_flash
        and capability >= FLASH_CAPABILITY
        and dtype in (torch.float16, torch.bfloat16)
        and head_size <= MAX_FLASH_HEAD_SIZE
    ):
        return VarlenPrefill(flash_kernel, "variable-length flash prefill")
    return VarlenPrefill(efficient_kernel, "variable-length memory-efficient prefill")

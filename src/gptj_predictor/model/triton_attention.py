"""Attention through our own Triton kernels. Importing it needs Triton."""

from __future__ import annotations

import torch

from gptj_predictor.model import triton_kernels as kernels
from gptj_predictor.model.attention import Attention
from gptj_predictor.model.kv_cache import LayerCache
from gptj_predictor.model.step_inputs import StepInputs
from gptj_predictor.model.torch_attention import attend_prefills
from gptj_predictor.model.varlen_attention import VarlenPrefill


class TritonAttention(Attention):
    """Kernels for rotary, cache write and decode; prefill goes through torch."""

    capturable = True

    def __init__(self, processors: int, prefill: VarlenPrefill | None = None) -> None:
        """Decoding spreads its work over ``processors`` multiprocessors.

        Prompts are attended for with ``prefill``, or chunk by chunk.
        """
        name = "torch SDPA prefill" if prefill is None else prefill.name
        self.name = f"Triton paged split-KV decode, {name}"
        self._processors = processors
        self._attend_prefills = attend_prefills if prefill is None else prefill

    def store(
        self, qkv: torch.Tensor, rotations: torch.Tensor, cache: LayerCache, step: StepInputs
    ) -> None:
        """See :meth:`Attention.store`; one kernel."""
        queries, keys, values = qkv.unbind(1)
        with torch.cuda.device_of(qkv):  # Triton launches on the current device
            kernels.rotate_and_store(queries, keys, values, rotations, step.slot_mapping, *cache)

    def attend(
        self, qkv: torch.Tensor, cache: LayerCache, step: StepInputs, *, out: torch.Tensor
    ) -> None:
        """See :meth:`Attention.attend`; decoding reads ``step.page_tables``."""
        if decodes := step.num_decodes:
            queries = qkv[:decodes, 0]
            splits = kernels.splits_for(decodes, queries.shape[1], self._processors)
            tables, lengths = step.page_tables, step.context_lengths
            with torch.cuda.device_of(qkv):
                kernels.decode_attention(queries, *cache, tables, lengths, out[:decodes], splits)
        self._attend_prefills(qkv, cache, step, out)

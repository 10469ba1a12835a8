"""What one step of the network reads: its tokens, their positions and their places in the cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from gptj_predictor.model.kv_cache import Extent
from gptj_predictor.model.prefill_plan import PrefillChunk, PrefillLaunch, plan_prefills


@dataclass(frozen=True)
class StepInputs:
    """One step's T tokens, laid end to end without padding.

    The first D tokens belong to D sequences that decode; the rest are the prefill chunks in order.

    Attributes:
        token_ids: ``[T]`` int64.
        positions: ``[T]`` int64, each token's place in its sequence, from 0.
        slot_mapping: ``[T]`` int64, where to write its key and value.
        page_tables: ``[D, P]`` int32 page numbers, padded with ``NULL_PAGE``.
        context_lengths: ``[D]`` int64, tokens that a decoding sequence attends to, its new one
            included.
        contexts: The same D contexts as extents; may be empty for attention that reads the tables.
        chunks: The prefill chunks.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    page_tables: torch.Tensor
    context_lengths: torch.Tensor
    contexts: list[list[Extent]]
    chunks: list[PrefillChunk]

    @property
    def num_decodes(self) -> int:
        """How many sequences decode."""
        return self.context_lengths.shape[0]

    @cached_property
    def prefill_launches(self) -> list[PrefillLaunch]:
        """The chunks, cut into launches of a variable-length kernel. All layers share them."""
        return plan_prefills(self.chunks, self.slot_mapping[self.num_decodes :])

    def to(self, device: torch.device) -> StepInputs:
        """The same step with its tensors on another device."""
        tensors: Any = {n: x.to(device) for n, x in vars(self).items() if torch.is_tensor(x)}
        return replace(self, **tensors)

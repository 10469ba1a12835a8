"""A layer through our own Triton kernels. Importing it needs Triton."""

from __future__ import annotations

import torch

from gptj_predictor.model.attention import Attention
from gptj_predictor.model.kv_cache import LayerCache
from gptj_predictor.model.layer import GELU, GPTJLayer
from gptj_predictor.model.step_inputs import StepInputs
from gptj_predictor.model.torch_attention import attend_prefills
from gptj_predictor.model.triton.decode_attention import (
    DecodeScratch,
    decode_attention,
    splits_for,
)
from gptj_predictor.model.triton.rotary import rotate_store_activate
from gptj_predictor.model.triton_linear.in_layer import activates, project_in, project_out
from gptj_predictor.model.varlen_attention import VarlenPrefill


class TritonAttention(Attention):
    """Five launches a layer for decoding: norm, product, rotary to GELU, attention, product.

    Where kernels of ours compute the products, the norm is part of the first: four launches.

    Prefill goes through torch.
    """

    capturable = True

    def __init__(self, processors: int, prefill: VarlenPrefill | None = None) -> None:
        """Decoding spreads its work over ``processors`` multiprocessors.

        Prompts are attended for with ``prefill``, or chunk by chunk.
        """
        name = "torch SDPA prefill" if prefill is None else prefill.name
        self.name = f"Triton paged split-KV decode, {name}"
        self._processors = processors
        self._attend_prefills = attend_prefills if prefill is None else prefill
        self._scratch: DecodeScratch | None = None

    def rotations(self, table: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The table, which the kernel looks up positions in."""
        return table

    def layer(
        self,
        layer: GPTJLayer,
        residual: torch.Tensor,
        rotations: torch.Tensor,
        cache: LayerCache,
        step: StepInputs,
    ) -> torch.Tensor:
        """See :meth:`Attention.layer`; decoding reads ``step.page_tables``."""
        with torch.cuda.device_of(residual):  # Triton launches on the current device
            projected = project_in(layer, residual)
            self.prepare(layer, projected, rotations, cache, step)
            qkv = projected[:, : 3 * layer.hidden].unflatten(1, (3, layer.heads, -1))
            # The output takes the columns of the values, which are in the cache now: there it
            # lies beside the MLP's hidden values, as the second product wants it.
            self.attend(qkv, cache, step, out=qkv[:, 2])
            return project_out(layer, residual, projected[:, 2 * layer.hidden :])

    def prepare(
        self,
        layer: GPTJLayer,
        projected: torch.Tensor,
        rotations: torch.Tensor,
        cache: LayerCache,
        step: StepInputs,
    ) -> None:
        """What lies between the first product ``[T, 3 H + I]``, changed in place, and attention."""
        rotate_store_activate(
            *(projected, rotations, step.positions, step.slot_mapping, *cache),
            gelu=layer.activation == GELU and not activates(layer, len(projected)),
        )
        if layer.activation != GELU:
            layer.activate(projected[:, 3 * layer.hidden :])

    def attend(
        self, qkv: torch.Tensor, cache: LayerCache, step: StepInputs, *, out: torch.Tensor
    ) -> None:
        """Attend causally: every new token to its own sequence, itself included.

        Args:
            qkv: ``[T, 3, heads, head_size]``, rotated, keys and values in the cache too.
            cache: The layer's.
            step: Which slots of the cache belong to which of the T tokens.
            out: ``[T, heads, head_size]`` to write to; it may be ``qkv[:, 2]``.
        """
        if decodes := step.num_decodes:
            queries = qkv[:decodes, 0]
            heads, head_size = queries.shape[1:]
            if self._scratch is None:
                # One for all layers, as the device runs them one after the other.
                self._scratch = DecodeScratch.enough_for(self._processors, head_size, qkv.device)
            decode_attention(
                *(queries, cache.keys, cache.values),
                *(step.page_tables, step.context_lengths, out[:decodes]),
                splits_for(decodes, heads, self._processors),
                self._scratch,
            )
        self._attend_prefills(qkv, cache, step, out)

"""Attention through torch's own kernels, which run on every device and in every dtype."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.nn import functional

from gptj_predictor.model.attention import Attention
from gptj_predictor.model.cast_attention import CastDecode
from gptj_predictor.model.kv_cache import Extent, LayerCache
from gptj_predictor.model.layer import GPTJLayer
from gptj_predictor.model.step_inputs import StepInputs
from gptj_predictor.model.varlen_attention import VarlenPrefill

#: With more pieces than this it is quicker to copy them together than to attend to each.
_MAX_PIECES = 8

#: Keys and values of neighboring tokens, ``[1, heads, tokens, head_size]`` each.
Piece = tuple[torch.Tensor, torch.Tensor]


class TorchAttention(Attention):
    """Sequence by sequence, or a few at a time where :class:`CastDecode` is faster.

    Pages that lie side by side are read where they are. A context in several pieces is attended to
    piece by piece on a CPU, and the partial results merged by their log-sum-exp (Milakov and
    Gimelshein, Online normalizer calculation for softmax, 2018); a GPU copies it together.
    """

    capturable = False

    def __init__(self, prefill: VarlenPrefill | None = None) -> None:
        """Attend for prompts with ``prefill``, or chunk by chunk."""
        self.name = "torch SDPA over runs of pages"
        if prefill is not None:
            self.name += f", {prefill.name}"
        self._attend_prefills = attend_prefills if prefill is None else prefill
        self._slow_dtypes = _slow_dtypes()
        self._decode_cast = CastDecode()

    def rotations(self, table: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """``[T, rotary_dim / 2]``, the positions' own."""
        return table[positions]

    def layer(
        self,
        layer: GPTJLayer,
        residual: torch.Tensor,
        rotations: torch.Tensor,
        cache: LayerCache,
        step: StepInputs,
    ) -> torch.Tensor:
        """See :meth:`Attention.layer`; decoding reads ``step.contexts``."""
        hidden = layer.hidden
        projected = layer.project_in(layer.norm(residual))
        attending = projected[:, : 3 * hidden].unflatten(1, (3, layer.heads, -1))
        rotate(attending[:, :2], rotations)
        qkv = attending.to(cache.both.dtype)
        cache.write(step.slot_mapping, qkv[:, 1:])
        # The output takes the columns of the values, which are in the cache now: there it lies
        # beside the MLP's hidden values, as the second product wants it.
        self.attend(qkv, cache, step, out=attending[:, 2])
        mixed = projected[:, 2 * hidden :]
        layer.activate(mixed[:, hidden:])
        return layer.project_out.add_to(residual, mixed)

    def attend(
        self, qkv: torch.Tensor, cache: LayerCache, step: StepInputs, *, out: torch.Tensor
    ) -> None:
        """Attend causally: every new token to its own sequence, itself included.

        Args:
            qkv: ``[T, 3, heads, head_size]``, rotated.
            cache: One layer's, with this step's keys and values in it.
            step: Which slots of the cache belong to which of the T tokens.
            out: ``[T, heads, head_size]`` to write to. It may be the values' own memory,
                ``qkv[:, 2]``: a sequence's values are read before its output is written.
        """
        decodes = step.num_decodes
        if cache.keys.device.type == "cpu" and cache.keys.dtype in self._slow_dtypes:
            self._decode_cast(qkv[:decodes, 0], cache, step, out[:decodes])
        else:
            queries = qkv[:decodes, :1]
            for query, context, place in zip(queries, step.contexts, out[:decodes], strict=True):
                place.copy_(_attend(query, _pieces(cache, context), causal=False)[0])
        self._attend_prefills(qkv, cache, step, out)


@cache
def causal_bias() -> Any:
    """torch's ``causal_lower_right``, for which a GPU has fused kernels.

    Its module imports ``torch._dynamo``, which takes as long as torch itself. A CPU does without:
    it attends to pieces, see :func:`_merge_pieces`.
    """
    from torch.nn.attention.bias import causal_lower_right

    return causal_lower_right


def rotate(heads: torch.Tensor, rotations: torch.Tensor) -> None:
    """Rotate the first ``rotary_dim`` values of every head, neighbor with neighbor, in place.

    ``heads`` are ``[T, ..., head_size]``, ``rotations`` ``[T, rotary_dim / 2]`` complex.
    """
    part = heads[..., : 2 * rotations.shape[-1]]
    rotations = rotations.view(-1, *[1] * (heads.dim() - 2), rotations.shape[-1])
    if heads.dtype is torch.float32 and not any(step % 2 for step in part.stride()[:-1]):
        torch.view_as_complex(part.unflatten(-1, (-1, 2))).mul_(rotations)
    else:
        pairs = torch.view_as_complex(part.float().unflatten(-1, (-1, 2)).contiguous())
        part.copy_(torch.view_as_real(pairs * rotations).flatten(-2))


def attend_prefills(
    qkv: torch.Tensor, cache: LayerCache, step: StepInputs, out: torch.Tensor
) -> None:
    """Attention as in :meth:`TorchAttention.attend`, for the tokens of the prefill chunks alone."""
    start = step.num_decodes
    for chunk in step.chunks:
        end = start + chunk.tokens
        query, key, value = qkv[start:end].unbind(1)
        pieces = [*_pieces(cache, chunk.context), (_heads_first(key), _heads_first(value))]
        out[start:end] = _attend(query, pieces, causal=True)
        start = end


def _pieces(cache: LayerCache, extents: list[Extent]) -> list[Piece]:
    """A context's keys and values, as views of the cache if possible."""
    keys, values = (_heads_first(pages.flatten(0, 1)) for pages in cache)
    pieces = [(keys[:, :, at : at + n], values[:, :, at : at + n]) for at, n in extents]
    return [_join(pieces)] if len(pieces) > _MAX_PIECES else pieces


def _heads_first(tokens: torch.Tensor) -> torch.Tensor:
    """``[tokens, heads, head_size]`` to ``[1, heads, tokens, head_size]``, as torch wants it."""
    return tokens.transpose(0, 1)[None]


def _join(pieces: list[Piece]) -> Piece:
    keys, values = zip(*pieces, strict=True)
    return torch.cat(keys, dim=2), torch.cat(values, dim=2)


def _attend(queries: torch.Tensor, pieces: list[Piece], *, causal: bool) -> torch.Tensor:
    """Attend to a context in pieces; ``[Q, heads, head_size]`` in and out.

    ``causal`` says that the last Q tokens of the context are the queries' own.
    """
    queries = _heads_first(queries)
    if queries.device.type == "cpu" and len(pieces) > 1:
        out = _merge_pieces(queries, pieces, causal=causal)
    else:
        keys, values = pieces[0] if len(pieces) == 1 else _join(pieces)
        tokens, context = queries.shape[2], keys.shape[2]
        mask = causal_bias()(tokens, context) if causal and tokens < context else None
        out = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=causal and mask is None
        )
    return out[0].transpose(0, 1)


def _slow_dtypes() -> set[torch.dtype]:
    """In which a CPU attends sooner with one query if all is cast to fp32 before.

    torch's kernel multiplies a 16-bit vector value by value where no AMX does it: 355 us for 8
    heads of 256 values and 70 tokens, against 98 with the casts; 1,580 against 233 for 300 tokens.
    """
    amx = {torch.bfloat16: "amx_bf16", torch.float16: "amx_fp16"}
    found = torch.cpu.get_capabilities()
    return {dtype for dtype, feature in amx.items() if not found.get(feature)}


def _merge_pieces(queries: torch.Tensor, pieces: list[Piece], *, causal: bool) -> torch.Tensor:
    """Attend to every piece alone; ``[1, heads, Q, head_size]`` in and out."""
    partial = [
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
            queries, keys, values, is_causal=causal and number == len(pieces) - 1
        )
        for number, (keys, values) in enumerate(pieces)
    ]
    outputs, log_sums = (torch.stack(parts) for parts in zip(*partial, strict=True))
    weights = log_sums.softmax(0)[..., None]
    return (outputs * weights).sum(0).to(queries.dtype)

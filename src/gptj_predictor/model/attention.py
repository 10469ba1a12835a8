"""Rotary positions and attention over the paged KV cache.

Two ways, named in the start log: torch's scaled dot-product attention, which works on every device
and dtype, and on a GPU our own Triton kernels for the decoding rows.
"""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

from gptj_predictor.model.kv_cache import Extent, LayerCache
from gptj_predictor.model.step_inputs import StepInputs

#: With more pieces than this it is quicker to copy them together than to attend to each.
_MOST_PIECES = 8


def rotary_table(positions: int, rotary_dim: int, device: torch.device) -> torch.Tensor:
    """The rotation of every position, as unit complex numbers ``[positions, rotary_dim / 2]``.

    Frequencies ``10000 ** (-2 i / rotary_dim)``: Su et al., RoFormer (2021), section 3.2.2.
    """
    exponents = torch.arange(0, rotary_dim, 2, device=device, dtype=torch.int64) / rotary_dim
    frequencies = 1.0 / (10000**exponents)
    steps = torch.arange(positions, device=device, dtype=torch.float32)
    angles = torch.outer(steps, frequencies)
    return torch.complex(angles.cos(), angles.sin())


def rotate(heads: torch.Tensor, rotations: torch.Tensor) -> None:
    """Rotate the first ``rotary_dim`` values of every head, pair by neighbouring pair, in place.

    Args:
        heads: ``[T, ..., head_size]`` queries or keys.
        rotations: ``[T, rotary_dim / 2]``, the rows of :func:`rotary_table` at T positions.
    """
    part = heads[..., : 2 * rotations.shape[-1]]
    pairs = torch.view_as_complex(part.float().unflatten(-1, (-1, 2)).contiguous())
    rotations = rotations.view(-1, *[1] * (heads.dim() - 2), rotations.shape[-1])
    part.copy_(torch.view_as_real(pairs * rotations).flatten(-2))


class SdpaAttention:
    """Attention through torch's own kernels, sequence by sequence.

    Pages that lie in a row are read where they are. A context in several pieces is attended to
    piece by piece on a CPU, and the partial results merged by their log-sum-exp (Milakov and
    Gimelshein, Online normalizer calculation for softmax, 2018); a GPU copies it together.
    """

    name = "torch SDPA over runs of pages"
    #: Whether decoding depends on nothing but tensors, so that a CUDA graph can replay it.
    capturable = False

    def store(
        self, qkv: torch.Tensor, rotations: torch.Tensor, cache: LayerCache, step: StepInputs
    ) -> None:
        """Rotate the new queries and keys in place and write keys and values to the cache.

        Args:
            qkv: ``[T, 3, heads, head_size]`` queries, keys and values.
            rotations: ``[T, rotary_dim / 2]`` complex.
            cache: This layer's.
            step: Where each of the T tokens goes.
        """
        rotate(qkv[:, :2], rotations)
        cache.keys.flatten(0, 1)[step.slot_mapping] = qkv[:, 1]
        cache.values.flatten(0, 1)[step.slot_mapping] = qkv[:, 2]

    def attend(self, qkv: torch.Tensor, cache: LayerCache, step: StepInputs) -> None:
        """Causal attention of every new token to its own sequence; the output replaces values.

        Args:
            qkv: ``[T, 3, heads, head_size]`` as :meth:`store` left them.
            cache: This layer's, with this step's keys and values in it.
            step: Which slots belong to which of the T tokens.
        """
        self.attend_decodes(qkv[: step.num_decodes], cache, step)
        start = step.num_decodes
        for chunk in step.chunks:
            query, new_key, new_value = qkv[start : start + chunk.tokens].unbind(1)
            pieces = [*_pieces(cache, chunk.context), (new_key, new_value)]
            new_value.copy_(_attend(query, pieces, causal=True))
            start += chunk.tokens

    def attend_decodes(self, qkv: torch.Tensor, cache: LayerCache, step: StepInputs) -> None:
        """:meth:`attend` for the D decoding rows."""
        for row, context in zip(qkv, step.contexts, strict=True):
            row[2] = _attend(row[:1], _pieces(cache, context), causal=False)[0]


class TritonAttention(SdpaAttention):
    """Our own kernels for rotary, cache write and decode; prefill through torch."""

    name = "Triton paged split-KV decode, torch SDPA prefill"
    capturable = True

    def __init__(self, processors: int) -> None:
        """Decode spreads its work over ``processors`` multiprocessors."""
        from gptj_predictor.model import triton_kernels

        self._kernels = triton_kernels
        self._processors = processors

    def store(
        self, qkv: torch.Tensor, rotations: torch.Tensor, cache: LayerCache, step: StepInputs
    ) -> None:
        """As the base class does, in one kernel."""
        queries, new_keys, new_values = qkv.unbind(1)
        with torch.cuda.device_of(qkv):  # Triton launches on the current device
            self._kernels.rotate_and_store(
                queries, new_keys, new_values, rotations, step.slot_mapping, *cache
            )

    def attend_decodes(self, qkv: torch.Tensor, cache: LayerCache, step: StepInputs) -> None:
        """As the base class does, reading the page tables on the device."""
        if not step.num_decodes:
            return
        query, _, out = qkv.unbind(1)
        splits = self._kernels.splits_for(query.shape[0], query.shape[1], self._processors)
        with torch.cuda.device_of(qkv):
            self._kernels.decode_attention(
                query, *cache, step.page_tables, step.context_lengths, out, splits
            )


def select_attention(device: torch.device, head_size: int, dtype: torch.dtype) -> SdpaAttention:
    """The quickest attention that this device can run."""
    if device.type == "cuda" and _triton_can_build():
        from gptj_predictor.model import triton_kernels

        if triton_kernels.supports(head_size, dtype):
            properties = torch.cuda.get_device_properties(device)
            return TritonAttention(properties.multi_processor_count)
    return SdpaAttention()


def _triton_can_build() -> bool:
    """Triton compiles a launcher on first use, with the C compiler that it finds."""
    if importlib.util.find_spec("triton") is None:
        return False
    return any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang")))


def _pieces(cache: LayerCache, extents: list[Extent]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of a context, ``[tokens, heads, head_size]`` each, as views if possible."""
    keys, values = (pages.flatten(0, 1) for pages in cache)
    pieces = [(keys[at : at + count], values[at : at + count]) for at, count in extents]
    return [_join(pieces)] if len(pieces) > _MOST_PIECES else pieces


def _join(pieces: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = zip(*pieces, strict=True)
    return torch.cat(keys), torch.cat(values)


def _attend(
    queries: torch.Tensor, pieces: list[tuple[torch.Tensor, torch.Tensor]], *, causal: bool
) -> torch.Tensor:
    """Attention to pieces of a context.

    Args:
        queries: ``[Q, heads, head_size]``.
        pieces: Keys and values, ``[tokens, heads, head_size]`` each.
        causal: The last Q tokens of the context are the queries' own.

    Returns:
        ``[Q, heads, head_size]``.
    """
    queries = queries.transpose(0, 1)[None]
    if queries.device.type == "cpu" and len(pieces) > 1:
        return _merge_pieces(queries, pieces, causal=causal)[0].transpose(0, 1)
    keys, values = pieces[0] if len(pieces) == 1 else _join(pieces)
    mask = (
        causal_lower_right(queries.shape[2], keys.shape[0]) if causal and len(pieces) > 1 else None
    )
    return functional.scaled_dot_product_attention(
        queries,
        keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None],
        attn_mask=mask,
        is_causal=causal and mask is None,
    )[0].transpose(0, 1)


def _merge_pieces(
    queries: torch.Tensor, pieces: list[tuple[torch.Tensor, torch.Tensor]], *, causal: bool
) -> torch.Tensor:
    """Attend to every piece alone; ``[1, heads, Q, head_size]`` in and out."""
    partial = [
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries,
            keys.transpose(0, 1)[None],
            values.transpose(0, 1)[None],
            is_causal=causal and number == len(pieces) - 1,
        )
        for number, (keys, values) in enumerate(pieces)
    ]
    outputs, log_sums = (torch.stack(parts) for parts in zip(*partial, strict=True))
    weights = log_sums.softmax(0)[..., None]
    return (outputs * weights).sum(0).to(queries.dtype)

"""Rotary positions and attention over the paged KV cache.

Gather the pages, then torch's scaled dot-product attention: it works on every device and dtype.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from gptj_predictor.model.kv_cache import StepInputs


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
        heads: ``[T, heads, head_size]`` queries or keys.
        rotations: ``[T, rotary_dim / 2]``, the rows of :func:`rotary_table` at T positions.
    """
    part = heads[..., : 2 * rotations.shape[-1]]
    pairs = torch.view_as_complex(part.float().unflatten(-1, (-1, 2)).contiguous())
    part.copy_(torch.view_as_real(pairs * rotations[:, None]).flatten(-2))


def paged_attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, step: StepInputs
) -> torch.Tensor:
    """Causal attention of every new token to its own sequence's cached tokens.

    Args:
        queries: ``[T, heads, head_size]``, rotated.
        keys: ``[pages, page_size, heads, head_size]``, this step's keys already written.
        values: As ``keys``.
        step: Which pages belong to which of the T tokens.

    Returns:
        ``[T, heads, head_size]``.
    """
    single = step.single_token_sequences
    outputs = []
    if single:
        outputs.append(_attend_single_tokens(queries[:single], keys, values, step, single))
    start = single
    for sequence in range(single, len(step.query_lengths)):
        end = start + step.query_lengths[sequence]
        outputs.append(_attend_sequence(queries[start:end], keys, values, step, sequence))
        start = end
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend_single_tokens(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, step: StepInputs, count: int
) -> torch.Tensor:
    """Decoding sequences together: ``[S, heads, head_size]`` in and out, shorter ones masked."""
    page_size = keys.shape[1]
    lengths = step.context_lengths[:count]
    pages = step.block_tables[:count, : _pages_for(max(lengths), page_size)]
    mask = None
    if min(lengths) < pages.shape[1] * page_size:
        places = torch.arange(pages.shape[1] * page_size, device=queries.device)
        mask = (places < torch.tensor(lengths, device=queries.device)[:, None])[:, None, None]
    return functional.scaled_dot_product_attention(
        queries[:, :, None],
        keys[pages].flatten(1, 2).transpose(1, 2),
        values[pages].flatten(1, 2).transpose(1, 2),
        attn_mask=mask,
    )[:, :, 0]


def _attend_sequence(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, step: StepInputs, sequence: int
) -> torch.Tensor:
    """One sequence's new tokens: ``[Q, heads, head_size]`` in and out, causal."""
    context = step.context_lengths[sequence]
    new = queries.shape[0]
    pages = step.block_tables[sequence, : _pages_for(context, keys.shape[1])]
    mask = None
    if new < context:
        places = torch.arange(context, device=queries.device)
        mask = places <= places[context - new :, None]
    return functional.scaled_dot_product_attention(
        queries.transpose(0, 1)[None],
        keys[pages].flatten(0, 1)[:context].transpose(0, 1)[None],
        values[pages].flatten(0, 1)[:context].transpose(0, 1)[None],
        attn_mask=mask,
        is_causal=mask is None,
    )[0].transpose(0, 1)


def _pages_for(tokens: int, page_size: int) -> int:
    return -(-tokens // page_size)

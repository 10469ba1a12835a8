"""How much memory the KV cache may take, from plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

#: Pages that belong to nobody: the null page, which padding writes to.
_UNUSABLE_PAGES = 1


def kv_cache_pages(
    available: Mapping[torch.device, int],
    layers: Sequence[torch.device],
    *,
    page_size: int,
    token_bytes: int,
    max_pages: int,
) -> int:
    """Pages that sequences can use: as many as fit every device and as are of use.

    Args:
        available: Bytes for the KV cache, by device.
        layers: The device of each layer.
        page_size: Tokens per page.
        token_bytes: Bytes of one token's keys and values in one layer.
        max_pages: Pages of a full batch of sequences as long as the context.

    Raises:
        ValueError: a device has no room for one page.
    """
    pages = max_pages
    for device in set(layers):
        page_bytes = layers.count(device) * page_size * token_bytes
        fitting = available[device] // page_bytes - _UNUSABLE_PAGES
        if fitting < 1:
            raise ValueError(
                f"a KV cache of {available[device]} bytes on {device} is too small; "
                f"the minimum is {(1 + _UNUSABLE_PAGES) * page_bytes}"
            )
        pages = min(pages, fitting)
    return pages


def activation_bytes(
    *, tokens: int, logit_rows: int, hidden: int, inner: int, vocabulary: int, value_bytes: int
) -> int:
    """Memory that a step takes at most, beside weights and KV cache.

    Per token: both sides of a layer's two products, the norm and attention's copies. Per row of
    logits: these, their fp32 copy, and as much again for sampling, twice. Rounded up by a half.

    Args:
        tokens: Tokens of the step.
        logit_rows: Tokens that get logits.
        hidden: Hidden size.
        inner: The MLP's hidden size.
        vocabulary: Number of tokens that exist.
        value_bytes: Bytes of one activation.
    """
    per_token = (8 * hidden + 2 * inner) * value_bytes
    per_row = vocabulary * (value_bytes + 4 * torch.float32.itemsize)
    return (tokens * per_token + logit_rows * per_row) * 3 // 2

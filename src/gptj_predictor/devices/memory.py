"""How much memory the KV cache may take, from plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from gptj_predictor.common.row_limits import SCORED_ROWS, SORTED_ROWS

#: Pages that belong to nobody: the null page, which padding writes to.
_UNUSABLE_PAGES = 1

#: Bytes per logit of a draw.
_DRAW_BYTES = 53


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


def gpu_cache_bytes(free: int, taken: int, share: float) -> int:
    """What the KV cache gets of a GPU's memory.

    Args:
        free: Bytes that are free beside the weights.
        taken: Bytes that the largest step and the graphs take of them.
        share: Of what is left; the rest is for what other steps split memory into.
    """
    return int(max(0, free - taken) * share)


def activation_bytes(
    *,
    tokens: int,
    logit_rows: int,
    hidden: int,
    inner: int,
    vocabulary: int,
    value_bytes: int,
    gathered_tokens: int = 0,
    kept_logit_rows: int = 0,
) -> int:
    """Memory that a step takes at most, beside weights and KV cache; tensors rounded up.

    Per token: both sides of a layer's two products, the norm and attention's copies. Per row of
    logits: these, and in fp32 themselves, the copy that log-probabilities are made of and the
    counts for penalties. Rows are drawn for, and prompts scored, a few at a time. Measured with
    torch's profiler on a CPU: 4 bytes per logit for the counts, up to 41 for a draw, to which a
    GPU's sort adds a copy of keys and indices.

    Args:
        tokens: Tokens of the step.
        logit_rows: Tokens that get logits.
        hidden: Hidden size.
        inner: The MLP's hidden size.
        vocabulary: Number of tokens that exist.
        value_bytes: Bytes of one activation.
        gathered_tokens: Tokens whose keys and values are copied together.
        kept_logit_rows: Rows of logits whose memory stays between steps, as graphs write to it.
    """
    per_token = (8 * hidden + 2 * inner) * value_bytes
    per_logit = value_bytes + 3 * torch.float32.itemsize
    drawn = logit_rows * per_logit + min(logit_rows, SORTED_ROWS) * _DRAW_BYTES
    scored = SCORED_ROWS * (per_logit - torch.float32.itemsize)
    activations = tokens * per_token * 3 // 2 + max(drawn, scored) * vocabulary * 5 // 4
    gathered = gathered_tokens * 2 * hidden * value_bytes
    return activations + gathered + kept_logit_rows * vocabulary * value_bytes

"""How the prompts of a step share its prefill budget, from plain numbers."""

from __future__ import annotations

#: Tokens that a step takes of a prompt at least, unless fewer are left of it: a chunk of a few
#: tokens costs a step nearly as much as one of 64.
MIN_CHUNK_TOKENS = 64


def min_chunk_tokens(max_prefill_tokens: int) -> int:
    """The least chunk for a budget; half of the budget if that is less, so that two share it."""
    return min(MIN_CHUNK_TOKENS, max(1, max_prefill_tokens // 2))


def further_tokens(pending: int, taken: int, budget: int, least: int, *, others: bool) -> int:
    """How many tokens a prompt gets beside those that it has already in this step.

    The rest of a prompt is not cut into pieces below ``least``, if the budget allows it.

    Args:
        pending: Tokens that are left of it, without those it has.
        taken: Tokens that it has.
        budget: What is left for all.
        least: See :func:`min_chunk_tokens`.
        others: Whether others want some too; then it gets half.
    """
    more = min(pending, budget, max(least, budget // 2) if others else budget)
    if pending - more < least and pending <= budget:
        return pending
    return more if more == pending or taken + more >= least else 0

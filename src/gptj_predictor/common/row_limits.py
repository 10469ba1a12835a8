"""Rows of logits that are worked on at once, which bounds what a step takes of memory."""

from __future__ import annotations

#: Rows without top-k that are drawn for: sorting all tokens takes up to 45 bytes each.
SORTED_ROWS = 64

#: Tokens of prompts that are scored: in fp32 26 MB of GPT-J-6B's logits.
SCORED_ROWS = 128

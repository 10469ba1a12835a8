"""What changes a row's logits before a token is chosen: bias, penalties, minimum length.

Each function changes ``[N, vocabulary]`` fp32 logits in place, in the rows that ask for it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from gptj_predictor.common.upload import upload
from gptj_predictor.sampling.params import SamplingParams


def add_bias(logits: torch.Tensor, params: Sequence[SamplingParams]) -> None:
    """Add each row's ``logit_bias``."""
    counts = [len(p.logit_bias) for p in params]
    if not any(counts):
        return
    biases = list(chain.from_iterable(p.logit_bias for p in params))
    rows = upload(np.repeat(np.arange(len(params)), counts), logits.device)
    ids = upload([token_id for token_id, _ in biases], logits.device)
    values = upload([value for _, value in biases], logits.device, torch.float32)
    logits[rows, ids] += values


def penalize_repetition(
    logits: torch.Tensor,
    params: Sequence[SamplingParams],
    lengths: NDArray[np.int64],
    token_table: torch.Tensor,
    places: torch.Tensor,
) -> None:
    """Divide positive and multiply negative logits of a row's tokens by its penalty.

    Keskar et al., CTRL (2019), section 4.1, as transformers has it: over prompt and output.

    Args:
        logits: Changed in place.
        params: The N rows' parameters.
        lengths: As in :meth:`Sampler.sample`, like the next two.
        token_table: Tokens so far.
        places: Where they are.
    """
    asking = [i for i, p in enumerate(params) if p.repetition_penalty != 1]
    if not asking:
        return
    rows = upload(asking, logits.device)
    columns = torch.arange(int(lengths[asking].max()), device=logits.device)
    seen = token_table[places[0, rows], : len(columns)]
    # What lies beyond a row's length is replaced by its own first token: to penalize a token twice
    # writes the same value.
    seen = seen.where(columns < places[1, rows, None], seen[:, :1])
    factors = [params[i].repetition_penalty for i in asking]
    penalties = upload(factors, logits.device, torch.float32)[:, None]
    scores = logits[rows[:, None], seen]
    scores = torch.where(scores < 0, scores * penalties, scores / penalties)
    logits[rows[:, None], seen] = scores


def penalize_output(
    logits: torch.Tensor,
    params: Sequence[SamplingParams],
    lengths: NDArray[np.int64],
    prompt_lengths: Sequence[int],
    token_table: torch.Tensor,
    places: torch.Tensor,
) -> None:
    """Lower a token that was generated c times by ``frequency_penalty c + presence_penalty``.

    OpenAI's formula; where c is 0 nothing is changed.

    Args:
        logits: Changed in place.
        params: The N rows' parameters.
        lengths: As in :meth:`Sampler.sample`, like the next three.
        prompt_lengths: Tokens that were not generated.
        token_table: Tokens so far.
        places: Where they are.
    """
    asking = [i for i, p in enumerate(params) if p.penalizes_output]
    if not asking:
        return
    device = logits.device
    rows = upload(asking, device)
    columns = torch.arange(int(lengths[asking].max()), device=device)
    starts = upload([prompt_lengths[i] for i in asking], device)
    seen = token_table[places[0, rows], : len(columns)]
    is_output = (columns >= starts[:, None]) & (columns < places[1, rows, None])
    counts = logits.new_zeros(len(asking), logits.shape[1])
    # Tokens of the prompt alone, and what lies beyond a row's length, keep a count of 0.
    times = counts.scatter_add_(1, seen, is_output.float()).gather(1, seen)
    penalties = upload(
        [[params[i].frequency_penalty, params[i].presence_penalty] for i in asking],
        device,
        torch.float32,
    )
    lowered = penalties[:, :1] * times + penalties[:, 1:] * (times > 0)
    logits[rows[:, None], seen] = logits[rows[:, None], seen] - lowered


def keep_from_ending(
    logits: torch.Tensor,
    params: Sequence[SamplingParams],
    lengths: NDArray[np.int64],
    eos_token_ids: tuple[int, ...],
) -> None:
    """Set to minus infinity what would end a row that has not reached its ``min_length``.

    That is end of text, unless the row ignores it, and its ``stop_token_ids``.

    Args:
        logits: Changed in place.
        params: The N rows' parameters.
        lengths: ``[N]``, tokens of each row so far.
        eos_token_ids: Every end of text.
    """
    early = np.flatnonzero(lengths < np.array([p.min_length for p in params]))
    rows: list[int] = []
    ids: list[int] = []
    for row in early.tolist():
        p = params[row]
        ends = p.stop_token_ids if p.ignore_eos else (*eos_token_ids, *p.stop_token_ids)
        rows += [row] * len(ends)
        ids += ends
    if rows:
        pairs = upload([rows, ids], logits.device)
        logits[pairs[0], pairs[1]] = -torch.inf

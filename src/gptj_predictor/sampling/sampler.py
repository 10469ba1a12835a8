"""Which token comes next, for every row of a batch by its own parameters.

Processors run in the order of transformers' ``generate``: repetition penalty, minimum length,
temperature, top-k, top-p. Work that no row asks for is skipped.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from gptj_predictor.common.upload import upload
from gptj_predictor.sampling.params import SamplingParams

#: Tokens as likely as the k-th that are kept beside it. In fp32 there are hardly ever any; the
#: limit lets the number of candidates be known without waiting for the device.
_TIES = 64

# SplitMix64: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators (2014),
# figure 16. The constants are written as the signed numbers that int64 tensors hold.
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def uniform(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """One number in [0, 1) for every (seed, position), independent of everything else.

    Args:
        seeds: ``[N]`` int64.
        positions: ``[N]`` int64.

    Returns:
        ``[N]`` float64 with 53 random bits.
    """
    state = _mix(seeds) + (positions + 1) * _GOLDEN_GAMMA
    return _shift_right(_mix(state), 11).double() * 2.0**-53


def _mix(state: torch.Tensor) -> torch.Tensor:
    state = (state ^ _shift_right(state, 30)) * _MIX_1
    state = (state ^ _shift_right(state, 27)) * _MIX_2
    return state ^ _shift_right(state, 31)


def _shift_right(state: torch.Tensor, bits: int) -> torch.Tensor:
    """The unsigned shift, which int64 tensors do not have."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


class Sampler:
    """Picks one token per row, on the logits' device and without waiting for it."""

    def __init__(self, eos_token_ids: tuple[int, ...]) -> None:
        self.eos_token_ids = eos_token_ids

    @torch.inference_mode()
    def sample(
        self,
        logits: torch.Tensor,
        params: list[SamplingParams],
        lengths: NDArray[np.int64],
        token_table: torch.Tensor,
        places: torch.Tensor,
    ) -> torch.Tensor:
        """Choose the next token of every row.

        Args:
            logits: ``[N, vocabulary]`` fp32; changed in place.
            params: The N rows' parameters.
            lengths: ``[N]``, tokens of each row so far, on the host.
            token_table: ``[max_batch_size, context]`` int64, tokens so far, on the device.
            places: ``[2, N]`` int64 on the device: each row's batch index, and its length again.

        Returns:
            ``[N]`` int64 on the device; -1 where no logit is finite.
        """
        finite = logits.amax(dim=-1).isfinite()
        if any(p.repetition_penalty != 1 for p in params):
            _penalize_repetition(logits, params, int(lengths.max()), token_table, places)
        early = [i for i, p in enumerate(params) if lengths[i] < p.min_length]
        if early:
            rows = upload(early, logits.device)
            for token_id in self.eos_token_ids:
                logits[rows, token_id] = -torch.inf
        chosen = logits.argmax(dim=-1)
        vocabulary = logits.shape[1]
        drawing = [i for i, p in enumerate(params) if not p.greedy]
        for bounded in (True, False):
            group = [i for i in drawing if (0 < params[i].top_k < vocabulary) is bounded]
            if group:
                rows = upload(group, logits.device)
                chosen[rows] = _draw(
                    logits[rows], [params[i] for i in group], places[1, rows], bounded=bounded
                )
        return chosen.where(finite, -1)


def _penalize_repetition(
    logits: torch.Tensor,
    params: list[SamplingParams],
    max_length: int,
    token_table: torch.Tensor,
    places: torch.Tensor,
) -> None:
    seen = token_table[places[0], :max_length]
    # What lies beyond a row's length is replaced by its own first token: to penalize a token twice
    # writes the same value.
    within = torch.arange(max_length, device=seen.device) < places[1, :, None]
    seen = seen.where(within, seen[:, :1])
    factors = [p.repetition_penalty for p in params]
    penalties = upload(factors, logits.device, torch.float32)[:, None]
    scores = logits.gather(1, seen)
    scores = torch.where(scores < 0, scores * penalties, scores / penalties)
    logits.scatter_(1, seen, scores)


def _draw(
    logits: torch.Tensor, params: list[SamplingParams], positions: torch.Tensor, *, bounded: bool
) -> torch.Tensor:
    """Sample every row; all have a top-k below the vocabulary if ``bounded``, or else none has."""
    device = logits.device
    logits = logits / upload([p.temperature for p in params], device, torch.float32)[:, None]
    ids = None
    if bounded:
        logits, ids = _keep_top_k(logits, [p.top_k for p in params])
    if any(p.top_p < 1 for p in params):
        top_p = upload([p.top_p for p in params], device, torch.float32)
        logits = _drop_below_top_p(logits, top_p)
    seeds = upload([p.seed for p in params], device)
    drawn = _invert(logits, uniform(seeds, positions))
    return drawn if ids is None else ids.gather(1, drawn[:, None])[:, 0]


def _keep_top_k(logits: torch.Tensor, top_k: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's candidates and their token ids ``[N, C]``, ids ascending.

    As in transformers, tokens as likely as the k-th stay, so a row may keep more than k (up to
    ``_TIES`` more). Rows with fewer candidates than C are filled up with tokens of logit minus
    infinity.
    """
    count = min(max(top_k) + _TIES, logits.shape[1])
    likeliest = logits.topk(count, dim=-1)
    threshold = likeliest.values.gather(1, upload(top_k, logits.device)[:, None] - 1)
    ids, order = likeliest.indices.sort(dim=-1)
    candidates = likeliest.values.gather(1, order)
    return candidates.masked_fill(candidates < threshold, -torch.inf), ids


def _drop_below_top_p(logits: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Set to minus infinity what transformers' top-p drops; the likeliest token always stays."""
    ascending, order = logits.sort(dim=-1, stable=True)
    mass = ascending.softmax(dim=-1).cumsum(dim=-1)
    dropped = (mass <= (1 - top_p)[:, None]) & (top_p < 1)[:, None]
    dropped[:, -1] = False
    return logits.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)


def _invert(logits: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """The column where the cumulative probability passes ``numbers``.

    Columns are in the order of token ids, so a rounding difference in the logits moves a border by
    as little and cannot swap two tokens. float64: a sum over 50,400 tokens keeps its small ones.
    """
    mass = logits.double().softmax(dim=-1).cumsum(dim=-1)
    target = numbers[:, None] * mass[:, -1:]
    return torch.searchsorted(mass, target, right=True)[:, 0].clamp(max=logits.shape[1] - 1)

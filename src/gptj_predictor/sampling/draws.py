"""Drawing a token: temperature, what is dropped, and a random number for the rest.

A random number depends on the seed and the token's position alone, so a row draws the same whatever
else is in the batch.
"""

from __future__ import annotations

import torch

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


def draw(
    logits: torch.Tensor, params: list[SamplingParams], positions: torch.Tensor, *, bounded: bool
) -> torch.Tensor:
    """Draw a token for every row, after transformers' warpers in the order of ``generate``.

    Args:
        logits: ``[N, vocabulary]`` fp32.
        params: The N rows' parameters; none is greedy.
        positions: ``[N]`` int64, of the tokens to draw.
        bounded: Whether all rows have a top-k below the vocabulary, or else none has.

    Returns:
        ``[N]`` int64.
    """
    device = logits.device
    logits = logits / upload([p.temperature for p in params], device, torch.float32)[:, None]
    ids = None
    if bounded:
        logits, ids = _keep_top_k(logits, [p.top_k for p in params])
    if any(p.top_p < 1 for p in params):
        top_p = upload([p.top_p for p in params], device, torch.float32)
        logits = _drop_below_top_p(logits, top_p)
    if any(p.min_p for p in params):
        min_p = upload([p.min_p for p in params], device, torch.float32)
        logits = drop_below_min_p(logits, min_p)
    typical = [i for i, p in enumerate(params) if p.typical_p < 1]
    if typical:
        typical_p = upload([params[i].typical_p for i in typical], device, torch.float32)
        rows = upload(typical, device)
        logits[rows] = drop_untypical(logits[rows], typical_p)
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


def drop_below_min_p(logits: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Set to minus infinity what is less likely than a share of the likeliest token.

    A ratio of probabilities is a difference of logits, so no sum over the row is needed.
    """
    least = logits.amax(dim=-1) + min_p.log()
    return logits.masked_fill(logits < least[:, None], -torch.inf)


def drop_untypical(logits: torch.Tensor, typical_p: torch.Tensor) -> torch.Tensor:
    """Set to minus infinity what transformers' locally typical sampling drops.

    Tokens stay in the order of how far their information is from the row's entropy, until their
    probabilities reach ``typical_p``; as in transformers, those as far as the last one stay too.
    Meister et al., Locally Typical Sampling (2022), section 3.
    """
    log_mass = logits.log_softmax(dim=-1)
    entropy = -(log_mass.exp() * log_mass).nansum(dim=-1, keepdim=True)
    distance = (-log_mass - entropy).abs()
    ascending, order = distance.sort(dim=-1, stable=True)
    reached = logits.gather(1, order).softmax(dim=-1).cumsum(dim=-1)
    last = (reached < typical_p[:, None]).sum(dim=-1, keepdim=True)
    farthest = ascending.gather(1, last.clamp(max=logits.shape[1] - 1))
    return logits.masked_fill(distance > farthest, -torch.inf)


def _invert(logits: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """The column where the cumulative probability passes ``numbers``.

    Columns are in the order of token ids, so a rounding difference in the logits moves a border by
    as little and cannot swap two tokens. float64: a sum over 50,400 tokens keeps its small ones.
    """
    mass = logits.double().softmax(dim=-1).cumsum(dim=-1)
    target = numbers[:, None] * mass[:, -1:]
    return torch.searchsorted(mass, target, right=True)[:, 0].clamp(max=logits.shape[1] - 1)

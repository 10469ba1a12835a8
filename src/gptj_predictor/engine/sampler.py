"""Which token comes next, for every row of a batch by its own parameters.

Processors run in the order of transformers' ``generate``: repetition penalty, minimum length,
temperature, top-k, top-p. Work that no row asks for is skipped.
"""

from __future__ import annotations

from typing import Any

import torch

from gptj_predictor.engine.sequence import Sequence

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
    """Picks one token per row."""

    def __init__(self, eos_token_ids: tuple[int, ...], device: torch.device) -> None:
        self.device = device
        self.eos_token_ids = torch.tensor(eos_token_ids, dtype=torch.int64, device=device)

    @torch.inference_mode()
    def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[int | None]:
        """Choose the next token of every sequence.

        Args:
            logits: ``[N, vocabulary]`` fp32; changed in place.
            sequences: The N rows' sequences.

        Returns:
            N token ids; ``None`` where the logits hold nothing to choose from (NaN or infinity).
        """
        finite = torch.isfinite(logits.amax(dim=-1)).tolist()
        self._penalize_repetition(logits, sequences)
        self._forbid_early_end(logits, sequences)
        chosen = logits.argmax(dim=-1)
        bounded: list[int] = []
        unbounded: list[int] = []
        for row, sequence in enumerate(sequences):
            if finite[row] and not sequence.params.greedy:
                below = 0 < sequence.params.top_k < logits.shape[1]
                (bounded if below else unbounded).append(row)
        for group in (bounded, unbounded):
            if group:
                chosen[group] = self._draw(logits[group], [sequences[i] for i in group])
        return [token if ok else None for token, ok in zip(chosen.tolist(), finite, strict=True)]

    def _penalize_repetition(self, logits: torch.Tensor, sequences: list[Sequence]) -> None:
        rows = [i for i, s in enumerate(sequences) if s.params.repetition_penalty != 1.0]
        if not rows:
            return
        longest = max(len(sequences[i].token_ids) for i in rows)
        # Padded with each row's own first token: penalizing a token twice writes the same value.
        seen = self._tensor(
            [(ids := sequences[i].token_ids) + ids[:1] * (longest - len(ids)) for i in rows],
            torch.int64,
        )
        penalties = self._tensor([sequences[i].params.repetition_penalty for i in rows])[:, None]
        some = logits[rows]
        scores = some.gather(1, seen)
        scores = torch.where(scores < 0, scores * penalties, scores / penalties)
        logits[rows] = some.scatter(1, seen, scores)

    def _forbid_early_end(self, logits: torch.Tensor, sequences: list[Sequence]) -> None:
        rows = [i for i, s in enumerate(sequences) if len(s.token_ids) < s.params.min_length]
        if rows and len(self.eos_token_ids):
            places = self._tensor(rows, torch.int64)
            logits[places[:, None], self.eos_token_ids] = -torch.inf

    def _draw(self, logits: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor:
        """Sample every row; either all rows have a top-k below the vocabulary, or none has."""
        params = [s.params for s in sequences]
        logits = logits / self._tensor([p.temperature for p in params])[:, None]
        ids = None
        if 0 < params[0].top_k < logits.shape[1]:
            logits, ids = _keep_top_k(logits, self._tensor([p.top_k for p in params], torch.int64))
        if any(p.top_p < 1 for p in params):
            logits = _drop_below_top_p(logits, self._tensor([p.top_p for p in params]))
        numbers = uniform(
            self._tensor([s.params.seed for s in sequences], torch.int64),
            self._tensor([len(s.token_ids) for s in sequences], torch.int64),
        )
        drawn = _invert(logits, numbers)
        return drawn if ids is None else ids.gather(1, drawn[:, None])[:, 0]

    def _tensor(self, values: list[Any], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=self.device)


def _keep_top_k(logits: torch.Tensor, top_k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's candidates and their token ids ``[N, C]``, ids ascending.

    As in transformers, tokens as likely as the k-th stay, so a row may keep more than k. Rows with
    fewer candidates than C are filled up with tokens of logit minus infinity.
    """
    likeliest = logits.topk(int(top_k.max()), dim=-1)
    threshold = likeliest.values.gather(1, top_k[:, None] - 1)
    count = int((logits >= threshold).sum(dim=-1, dtype=torch.int32).max())
    if count > likeliest.values.shape[1]:  # ties beyond the k-th
        likeliest = logits.topk(count, dim=-1)
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

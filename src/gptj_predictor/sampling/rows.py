"""What the fused kernel reads about a row, kept as arrays so that a step only copies it.

Most rows go through :mod:`gptj_predictor.sampling.fused`. Rows that ask for what it does not have
take the general path, :class:`gptj_predictor.sampling.sampler.Sampler`: a logit bias, a penalty of
any kind, typical-p, log-probabilities, or a minimum length with more than ``MAX_ENDS`` tokens that
end the text. Which path a row takes depends on its own parameters alone, never on its neighbors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptj_predictor.sampling.params import SamplingParams

#: Tokens that a row may be kept from while it is short: a power of two, for the kernel.
MAX_ENDS = 8
#: In place of such a token.
NO_TOKEN = -1


@dataclass(frozen=True)
class RowFields:
    """Of N rows, what the kernel reads beside their logits.

    Attributes:
        seeds: ``[N]`` int64.
        temperatures: ``[N]`` fp32; 0 takes the most likely token.
        top_ps: ``[N]`` fp32.
        log_min_ps: ``[N]`` fp32, natural logarithms.
        top_ks: ``[N]`` int32; 0 keeps all.
        ends: ``[N, MAX_ENDS]`` int32, tokens not to choose now, filled up with ``NO_TOKEN``.
    """

    seeds: NDArray[np.int64]
    temperatures: NDArray[np.float32]
    top_ps: NDArray[np.float32]
    log_min_ps: NDArray[np.float32]
    top_ks: NDArray[np.int32]
    ends: NDArray[np.int32]

    def pad(self, start: int) -> None:
        """Make the rows from ``start`` on ones that are no work."""
        self.temperatures[start:] = 0
        self.ends[start:] = NO_TOKEN


class RowTable:
    """The parameters of everybody in the batch, by batch index."""

    def __init__(
        self, max_batch_size: int, vocabulary: int, eos_token_ids: tuple[int, ...]
    ) -> None:
        """Room for a batch; every end of text is in ``eos_token_ids``."""
        self._vocabulary, self._eos_token_ids = vocabulary, eos_token_ids
        size = max_batch_size
        self._fields = RowFields(
            seeds=np.zeros(size, np.int64),
            temperatures=np.zeros(size, np.float32),
            top_ps=np.ones(size, np.float32),
            log_min_ps=np.full(size, -np.inf, np.float32),
            top_ks=np.zeros(size, np.int32),
            ends=np.full((size, MAX_ENDS), NO_TOKEN, np.int32),
        )
        self._min_lengths = np.zeros(size, np.int64)
        self._general = np.zeros(size, np.bool_)

    def set(self, index: int, params: SamplingParams) -> None:
        """Somebody takes a place in the batch."""
        ends = list(params.stop_token_ids)
        ends += [] if params.ignore_eos else self._eos_token_ids
        general = (
            params.adjusts_logits
            or params.typical_p < 1
            or params.logprobs is not None
            or (params.min_length > 0 and len(ends) > MAX_ENDS)
        )
        fields = self._fields
        fields.seeds[index] = params.seed
        # The general path reads the logits as they are, so the kernel must not write to them.
        fields.temperatures[index] = 0 if general else params.temperature
        fields.top_ps[index] = params.top_p
        fields.log_min_ps[index] = math.log(params.min_p) if params.min_p else -math.inf
        fields.top_ks[index] = params.top_k if params.top_k < self._vocabulary else 0
        fields.ends[index] = NO_TOKEN
        if not general:
            fields.ends[index, : len(ends)] = ends[:MAX_ENDS]
        self._min_lengths[index] = params.min_length
        self._general[index] = general

    def read(self, indices: NDArray[np.int64], lengths: NDArray[np.int64], to: RowFields) -> None:
        """Copy what is known of N rows to the first N of ``to``.

        Args:
            indices: Their batch indices.
            lengths: Their tokens so far.
            to: Room for N rows or more; the others are padding.
        """
        count = len(indices)
        for name, column in vars(self._fields).items():
            getattr(to, name)[:count] = column[indices]
        to.ends[:count][lengths >= self._min_lengths[indices]] = NO_TOKEN
        to.pad(count)

    def general(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of N rows take the general path."""
        return np.flatnonzero(self._general[indices])

"""The log-probabilities that a step's sequences ask for, before the sampler changes the logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gptj_predictor.common.row_limits import SCORED_ROWS
from gptj_predictor.common.upload import upload
from gptj_predictor.engine.batch import Batch
from gptj_predictor.engine.request import TokenLogprobs
from gptj_predictor.engine.sequence import ScheduledChunk
from gptj_predictor.sampling.logprobs import Logprobs
from gptj_predictor.sampling.params import SamplingParams


@dataclass(frozen=True)
class StepLogprobs:
    """Log-probabilities of a step, and whose they are.

    Attributes:
        owners: Chunks in order: how many rows belong to each, and of how many likeliest tokens its
            sequence wants to know.
        rows: All rows; on the host they are there when the step is done.
    """

    owners: list[tuple[ScheduledChunk, int, int]]
    rows: Logprobs

    def to_host(self) -> StepLogprobs:
        """The same on the host; see :meth:`Logprobs.to_host`."""
        return StepLogprobs(self.owners, self.rows.to_host())

    def read(self) -> list[tuple[ScheduledChunk, list[TokenLogprobs]]]:
        """Each chunk's, as plain values."""
        rows = zip(self.rows.ids.tolist(), self.rows.values.tolist(), strict=True)
        return [
            (chunk, [_token_logprobs(*next(rows), count) for _ in range(num_rows)])
            for chunk, num_rows, count in self.owners
        ]


def _token_logprobs(ids: list[int], values: list[float], count: int) -> TokenLogprobs:
    likeliest = zip(ids[1 : count + 1], values[1 : count + 1], strict=True)
    return TokenLogprobs(ids[0], values[0], tuple(likeliest))


class RawLogits:
    """The logits of the sampling chunks that ask, kept until their tokens are chosen."""

    def __init__(self, logits: torch.Tensor, params: Sequence[SamplingParams]) -> None:
        """Copy the rows that are needed.

        Args:
            logits: ``[N, vocabulary]`` fp32.
            params: The N chunks' parameters.
        """
        self._asking = [i for i, p in enumerate(params) if p.logprobs is not None]
        if self._asking:
            self._rows = upload(self._asking, logits.device)
            self._logits = logits[self._rows]

    def logprobs(
        self, chunks: Sequence[ScheduledChunk], tokens: torch.Tensor
    ) -> StepLogprobs | None:
        """From the N chunks and their chosen tokens, which may be -1; ``None`` if none asks."""
        if not self._asking:
            return None
        owners = [(chunks[i], 1, chunks[i].sequence.params.logprobs or 0) for i in self._asking]
        count = max(count for _, _, count in owners)
        chosen = tokens[self._rows].clamp(min=0)
        return StepLogprobs(owners, Logprobs.of(self._logits, chosen, count))


def score_prompts(
    chunks: Sequence[ScheduledChunk],
    batch: Batch,
    token_table: torch.Tensor,
    hidden: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
) -> StepLogprobs | None:
    """How likely the tokens are that follow those of the chunks in their prompts.

    The logits of ``SCORED_ROWS`` tokens are reduced before those of the next are computed.

    Args:
        chunks: Of a step.
        batch: Its T tokens, on the device.
        token_table: ``[max_batch_size, context]`` int64 on the device, all tokens so far.
        hidden: ``[T, H]``, the last layer's.
        head: From these to fp32 logits ``[T, vocabulary]``, for any rows of them.

    Returns:
        ``None`` if no sequence asks.
    """
    owners, rows, first = list[tuple[ScheduledChunk, int, int]](), [], 0
    for chunk in chunks:
        if num_scored := chunk.num_scored:
            owners.append((chunk, num_scored, chunk.sequence.params.prompt_logprobs or 0))
            rows.append(np.arange(first, first + num_scored))
        first += chunk.num_tokens
    if not owners:
        return None
    count = max(count for _, _, count in owners)
    parts = []
    for some in upload(np.concatenate(rows), hidden.device).split(SCORED_ROWS):
        following = token_table[batch.batch_indices[some], batch.positions[some] + 1]
        parts.append(Logprobs.of(head(hidden[some]), following, count))
    return StepLogprobs(owners, Logprobs.concatenate(parts))

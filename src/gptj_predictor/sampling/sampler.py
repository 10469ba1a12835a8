"""Which token comes next, for every row of a batch by its own parameters.

Processors run in this order: logit bias; then as in transformers' ``generate`` the repetition
penalty; presence and frequency penalty, at vLLM's place; then again as in ``generate`` minimum
length, temperature, top-k, top-p, min-p, typical-p. Work that no row asks for is skipped.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from gptj_predictor.common.row_limits import SORTED_ROWS
from gptj_predictor.common.upload import upload
from gptj_predictor.sampling.draws import draw
from gptj_predictor.sampling.params import SamplingParams
from gptj_predictor.sampling.processors import (
    add_bias,
    keep_from_ending,
    penalize_output,
    penalize_repetition,
)


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
        prompt_lengths: Sequence[int],
        token_table: torch.Tensor,
        places: torch.Tensor,
    ) -> torch.Tensor:
        """Choose the next token of every row.

        Args:
            logits: ``[N, vocabulary]`` fp32; changed in place.
            params: The N rows' parameters.
            lengths: ``[N]``, tokens of each row so far, on the host.
            prompt_lengths: N counts: how many of those were not generated.
            token_table: ``[max_batch_size, context]`` int64, tokens so far, on the device.
            places: ``[2, N]`` int64 on the device: each row's batch index, and its length again.

        Returns:
            ``[N]`` int64 on the device; -1 where no logit is finite.
        """
        if any(p.adjusts_logits for p in params):
            add_bias(logits, params)
            penalize_repetition(logits, params, lengths, token_table, places)
            penalize_output(logits, params, lengths, prompt_lengths, token_table, places)
        keep_from_ending(logits, params, lengths, self.eos_token_ids)
        chosen, finite = _likeliest(logits)
        vocabulary = logits.shape[1]
        drawing = [i for i, p in enumerate(params) if not p.greedy]
        for bounded in (True, False):
            group = [i for i in drawing if (0 < params[i].top_k < vocabulary) is bounded]
            size = len(group) if bounded else SORTED_ROWS  # few candidates take little memory
            for start in range(0, len(group), size or 1):
                some = group[start : start + size]
                rows = upload(some, logits.device)
                chosen[rows] = draw(
                    logits[rows], [params[i] for i in some], places[1, rows], bounded=bounded
                )
        return chosen.where(finite, -1)


def _likeliest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``[N]`` int64, where each row is largest, and ``[N]`` bool, whether it is finite there.

    What is not a number counts as larger than all numbers.
    """
    if logits.device.type == "cpu":  # in a seventh of torch's time
        rows = logits.numpy()
        chosen = rows.argmax(axis=-1)
        finite = np.isfinite(rows[np.arange(len(rows)), chosen])
        return torch.from_numpy(chosen), torch.from_numpy(finite)
    places = logits.argmax(dim=-1)
    return places, logits.gather(1, places[:, None])[:, 0].isfinite()

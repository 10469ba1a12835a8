"""Turning chosen sequences into tensors and running the network on them."""

from __future__ import annotations

import torch

from gptj_predictor.engine.sequence import Sequence
from gptj_predictor.model.kv_cache import NULL_PAGE, PagedKVCache, StepInputs
from gptj_predictor.model.network import GPTJNetwork


class ModelRunner:
    """The network, its cache and the way into them."""

    def __init__(self, network: GPTJNetwork, cache: PagedKVCache, device: torch.device) -> None:
        self.network = network
        self.cache = cache
        self.device = device

    def run(self, sequences: list[Sequence]) -> torch.Tensor:
        """Run every sequence's new tokens.

        Args:
            sequences: N sequences with pages, those that bring one token first.

        Returns:
            Logits ``[N, vocabulary]`` for each sequence's next token.
        """
        inputs = self._inputs(sequences)
        ends = torch.tensor(inputs.query_lengths, device=self.device).cumsum(0) - 1
        return self.network(inputs, self.cache, ends)

    def _inputs(self, sequences: list[Sequence]) -> StepInputs:
        size = self.cache.page_size
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for sequence in sequences:
            token_ids += sequence.new_token_ids
            places = range(sequence.cached, len(sequence.token_ids))
            positions += places
            slots += [sequence.pages[place // size] * size + place % size for place in places]
        longest = max(len(sequence.pages) for sequence in sequences)
        tables = [s.pages + [NULL_PAGE] * (longest - len(s.pages)) for s in sequences]
        return StepInputs(
            token_ids=self._tensor(token_ids),
            positions=self._tensor(positions),
            cache_slots=self._tensor(slots),
            query_lengths=[len(s.token_ids) - s.cached for s in sequences],
            context_lengths=[len(s.token_ids) for s in sequences],
            block_tables=self._tensor(tables),
        )

    def _tensor(self, values: list[int] | list[list[int]]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)

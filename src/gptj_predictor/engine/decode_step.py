"""A step of decoding sequences that depends on tensors alone. Importing it needs Triton."""

from __future__ import annotations

import torch

from gptj_predictor.engine.decode_inputs import DecodeInputs
from gptj_predictor.model.kv_cache import PagedKVCache
from gptj_predictor.model.network import GPTJNetwork
from gptj_predictor.model.step_inputs import StepInputs
from gptj_predictor.sampling.fused import sample_rows


class DecodeStep:
    """From tokens in the table to the next tokens in the table, without the host.

    Logits and tokens are in static memory, so that every graph writes to the same and a row that
    needs the general sampler finds its logits after a replay.

    Attributes:
        logits: ``[max_batch_size, vocabulary]`` of the network's dtype, the last step's. Where a
            row was kept from ending, those of what would end it are minus infinity.
    """

    def __init__(
        self,
        network: GPTJNetwork,
        cache: PagedKVCache,
        token_table: torch.Tensor,
        max_batch_size: int,
    ) -> None:
        """Allocate logits and tokens on the head's device."""
        self._network, self._cache, self._token_table = network, cache, token_table
        shape, device = (max_batch_size, network.config.vocab_size), network.placement.head
        self.logits = torch.empty(shape, dtype=network.dtype, device=device)
        self._tokens = torch.empty(max_batch_size, dtype=torch.int64, device=device)

    def run(self, inputs: DecodeInputs) -> torch.Tensor:
        """Take in D tokens and choose the next ones; ``[D]`` int64 as :meth:`choose`."""
        step = StepInputs(
            token_ids=self._token_table[inputs.batch_indices, inputs.positions],
            positions=inputs.positions,
            slot_mapping=inputs.slot_mapping,
            page_tables=inputs.page_tables,
            context_lengths=inputs.lengths,
            contexts=[],
            chunks=[],
        )
        return self.choose(self._network.hidden_states(step, self._cache), inputs)

    def choose(self, hidden: torch.Tensor, inputs: DecodeInputs) -> torch.Tensor:
        """The tokens after N rows of hidden states, which go to the token table too.

        Args:
            hidden: ``[N, H]``, the last layer's.
            inputs: How to choose; of its fields only those that describe sampling.

        Returns:
            ``[N]`` int64, -1 where no logit is finite; the next call overwrites them.
        """
        count = hidden.shape[0]
        logits, tokens = self.logits[:count], self._tokens[:count]
        self._network.write_logits(hidden, logits)
        choose_tokens(logits, inputs, token_table=self._token_table, out=tokens)
        return tokens


def choose_tokens(
    logits: torch.Tensor, inputs: DecodeInputs, *, token_table: torch.Tensor, out: torch.Tensor
) -> None:
    """Choose as the inputs say; see :func:`sample_rows`.

    Args:
        logits: ``[N, vocabulary]``.
        inputs: Of its fields those that describe sampling.
        token_table: Gets the tokens.
        out: ``[N]`` int64, gets them too.
    """
    sample_rows(
        logits,
        seeds=inputs.seeds,
        temperatures=inputs.temperatures,
        top_ps=inputs.top_ps,
        log_min_ps=inputs.log_min_ps,
        top_ks=inputs.top_ks,
        ends=inputs.ends,
        batch_indices=inputs.batch_indices,
        lengths=inputs.lengths,
        token_table=token_table,
        out=out,
    )

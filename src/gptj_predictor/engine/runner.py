"""Runs scheduled chunks: tensors from them, the network on these, the sampler on its logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from gptj_predictor.common.upload import upload
from gptj_predictor.engine.batch import Batch
from gptj_predictor.engine.decode_inputs import DecodeInputs
from gptj_predictor.engine.graphs import Capture, DecodeGraphs
from gptj_predictor.engine.request import TokenLogprobs
from gptj_predictor.engine.sequence import ScheduledChunk, StepResults
from gptj_predictor.engine.step_logprobs import RawLogits, StepLogprobs, score_prompts
from gptj_predictor.model.kv_cache import PagedKVCache
from gptj_predictor.model.network import GPTJNetwork
from gptj_predictor.model.prefill_plan import PrefillChunk
from gptj_predictor.model.step_inputs import StepInputs
from gptj_predictor.sampling.rows import RowTable
from gptj_predictor.sampling.sampler import Sampler

if TYPE_CHECKING:
    from gptj_predictor.engine.decode_step import DecodeStep


@dataclass(frozen=True)
class LaunchedStep:
    """A step that the device has computed or will compute."""

    chunks: list[ScheduledChunk]
    tokens: torch.Tensor  # [N] int64 on the host, one for each chunk that samples
    logprobs: StepLogprobs | None  # of these, on the host
    prompt_logprobs: StepLogprobs | None
    done: torch.cuda.Event | None  # when all that is there; none if it is

    def wait(self) -> StepResults:
        """What has come of the step.

        Raises:
            RuntimeError: the device could not compute the step.
        """
        if self.done is not None:
            self.done.synchronize()
        sampling = _sampling(self.chunks)
        return StepResults(
            tokens=list(zip(sampling, self.tokens.tolist(), strict=True)),
            completed=[c for c in self.chunks if c.completes]
            if len(sampling) < len(self.chunks)
            else [],
            logprobs={chunk.sequence: one for chunk, [one] in _read(self.logprobs)},
            prompt_logprobs=_read(self.prompt_logprobs),
        )


def _read(logprobs: StepLogprobs | None) -> list[tuple[ScheduledChunk, list[TokenLogprobs]]]:
    return [] if logprobs is None else logprobs.read()


class ModelRunner:
    """The network, its KV cache, the sampler, and the tokens of all running sequences.

    The tokens are in a table on the device, which the next step's input is read from. So a step can
    be launched before the last one's tokens have come back.
    """

    def __init__(
        self, network: GPTJNetwork, cache: PagedKVCache, sampler: Sampler, max_batch_size: int
    ) -> None:
        self.device = network.placement.head
        self._network = network
        self._cache = cache
        self._sampler = sampler
        self._max_batch_size = max_batch_size
        context = network.config.n_positions
        # The last row belongs to nobody: a graph's padding reads it.
        self._token_table = torch.zeros(max_batch_size + 1, context, dtype=torch.int64).to(
            self.device
        )
        # Whose tokens are in each row: a sequence's number and epoch.
        self._residents = [(0, 0)] * max_batch_size
        self._max_pages = -(-context // cache.page_size)
        self._rows = RowTable(max_batch_size, network.config.vocab_size, sampler.eos_token_ids)
        self._decode = self._decode_step()
        self._graphs: DecodeGraphs | None = None

    def _decode_step(self) -> DecodeStep | None:
        """What decodes and samples on the device alone, where kernels of ours can."""
        if not self._network.attentions[self.device].capturable:
            return None
        from gptj_predictor.engine.decode_step import DecodeStep

        return DecodeStep(self._network, self._cache, self._token_table, self._max_batch_size)

    @torch.inference_mode()
    def capture_graphs(self, capture: Capture) -> None:
        """Have decoding replayed from graphs from now on.

        Raises:
            ValueError: the head's device cannot decode without the host.
        """
        if self._decode is None:
            raise ValueError(f"decoding on {self.device} cannot be captured")
        self._graphs = DecodeGraphs(
            self._decode.run,
            capture,
            max_batch_size=self._max_batch_size,
            max_pages=self._max_pages,
            padding_index=self._max_batch_size,
            device=self.device,
        )

    @torch.inference_mode()
    def launch(self, chunks: list[ScheduledChunk]) -> LaunchedStep:
        """Start a step; on a GPU without waiting for it or for the one before.

        Args:
            chunks: At least one; those of one token first.

        Raises:
            RuntimeError: the device could not compute it (out of memory included).
        """
        if self._decode is None:
            chunks = sorted(chunks, key=_place)
        self._upload_new_sequences(chunks)
        prompt_logprobs = None
        if all(chunk.num_tokens == 1 and chunk.samples for chunk in chunks):
            tokens, logprobs = self._run_decodes(chunks)
        else:
            batch = Batch.build(chunks, self._cache.page_size, self._max_pages)
            batch = batch.upload(self.device)
            hidden = self._hidden_states(batch, chunks)
            prompt_logprobs = score_prompts(
                chunks, batch, self._token_table, hidden, self._network.logits
            )
            ends = np.cumsum([chunk.num_tokens for chunk in chunks]) - 1
            sampled = upload(ends[[chunk.samples for chunk in chunks]], self.device)
            tokens, logprobs = self._choose(hidden[sampled], _sampling(chunks))
        if self.device.type != "cuda":
            if self._decode is not None:  # the next step will use the tokens' memory
                tokens = tokens.clone()
            return LaunchedStep(chunks, tokens, logprobs, prompt_logprobs, None)
        done = torch.cuda.Event(blocking=True)  # whoever waits for it sleeps; the next step runs
        tokens = tokens.to("cpu", non_blocking=True)
        logprobs = logprobs and logprobs.to_host()
        prompt_logprobs = prompt_logprobs and prompt_logprobs.to_host()
        done.record()
        return LaunchedStep(chunks, tokens, logprobs, prompt_logprobs, done)

    def _upload_new_sequences(self, chunks: list[ScheduledChunk]) -> None:
        """Bring the known tokens of sequences that have just joined the batch to the device."""
        for chunk in chunks:
            resident = (chunk.sequence.number, chunk.epoch)
            if self._residents[chunk.batch_index] != resident:
                tokens = upload(chunk.sequence.token_ids, self.device)
                self._token_table[chunk.batch_index, : len(tokens)] = tokens
                if self._decode is not None:
                    self._rows.set(chunk.batch_index, chunk.sequence.params)
                self._residents[chunk.batch_index] = resident

    def _run_decodes(
        self, chunks: list[ScheduledChunk]
    ) -> tuple[torch.Tensor, StepLogprobs | None]:
        """A step in which all decode; returns what :meth:`_choose` does."""
        if self._decode is None:
            batch = Batch.build(chunks, self._cache.page_size, self._max_pages)
            return self._choose(self._hidden_states(batch.upload(self.device), chunks), chunks)
        count = len(chunks)
        size = count if self._graphs is None else self._graphs.size_for(count)
        inputs = self._decode_inputs(chunks, size, self._max_pages)
        if self._graphs is None:
            tokens = self._decode.run(inputs.upload(self.device))
        else:
            tokens = self._graphs.replay(inputs)[:count]
        return self._choose_general(tokens, chunks)

    def _choose(
        self, hidden: torch.Tensor, chunks: list[ScheduledChunk]
    ) -> tuple[torch.Tensor, StepLogprobs | None]:
        """The tokens ``[N]`` int64 after N rows of hidden states, and what is asked about them."""
        if self._decode is None or not chunks:
            return self._sample(self._network.logits(hidden), chunks)
        inputs = self._decode_inputs(chunks, len(chunks), max_pages=0)
        tokens = self._decode.choose(hidden, inputs.upload(self.device))
        return self._choose_general(tokens, chunks)

    def _choose_general(
        self, tokens: torch.Tensor, chunks: list[ScheduledChunk]
    ) -> tuple[torch.Tensor, StepLogprobs | None]:
        """Replace the tokens of rows that the fused kernel is not for."""
        assert self._decode is not None
        general = self._rows.general(np.array([chunk.batch_index for chunk in chunks]))
        if not general.size:
            return tokens, None
        rows = upload(general, self.device)
        logits = self._decode.logits[rows].float()
        chosen, logprobs = self._sample(logits, [chunks[row] for row in general])
        return tokens.index_copy(0, rows, chosen), logprobs

    def _decode_inputs(
        self, chunks: list[ScheduledChunk], size: int, max_pages: int
    ) -> DecodeInputs:
        return DecodeInputs.build(
            chunks,
            self._rows,
            size=size,
            page_size=self._cache.page_size,
            max_pages=max_pages,
            padding_index=self._max_batch_size,
        )

    def _hidden_states(self, batch: Batch, chunks: Sequence[ScheduledChunk]) -> torch.Tensor:
        """Run the network up to its last layer.

        Args:
            batch: On the device.
            chunks: What the batch was built from, for attention that cannot read page tables.

        Returns:
            ``[T, H]``.
        """
        num_decodes = batch.page_tables.shape[0]
        step = StepInputs(
            token_ids=self._token_table[batch.batch_indices, batch.positions],
            positions=batch.positions,
            slot_mapping=batch.slot_mapping,
            page_tables=batch.page_tables,
            context_lengths=batch.context_lengths[:num_decodes],
            contexts=[chunk.page_table.extents(chunk.end) for chunk in chunks[:num_decodes]],
            chunks=[
                PrefillChunk(chunk.num_tokens, chunk.page_table.extents(chunk.start))
                for chunk in chunks[num_decodes:]
            ],
        )
        return self._network.hidden_states(step, self._cache)

    def _sample(
        self, logits: torch.Tensor, chunks: list[ScheduledChunk]
    ) -> tuple[torch.Tensor, StepLogprobs | None]:
        if not chunks:
            return torch.empty(0, dtype=torch.int64), None
        lengths = np.array([chunk.end for chunk in chunks], dtype=np.int64)
        indices = np.array([chunk.batch_index for chunk in chunks], dtype=np.int64)
        # Where the new tokens go in the table.
        places = upload(np.stack([indices, lengths]), self.device)
        params = [chunk.sequence.params for chunk in chunks]
        raw = RawLogits(logits, params)
        prompt_lengths = [chunk.sequence.num_prompt_tokens for chunk in chunks]
        tokens = self._sampler.sample(
            logits, params, lengths, prompt_lengths, self._token_table, places
        )
        # A failed sequence ends; until then its token must be one that can be looked up.
        self._token_table[places[0], places[1]] = tokens.clamp(min=0)
        return tokens, raw.logprobs(chunks, tokens)


def _place(chunk: ScheduledChunk) -> tuple[bool, int]:
    """Those of one token first, by where they begin in the cache: torch copies two at once then."""
    is_single = chunk.num_tokens == 1
    return not is_single, chunk.page_table.pages[0] if is_single else 0


def _sampling(chunks: list[ScheduledChunk]) -> list[ScheduledChunk]:
    return [chunk for chunk in chunks if chunk.samples]

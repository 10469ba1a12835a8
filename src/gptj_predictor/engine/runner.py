"""Turning planned rows into tensors, running the network on them and sampling their tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gptj_predictor.engine.graphs import Capture, DecodeGraphs
from gptj_predictor.engine.pages import PageTable
from gptj_predictor.engine.sampler import Sampler
from gptj_predictor.engine.sequence import Row, Sequence
from gptj_predictor.engine.upload import pinned, upload
from gptj_predictor.model.kv_cache import PagedKVCache
from gptj_predictor.model.network import GPTJNetwork
from gptj_predictor.model.step_inputs import PrefillChunk, StepInputs

#: Rows of the array that a step's decoding is described by, see :meth:`ModelRunner.decode`.
_SLOTS, _POSITIONS, _CACHE_SLOTS, _LENGTHS = range(4)


@dataclass(frozen=True)
class LaunchedStep:
    """A step that the device has or will have computed.

    Attributes:
        rows: What it was launched for.
        tokens: ``[N]`` int64 on the host, one for each row that samples, filled once ``done`` has
            happened; -1 where the logits held nothing to choose from.
        done: ``None`` if it is filled already.
    """

    rows: list[Row]
    tokens: torch.Tensor
    done: torch.cuda.Event | None

    def wait(self) -> list[tuple[Row, int]]:
        """The rows that sample and their new tokens.

        Raises:
            RuntimeError: the device could not compute the step.
        """
        if self.done is not None:
            self.done.synchronize()
        return list(zip(_sampling(self.rows), self.tokens.tolist(), strict=True))


class ModelRunner:
    """The network, its cache, the sampler, and every running sequence's tokens on the device.

    The next step's input is read from the device's own table of tokens, so a step can be launched
    before the last one's tokens have come back.
    """

    def __init__(
        self, network: GPTJNetwork, cache: PagedKVCache, *, sampler: Sampler, max_batch_size: int
    ) -> None:
        self.network = network
        self.cache = cache
        self.device = network.placement.head
        self._sampler = sampler
        self._max_batch_size = max_batch_size
        context = network.config.n_positions
        # The last row belongs to nobody: a graph's padding reads it.
        self._token_table = torch.zeros(max_batch_size + 1, context, dtype=torch.int64).to(
            self.device
        )
        self._most_pages = -(-context // cache.page_size)
        self._graphs: DecodeGraphs | None = None

    def capture_graphs(self, capture: Capture) -> None:
        """Have decoding replayed from graphs from now on."""
        self._graphs = DecodeGraphs(
            self.decode,
            capture,
            max_batch_size=self._max_batch_size,
            most_pages=self._most_pages,
            padding_slot=self._max_batch_size,
            device=self.device,
        )

    @torch.inference_mode()
    def admit(self, sequence: Sequence) -> None:
        """Bring a sequence's tokens to the device, into its slot."""
        tokens = upload(sequence.token_ids, self.device)
        self._token_table[sequence.slot, : len(tokens)] = tokens

    @torch.inference_mode()
    def launch(self, rows: list[Row]) -> LaunchedStep:
        """Start a step; on a GPU without waiting for it or for the one before.

        Args:
            rows: Rows of one token first.
        """
        decoding = [row for row in rows if row.count == 1]
        decode = _describe_decodes(decoding, self.cache.page_size)
        tables = _page_tables(decoding, self._most_pages)
        if not all(row.count == 1 and row.samples for row in rows):
            logits = self._run_mixed(rows, decode, tables)
        elif self._graphs is not None:
            logits = self._graphs.replay(pinned(decode, self.device), pinned(tables, self.device))
        else:
            logits = self.decode(upload(decode, self.device), upload(tables, self.device), rows)
        tokens = self._sample(logits, _sampling(rows))
        if self.device.type != "cuda":
            return LaunchedStep(rows, tokens, None)
        done = torch.cuda.Event()
        tokens = tokens.to("cpu", non_blocking=True)
        done.record()
        return LaunchedStep(rows, tokens, done)

    def decode(
        self, decode: torch.Tensor, tables: torch.Tensor, rows: list[Row] | None = None
    ) -> torch.Tensor:
        """Run D sequences' next tokens: on the device this depends on the two tensors alone.

        Args:
            decode: ``[4, D]`` int64: slots, positions, cache slots, lengths.
            tables: ``[D, P]`` int32 page tables.
            rows: The D rows, for attention that cannot read the tables.

        Returns:
            Logits ``[D, vocabulary]``.
        """
        return self.network(self._step(decode, tables, rows or [], []), self.cache)

    def _run_mixed(
        self, rows: list[Row], decode: NDArray[np.int64], tables: NDArray[np.int32]
    ) -> torch.Tensor:
        decodes = decode.shape[1]
        prefill = [_describe_chunk(row, self.cache.page_size) for row in rows[decodes:]]
        tokens = upload(np.concatenate([decode, *prefill], axis=1), self.device)
        page_tables = upload(tables, self.device)
        step = self._step(tokens, page_tables, rows[:decodes], rows[decodes:])
        ends = np.cumsum([row.count for row in rows]) - 1
        sampling = upload(ends[[row.samples for row in rows]], self.device)
        return self.network(step, self.cache, sampling)

    def _step(
        self, tokens: torch.Tensor, tables: torch.Tensor, decoding: list[Row], prefill: list[Row]
    ) -> StepInputs:
        positions = tokens[_POSITIONS]
        return StepInputs(
            token_ids=self._token_table[tokens[_SLOTS], positions],
            positions=positions,
            slot_mapping=tokens[_CACHE_SLOTS],
            page_tables=tables,
            context_lengths=tokens[_LENGTHS, : tables.shape[0]].int(),
            contexts=[_table(row).extents(row.start + 1) for row in decoding],
            chunks=[PrefillChunk(row.count, _table(row).extents(row.start)) for row in prefill],
        )

    def _sample(self, logits: torch.Tensor, rows: list[Row]) -> torch.Tensor:
        if not rows:
            return torch.empty(0, dtype=torch.int64)
        slots = np.array([row.sequence.slot for row in rows], dtype=np.int64)
        lengths = np.array([row.start + row.count for row in rows], dtype=np.int64)
        places = upload(np.stack([slots, lengths]), self.device)
        tokens = self._sampler.sample(
            logits, [row.sequence.params for row in rows], lengths, self._token_table, places
        )
        # A failed row's sequence ends; until then its token must be one that can be looked up.
        self._token_table[places[0], places[1]] = tokens.clamp(min=0)
        return tokens


def _describe_decodes(rows: list[Row], page_size: int) -> NDArray[np.int64]:
    """``[4, D]``: see :meth:`ModelRunner.decode`."""
    slots = np.array([row.sequence.slot for row in rows], dtype=np.int64)
    starts = np.array([row.start for row in rows], dtype=np.int64)
    pages = [_table(row).pages[row.start // page_size] for row in rows]
    slot_mapping = np.array(pages, dtype=np.int64) * page_size + starts % page_size
    return np.stack([slots, starts, slot_mapping, starts + 1])


def _describe_chunk(row: Row, page_size: int) -> NDArray[np.int64]:
    """``[4, count]`` as :func:`_describe_decodes`, for the neighbouring tokens of one prompt."""
    positions = np.arange(row.start, row.start + row.count)
    slot_mapping = _table(row).row[positions // page_size] * page_size + positions % page_size
    slots = np.full(row.count, row.sequence.slot)
    return np.stack([slots, positions, slot_mapping, positions + 1])


def _page_tables(rows: list[Row], most_pages: int) -> NDArray[np.int32]:
    if not rows:
        return np.empty((0, most_pages), dtype=np.int32)
    return np.stack([_table(row).row for row in rows])


def _sampling(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.samples]


def _table(row: Row) -> PageTable:
    assert row.sequence.table is not None
    return row.sequence.table

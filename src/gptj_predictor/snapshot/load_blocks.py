"""Carrying out a load's plan.

Several readers take blocks of the files in turn, as one alone gets a third of what a disk or a
network volume gives. A block is read where it belongs, or by way of a small buffer if it has to be
cast, spread over the rows of a fused weight or sent to a GPU; its digest is taken while it is still
in the processor's cache. A weight is quantized or packed as soon as it is whole, while the next
ones are read.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import torch

from gptj_predictor.snapshot.blocks import BLOCK_BYTES, block_digest, read_into
from gptj_predictor.snapshot.builder import NetworkBuilder
from gptj_predictor.snapshot.errors import SnapshotDamagedError, SnapshotError
from gptj_predictor.snapshot.load_plan import Block, BlockGroup

#: Threads that read. Beyond 8 a local disk gave nothing more (``benchmarks/weight_loading.py``).
READERS = 8

#: Weights that are being read or copied at the same time. Memory that was never used costs as much
#: time as reading into it, so weights that are copied are read into memory that is used again.
STAGINGS = 2

_Stagings = dict[torch.device, list[torch.Tensor]]


@dataclass
class _Filling:
    """A group whose blocks are being read.

    Attributes:
        group: The group.
        memory: Its parameter's, if it has one.
        staging: What ``memory`` is a part of, if it is to be copied.
        left: How many blocks have not been read.
    """

    group: BlockGroup
    memory: torch.Tensor | None
    staging: torch.Tensor | None
    left: int


@dataclass(frozen=True)
class _Times:
    """Seconds of a reader: for reading with digests, and for putting values in their places."""

    reading: float = 0.0
    placing: float = 0.0

    def __add__(self, other: _Times) -> _Times:
        return _Times(self.reading + other.reading, self.placing + other.placing)

    @property
    def placing_share(self) -> float:
        """Of all of it."""
        return self.placing / ((self.reading + self.placing) or 1.0)


class BlockLoader:
    """One load: blocks of files into a builder's parameters."""

    def __init__(self, builder: NetworkBuilder, descriptors: Mapping[Path, int]) -> None:
        """Read with ``descriptors``, of which there is one for each file of the plan."""
        self._builder = builder
        self._descriptors = descriptors
        self._own = threading.local()
        self._pinned = any(device.type == "cuda" for device in builder.placement.devices)

    def run(self, groups: Iterable[BlockGroup]) -> float:
        """Read all blocks and put every parameter that is whole.

        Returns:
            Seconds that passed for bringing values to their places, not for reading. Where readers
            did both at the same time, the time is divided as theirs was.

        Raises:
            SnapshotError: a file cannot be read, or is not what the manifest says.
        """
        threads = torch.get_num_threads()
        # A reader casts and spreads its own block alone.
        readers = ThreadPoolExecutor(
            READERS, "reader", initializer=torch.set_num_threads, initargs=(1,)
        )
        try:
            return self._run(deque(groups), readers)
        finally:
            readers.shutdown(wait=True, cancel_futures=True)
            # Setting a thread's number set that of threads to come as well.
            torch.set_num_threads(threads)

    def _run(self, waiting: deque[BlockGroup], readers: ThreadPoolExecutor) -> float:
        stagings = self._make_stagings(waiting)
        running: dict[Future[_Times], _Filling] = {}
        done: SimpleQueue[Future[_Times]] = SimpleQueue()
        spent = _Times()
        started = time.perf_counter()
        finishing = 0.0
        while waiting or running:
            while waiting and self._has_memory(waiting[0], stagings):
                filling = self._prepare(waiting.popleft(), stagings)
                for block in filling.group.blocks:
                    future = readers.submit(self._read, block, filling.memory)
                    running[future] = filling
                    future.add_done_callback(done.put)
            future = done.get()
            spent += future.result()
            filling = running.pop(future)
            filling.left -= 1
            if not filling.left:
                began = time.perf_counter()
                self._finish(filling, stagings)
                finishing += time.perf_counter() - began
        waited = time.perf_counter() - started - finishing
        return finishing + waited * spent.placing_share

    def _make_stagings(self, groups: Iterable[BlockGroup]) -> _Stagings:
        """Bytes that hold any weight that is to be copied, :data:`STAGINGS` times per device."""
        sizes: dict[torch.device, int] = {}
        for group in groups:
            if self._copies(group):
                device = self._builder.device_of(self._parameter(group))
                sizes[device] = max(sizes.get(device, 0), self._bytes(group))
        return {
            device: [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(STAGINGS)]
            for device, size in sizes.items()
        }

    def _has_memory(self, group: BlockGroup, stagings: _Stagings) -> bool:
        if not self._copies(group):
            return True
        return bool(stagings[self._builder.device_of(self._parameter(group))])

    def _copies(self, group: BlockGroup) -> bool:
        return group.parameter is not None and self._builder.copies(group.parameter)

    def _parameter(self, group: BlockGroup) -> str:
        assert group.parameter is not None
        return group.parameter

    def _bytes(self, group: BlockGroup) -> int:
        name = self._parameter(group)
        shape = self._builder.layout.parameters[name].shape
        return math.prod(shape) * self._builder.dtype_read(name).itemsize

    def _prepare(self, group: BlockGroup, stagings: _Stagings) -> _Filling:
        """Give a group memory, one of the stagings if its parameter is to be copied."""
        memory = staging = None
        if self._copies(group):
            name = self._parameter(group)
            staging = stagings[self._builder.device_of(name)].pop()
            values = staging[: self._bytes(group)].view(self._builder.dtype_read(name))
            memory = values.view(self._builder.layout.parameters[name].shape)
        elif group.parameter is not None:
            memory = self._builder.allocate(group.parameter)
        return _Filling(group, memory, staging, len(group.blocks))

    def _finish(self, filling: _Filling, stagings: _Stagings) -> None:
        if filling.group.parameter is not None and filling.memory is not None:
            self._builder.put(filling.group.parameter, filling.memory)
        if filling.staging is not None:
            stagings[filling.staging.device].append(filling.staging)

    def _read(self, block: Block, memory: torch.Tensor | None) -> _Times:
        """Read a block, compare its digest and put its values into their parameter's memory."""
        place = None if block.place is None or memory is None else block.place.of(memory)
        straight = (
            place is not None
            and place.device.type == "cpu"
            and place.dtype is block.dtype
            and place.is_contiguous()
        )
        if straight:
            assert place is not None
            count = block.size // block.dtype.itemsize
            values = place.view(-1)[block.first : block.first + count]
        else:
            values = self._buffer()[: block.size].view(block.dtype)
        content = values.view(torch.uint8).numpy().data
        started = time.perf_counter()
        try:
            read_into(content, self._descriptors[block.file], block.begin)
        except OSError as error:
            raise SnapshotError(f"{block.file} cannot be read: {error}") from error
        if block.digest is not None and block_digest(content) != block.digest:
            raise SnapshotDamagedError(
                f"{block.file} is damaged between bytes {block.begin} and "
                f"{block.begin + block.size}: the digest is not the manifest's"
            )
        read = time.perf_counter()
        if place is not None and not straight:
            put_values(place, block.first, values.to(place.device))
        return _Times(read - started, time.perf_counter() - read)

    def _buffer(self) -> torch.Tensor:
        """This thread's own; page-locked if a GPU is to read from it."""
        if not hasattr(self._own, "buffer"):
            self._own.buffer = torch.empty(BLOCK_BYTES, dtype=torch.uint8, pin_memory=self._pinned)
        buffer: torch.Tensor = self._own.buffer
        return buffer


def put_values(place: torch.Tensor, first: int, values: torch.Tensor) -> None:
    """Copy values to the elements of a tensor from ``first`` on, counted row by row, casting.

    Args:
        place: Contiguous, or ``[rows, columns]`` of a wider matrix.
        first: Index of the first element.
        values: ``[count]``, on the tensor's device.
    """
    if place.is_contiguous():
        place.view(-1)[first : first + len(values)].copy_(values)
        return
    columns = place.shape[1]
    row, column = divmod(first, columns)
    if column:
        head = min(columns - column, len(values))
        place[row, column : column + head].copy_(values[:head])
        row, values = row + 1, values[head:]
    whole = len(values) // columns
    place[row : row + whole].copy_(values[: whole * columns].view(whole, columns))
    rest = values[whole * columns :]
    if len(rest):
        place[row + whole, : len(rest)].copy_(rest)

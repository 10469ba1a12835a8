"""From a snapshot folder to a network whose weights are in place.

Several readers take blocks of the files in turn, as one alone gets a third of what a disk or a
network volume gives. A block is read where it belongs, or by way of a small buffer if it has to be
cast, spread over the rows of a fused weight or sent to a GPU; its digest is taken while it is still
in the processor's cache. Weights on a CPU are packed as soon as they are whole, beside the reading
of the next ones, out of memory that is used again for those.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from transformers import GPTJConfig

from gptj_predictor.model.linear import Projection
from gptj_predictor.model.network import GPTJNetwork, Placement
from gptj_predictor.snapshot import tensorizer
from gptj_predictor.snapshot.blocks import BLOCK_BYTES, block_digest, block_ranges, read_layout
from gptj_predictor.snapshot.cache import in_use
from gptj_predictor.snapshot.errors import SnapshotDamagedError, SnapshotError
from gptj_predictor.snapshot.folder import (
    TENSORIZER_FILE,
    SnapshotFolder,
    is_tensorizer,
    with_repair,
)

#: Threads that read. Beyond 8 nothing was gained on a local disk (``benchmarks/loading.py``).
READERS = 8

#: Weights that are being read or packed at the same time.
STAGINGS = 2


def expected_shapes(config: GPTJConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this configuration must have."""
    network = empty_network(config, torch.float32)
    return {name: tuple(view.shape) for name, view in network.checkpoint_views().items()}


def check_tensors(folder: SnapshotFolder) -> None:
    """Compare the stored names and shapes with those that the configuration asks for.

    Raises:
        SnapshotError: a tensor is missing, has another shape, or belongs to something else.
    """
    wanted = expected_shapes(folder.config)
    for name, shape in wanted.items():
        if name not in folder.tensors:
            raise SnapshotError(f"{folder.path}: tensor {name} is missing")
        stored = folder.tensors[name]
        if stored.shape != shape:
            raise SnapshotError(
                f"{stored.file}: tensor {name} has shape {list(stored.shape)}; "
                f"config.json asks for {list(shape)}"
            )
    # A tied checkpoint may or may not repeat the embedding under the head's name.
    foreign = sorted(set(folder.tensors) - set(wanted) - {"lm_head.weight"})
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise SnapshotError(f"{folder.path}: tensor {foreign[0]}{more} is not part of a GPT-J")


def empty_network(config: GPTJConfig, dtype: torch.dtype) -> GPTJNetwork:
    """The network laid out without memory."""
    with init_empty_weights(include_buffers=True):
        return GPTJNetwork(config, dtype)


def load_network(
    folder: SnapshotFolder, dtype: torch.dtype, placement: Placement, *, check_digests: bool = True
) -> GPTJNetwork:
    """Build the network and read every stored tensor into its place, casting on the way.

    Files are read, not mapped: a mapped file that is cut off, or a volume that goes away, would
    kill the process without a word.

    Args:
        folder: What to load.
        dtype: To hold the weights in.
        placement: Which device gets which part.
        check_digests: Compare every block with the manifest, if there is one.

    Raises:
        SnapshotError: :func:`check_tensors`'s, or a file that changed or broke since.
    """
    check_tensors(folder)
    network = empty_network(folder.config, dtype)
    network.allocate(placement)
    try:
        with in_use(folder.path):
            if is_tensorizer(folder.path):
                _load_tensorizer(folder, network, check_digests=check_digests)
            else:
                _Loader(folder, network, check_digests=check_digests).run()
    except SnapshotError as error:
        raise with_repair(error, folder.path) from error
    return network.eval()


def _load_tensorizer(folder: SnapshotFolder, network: GPTJNetwork, *, check_digests: bool) -> None:
    places = network.checkpoint_views()

    def take(name: str, tensor: torch.Tensor) -> None:
        if name in places:
            places[name].copy_(tensor)

    tensorizer.read_tensors(folder.path / TENSORIZER_FILE, take, check=check_digests)
    places.clear()  # or packing would not free them
    network.pack()


@dataclass(frozen=True)
class _Block:
    """One read: ``size`` bytes of a file from ``begin`` on.

    ``name`` is the tensor that they are part of, ``None`` for bytes that only have a digest, and
    ``first`` the element of it that they begin with.
    """

    file: Path
    begin: int
    size: int
    digest: str | None
    name: str | None
    dtype: torch.dtype
    first: int


@dataclass
class _Group:
    """Blocks that go to one memory: a weight that is to be packed, or any other."""

    projection: Projection | None
    blocks: list[_Block]
    staging: torch.Tensor | None = None
    left: int = 0


class _Loader:
    """One load."""

    def __init__(
        self, folder: SnapshotFolder, network: GPTJNetwork, *, check_digests: bool
    ) -> None:
        self._folder = folder
        self._network = network
        self._manifest = folder.manifest if check_digests else None
        self._descriptors: dict[Path, int] = {}
        self._own = threading.local()
        self._pinned = any(device.type == "cuda" for device in network.placement.devices)

    def run(self) -> None:
        """Read everything.

        Raises:
            SnapshotError: a file cannot be read, or is not what the manifest says.
        """
        threads = torch.get_num_threads()
        with ExitStack() as stack:
            groups = deque(self._groups(stack))
            readers = stack.enter_context(
                # A reader casts and spreads its own block alone.
                ThreadPoolExecutor(
                    READERS, "reader", initializer=torch.set_num_threads, initargs=(1,)
                )
            )
            try:
                self._run(groups, readers)
            finally:
                readers.shutdown(wait=True, cancel_futures=True)
                # Setting a thread's number set that of threads to come as well.
                torch.set_num_threads(threads)

    def _run(self, groups: deque[_Group], readers: ThreadPoolExecutor) -> None:
        # Memory that was never used costs as much time as reading into it, so weights that are
        # packed lie in memory of their own only after that, and in one of these before.
        free: list[torch.Tensor] = []
        if any(group.projection is not None for group in groups):
            size = max(g.projection.weight.nbytes for g in groups if g.projection is not None)
            free = [torch.empty(size, dtype=torch.uint8) for _ in range(STAGINGS)]
        places = self._network.checkpoint_views()
        running: dict[Future[None], _Group] = {}
        while groups or running:
            while groups and (groups[0].projection is None or free):
                group = groups.popleft()
                if group.projection is not None:
                    group.staging = free.pop()
                running |= dict.fromkeys(self._start(group, places, readers), group)
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
                group = running.pop(future)
                group.left -= 1
                if not group.left and group.projection is not None:
                    assert group.staging is not None
                    group.projection.pack()
                    free.append(group.staging)

    def _start(
        self, group: _Group, places: dict[str, torch.Tensor], readers: ThreadPoolExecutor
    ) -> list[Future[None]]:
        """Have all blocks of a group read, a weight that is to be packed into its staging."""
        staged = None
        if group.projection is not None and group.staging is not None:
            weight = group.projection.weight
            staged = group.staging[: weight.nbytes].view(weight.dtype)
            weight.data = staged.view(weight.shape)
        futures = []
        for block in group.blocks:
            place = None if block.name is None else places[block.name]
            if place is not None and staged is not None:
                place = staged.as_strided(place.shape, place.stride(), place.storage_offset())
            futures.append(readers.submit(self._read, block, place))
        group.left = len(futures)
        return futures

    def _groups(self, stack: ExitStack) -> Iterable[_Group]:
        """In the order of the files."""
        projections = {
            module.weight.untyped_storage().data_ptr(): module
            for module in self._network.modules()
            # A tied embedding needs the head's weight as it is.
            if isinstance(module, Projection)
            and module.packs
            and module.weight is not self._network.embedding.weight
        }
        owners = {
            name: projections.get(place.untyped_storage().data_ptr())
            for name, place in self._network.checkpoint_views().items()
        }
        groups: dict[Projection | None, _Group] = {}
        for block in self._blocks(stack, owners.keys()):
            owner = owners.get(block.name) if block.name is not None else None
            groups.setdefault(owner, _Group(owner, [])).blocks.append(block)
        return groups.values()

    def _blocks(self, stack: ExitStack, names: Collection[str]) -> Iterator[_Block]:
        for file in dict.fromkeys(stored.file for stored in self._folder.tensors.values()):
            try:
                descriptor = os.open(file, os.O_RDONLY)
                stack.callback(os.close, descriptor)
                self._descriptors[file] = descriptor
                header, tensors = read_layout(file)
                size = os.fstat(descriptor).st_size
            except (OSError, ValueError, LookupError, TypeError) as error:
                raise SnapshotError(f"{file} cannot be read: {error}") from error
            ranges = list(block_ranges(size, header, tensors))
            digests: tuple[str | None, ...] = (None,) * len(ranges)
            if self._manifest is not None:
                record = self._manifest.files.get(file.name)
                if record is None or len(record.blocks) != len(ranges):
                    raise SnapshotDamagedError(
                        f"{file} is damaged: its blocks are not the manifest's"
                    )
                digests = record.blocks
            by_offset = {tensor.offset: tensor.name for tensor in tensors if tensor.size}
            name, start = "", 0
            for (begin, end), digest in zip(ranges, digests, strict=True):
                if begin in by_offset:
                    name, start = by_offset[begin], begin
                if begin >= header and name in names:
                    dtype = self._folder.tensors[name].dtype
                    first = (begin - start) // dtype.itemsize
                    yield _Block(file, begin, end - begin, digest, name, dtype, first)
                elif digest is not None:
                    yield _Block(file, begin, end - begin, digest, None, torch.uint8, 0)

    def _read(self, block: _Block, place: torch.Tensor | None) -> None:
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
        try:
            read_into(content, self._descriptors[block.file], block.begin)
        except OSError as error:
            raise SnapshotError(f"{block.file} cannot be read: {error}") from error
        if block.digest is not None and block_digest(content) != block.digest:
            raise SnapshotDamagedError(
                f"{block.file} is damaged between bytes {block.begin} and "
                f"{block.begin + block.size}: the digest is not the manifest's"
            )
        if place is not None and not straight:
            _put(place, block.first, values.to(place.device))

    def _buffer(self) -> torch.Tensor:
        """This thread's own; page-locked if a GPU is to read from it."""
        if not hasattr(self._own, "buffer"):
            self._own.buffer = torch.empty(BLOCK_BYTES, dtype=torch.uint8, pin_memory=self._pinned)
        buffer: torch.Tensor = self._own.buffer
        return buffer


def _put(place: torch.Tensor, first: int, values: torch.Tensor) -> None:
    """Copy flat values to the elements of a tensor from ``first`` on, counted row by row."""
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


def read_into(content: memoryview, descriptor: int, offset: int) -> None:
    """Fill a buffer from a file.

    Raises:
        OSError: the file cannot be read, or ends too early.
    """
    while content:
        count = os.preadv(descriptor, [content], offset)
        if not count:
            raise OSError("the file ends too early")
        content, offset = content[count:], offset + count

"""What a load reads, and where to: a pure function of file headers, manifest and layout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from gptj_predictor.snapshot.blocks import TensorRange, block_ranges
from gptj_predictor.snapshot.errors import SnapshotDamagedError, SnapshotError
from gptj_predictor.snapshot.folder import StoredTensor
from gptj_predictor.snapshot.layout import Place
from gptj_predictor.snapshot.manifest import Manifest


@dataclass(frozen=True)
class WeightFile:
    """A safetensors file, as its header describes it.

    Attributes:
        path: Of the file.
        size: Of the file, in bytes.
        header: Length of its header, in bytes.
        tensors: All of them in the order of the file, constant buffers too.
    """

    path: Path
    size: int
    header: int
    tensors: list[TensorRange]


@dataclass(frozen=True)
class Block:
    """One read: ``size`` bytes of a file from ``begin`` on.

    Attributes:
        file: To read.
        begin: First byte.
        size: Number of bytes.
        digest: What they must have (:func:`block_digest`); ``None`` if nobody says.
        dtype: Of the values that they are.
        first: Index of the first of these values in its tensor, counted row by row.
        place: Where that tensor lies; ``None`` if the network has no use for the bytes.
    """

    file: Path
    begin: int
    size: int
    digest: str | None
    dtype: torch.dtype = torch.uint8
    first: int = 0
    place: Place | None = None


@dataclass(frozen=True)
class BlockGroup:
    """All blocks of one parameter, from whatever files, in order.

    ``parameter`` is ``None`` for those that are only compared with their digests.
    """

    parameter: str | None
    blocks: tuple[Block, ...]


def plan_load(
    files: Iterable[WeightFile],
    stored: Mapping[str, StoredTensor],
    places: Mapping[str, Place],
    manifest: Manifest | None,
) -> list[BlockGroup]:
    """Decide every read.

    Args:
        files: The snapshot's, in the order in which to read them.
        stored: The snapshot's tensors by name: what was found when the folder was opened.
        places: Where the network has them. Other tensors are not read, unless for their digests.
        manifest: Has the digests; ``None`` to compare none.

    Returns:
        A group for each parameter, in the order in which the files come to it.

    Raises:
        SnapshotError: the manifest does not have a file, or another number of its blocks; or a file
            does not have its tensors any more where it had them when the folder was opened.
    """
    groups: dict[str | None, list[Block]] = {}
    for file in files:
        for block in _blocks(file, stored, places, manifest):
            parameter = None if block.place is None else block.place.parameter
            groups.setdefault(parameter, []).append(block)
    planned = {block.place for blocks in groups.values() for block in blocks}
    for name, place in places.items():
        if place not in planned and 0 not in place.shape:
            raise SnapshotError(f"{stored[name].file} has changed since the folder was opened")
    return [BlockGroup(parameter, tuple(blocks)) for parameter, blocks in groups.items()]


def _blocks(
    file: WeightFile,
    stored: Mapping[str, StoredTensor],
    places: Mapping[str, Place],
    manifest: Manifest | None,
) -> Iterator[Block]:
    ranges = list(block_ranges(file.size, file.header, file.tensors))
    digests: tuple[str | None, ...] = (None,) * len(ranges)
    if manifest is not None:
        record = manifest.files.get(file.path.name)
        if record is None or len(record.blocks) != len(ranges):
            raise SnapshotDamagedError(f"{file.path} is damaged: its blocks are not the manifest's")
        digests = record.blocks
    wanted = {
        tensor.offset: tensor
        for tensor in file.tensors
        if tensor.size and tensor.name in places and stored[tensor.name].file == file.path
    }
    for tensor in wanted.values():
        if (tensor.offset, tensor.size) != _extent(stored[tensor.name]):
            raise SnapshotError(f"{file.path} has changed since the folder was opened")
    name, start, stop = "", 0, 0
    for (begin, end), digest in zip(ranges, digests, strict=True):
        if begin in wanted:
            name, start = wanted[begin].name, begin
            stop = start + wanted[begin].size
        if begin < stop:
            dtype = stored[name].dtype
            first = (begin - start) // dtype.itemsize
            yield Block(file.path, begin, end - begin, digest, dtype, first, places[name])
        elif digest is not None:
            yield Block(file.path, begin, end - begin, digest)


def _extent(tensor: StoredTensor) -> tuple[int, int]:
    """Offset and size in bytes."""
    return tensor.offset, math.prod(tensor.shape) * tensor.dtype.itemsize

"""Converting a downloaded checkpoint, pickled or not, to sharded safetensors.

It goes tensor by tensor and piece by piece: memory holds one shard, whatever the checkpoint's size.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import pickle
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gptj_predictor.common.dtypes import dtype_name, weights_name
from gptj_predictor.common.files import put_in_place, write_whole
from gptj_predictor.common.progress import Progress
from gptj_predictor.model.quantization import quantize, scales_of
from gptj_predictor.snapshot.blocks import read_into
from gptj_predictor.snapshot.errors import SnapshotError
from gptj_predictor.snapshot.folder import (
    CONSTANT_BUFFERS,
    INDEX_FILE,
    StoredTensor,
    read_header,
)
from gptj_predictor.snapshot.layout import SCALE_SUFFIX

#: Bytes of tensors in one shard, unless one tensor alone has more. It is in memory twice, while it
#: is compared with what is on disk.
SHARD_BYTES = 256 * 2**20

#: Bytes of a source that are read at once.
PIECE_BYTES = 16 * 2**20

_PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)


class Source(ABC):
    """One tensor of a checkpoint that is too large to hold."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @abstractmethod
    def pieces(self) -> Iterator[torch.Tensor]:
        """Its values in order, flat, a few at a time."""

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """All of it, cast.

        Raises:
            OverflowError: a value is beyond the dtype's range, or was no number before.
        """
        whole = torch.empty(self.shape, dtype=dtype)
        flat, at = whole.view(-1), 0
        for piece in self.pieces():
            cast = flat[at : at + piece.numel()]
            cast.copy_(piece)
            if not torch.isfinite(cast).all():
                raise OverflowError
            at += piece.numel()
        return whole


class PickledTensor(Source):
    """A tensor of a mapped pickle; a piece's memory goes back to the kernel after its use."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self.dtype, self.shape = tensor.dtype, tuple(tensor.shape)

    def pieces(self) -> Iterator[torch.Tensor]:
        """Flat pieces of ``PIECE_BYTES``."""
        flat = self._tensor.reshape(-1)  # a copy, of this tensor alone, if it is not contiguous
        step = PIECE_BYTES // flat.element_size()
        for piece in flat.split(step):
            yield piece
            begin = -(-piece.data_ptr() // _PAGE) * _PAGE
            end = (piece.data_ptr() + piece.nbytes) // _PAGE * _PAGE
            if self._tensor.data_ptr() == flat.data_ptr() and end > begin:
                _libc.madvise(
                    ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED
                )


class SafeTensor(Source):
    """A tensor of a safetensors file, which is read and not mapped."""

    def __init__(self, stored: StoredTensor) -> None:
        self._stored = stored
        self.dtype, self.shape = stored.dtype, stored.shape

    def pieces(self) -> Iterator[torch.Tensor]:
        """Flat pieces of ``PIECE_BYTES``."""
        step = PIECE_BYTES // self.dtype.itemsize
        count = torch.Size(self.shape).numel()
        with self._stored.file.open("rb", buffering=0) as file:
            for begin in range(0, count, step):
                piece = torch.empty(min(step, count - begin), dtype=self.dtype)
                read_into(
                    piece.view(torch.uint8).numpy().data,
                    file.fileno(),
                    self._stored.offset + begin * self.dtype.itemsize,
                )
                yield piece


@dataclass(frozen=True)
class Storage:
    """How tensors are stored.

    Attributes:
        dtype: Of their values; each tensor's own if ``None``.
        quantized: Those that become int8 out of values in ``dtype``, each with all tensors that
            have the same scales, as they are side by side in the network's rows.
    """

    dtype: torch.dtype | None = None
    quantized: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What is made, for people."""
        name = "safetensors" if self.dtype is None else dtype_name(self.dtype)
        return weights_name(name, "int8" if self.quantized else "none")

    def bytes(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """Bytes of a tensor and its scales, if it has some; ``dtype`` is what it is read in."""
        elements = torch.Size(shape).numel()
        if name in self.quantized:
            return elements + shape[0] * torch.float32.itemsize
        return elements * dtype.itemsize

    def tensors(self, name: str, sources: Mapping[str, Source]) -> dict[str, torch.Tensor]:
        """What is stored of a tensor.

        Raises:
            SnapshotError: the dtype cannot hold a value.
        """
        values = self._read(name, sources)
        if name not in self.quantized:
            return {name: values}
        largest = [
            (values if sharer == name else self._read(sharer, sources)).abs().amax(1).float()
            for sharer in self.quantized[name]
        ]
        scales = scales_of(torch.stack(largest, 1))
        return {name: quantize(values, scales), f"{name}{SCALE_SUFFIX}": scales}

    def _read(self, name: str, sources: Mapping[str, Source]) -> torch.Tensor:
        dtype = self.dtype or sources[name].dtype
        try:
            return sources[name].read(dtype)
        except OverflowError:
            raise SnapshotError(
                f"tensor {name} has values that {dtype_name(dtype)} cannot hold; "
                "use --precision bfloat16 or native"
            ) from None


def open_checkpoint(folder: Path, files: list[str]) -> dict[str, Source]:
    """Every weight of downloaded files by its name, constant buffers left out.

    Raises:
        SnapshotError: a file is damaged, holds something else, or would run code.
    """
    sources: dict[str, Source] = {}
    for name in files:
        if name.endswith(".safetensors"):
            header = read_header(folder / name)
            sources |= {key: SafeTensor(stored) for key, stored in header.items()}
        elif name.endswith(".bin"):
            sources |= _open_pickle(folder / name)
    return sources


def _open_pickle(file: Path) -> dict[str, Source]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise SnapshotError(
            f"{file.name} was not opened: it asks for more than tensors, which could run code; "
            "take another revision, or one with safetensors"
        ) from error
    except (RuntimeError, ValueError, EOFError, LookupError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "it is cut off"
        raise SnapshotError(f"{file.name} is not a checkpoint of torch: {reason}") from error
    if not isinstance(content, dict) or not all(
        isinstance(value, torch.Tensor) for value in content.values()
    ):
        raise SnapshotError(f"{file.name} does not hold tensors by name")
    return {
        str(name): PickledTensor(tensor)
        for name, tensor in content.items()
        if not str(name).endswith(CONSTANT_BUFFERS)
    }


def check_checkpoint(
    sources: Mapping[str, Source], shapes: Mapping[str, tuple[int, ...]], whose: str
) -> None:
    """Compare names and shapes with what the configuration asks for.

    Raises:
        SnapshotError: a tensor is missing or has another shape.
    """
    for name, shape in shapes.items():
        if name not in sources:
            raise SnapshotError(f"{whose} is not a GPT-J: it has no tensor {name}")
        source = sources[name]
        if source.dtype is torch.int8:
            raise SnapshotError(
                f"{whose} stores tensor {name} as int8; a pull makes int8 weights itself, out of a "
                "checkpoint in 16 or 32 bits"
            )
        if source.shape != shape or not source.dtype.is_floating_point:
            raise SnapshotError(
                f"{whose}: tensor {name} is {source.dtype} {list(source.shape)}; "
                f"config.json asks for {list(shape)}"
            )


def convert(
    sources: Mapping[str, Source],
    folder: Path,
    storage: Storage,
    check: Callable[[], None],
) -> None:
    """Write shards and their index; a shard that is whole already stays.

    Every shard is compared with its source after it was written, and only then gets its name.

    Args:
        sources: The checkpoint's tensors, in the order in which they are to be stored.
        folder: Where to; must exist.
        storage: How to store them.
        check: Called now and then; raises to end the work.

    Raises:
        SnapshotError: the dtype cannot hold a value, or what is on disk is not what was written.
        OSError: it cannot be written.
    """
    shards = _plan(sources, storage)
    names = [
        f"model-{number + 1:05}-of-{len(shards):05}.safetensors" for number in range(len(shards))
    ]
    sizes = [stored_bytes({key: sources[key] for key in shard}, storage) for shard in shards]
    there = sum(size for name, size in zip(names, sizes, strict=True) if (folder / name).exists())
    weight_map: dict[str, str] = {}
    with Progress(f"converting to {storage.name}", sum(sizes), there) as progress:
        for name, shard, size in zip(names, shards, sizes, strict=True):
            check()
            weight_map |= dict.fromkeys(_stored_names(shard, storage), name)
            if (folder / name).exists():
                continue
            tensors: dict[str, torch.Tensor] = {}
            for key in shard:
                tensors |= storage.tensors(key, sources)
            _write_shard(tensors, folder / name)
            progress.advance(size)
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
    write_whole(folder / INDEX_FILE, json.dumps(index, indent=2, sort_keys=True) + "\n")


def _stored_names(shard: list[str], storage: Storage) -> list[str]:
    scales = [f"{name}{SCALE_SUFFIX}" for name in shard if name in storage.quantized]
    return [*shard, *scales]


def _plan(sources: Mapping[str, Source], storage: Storage) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    room = SHARD_BYTES
    for name, source in sources.items():
        size = stored_bytes({name: source}, storage)
        if shards[-1] and size > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= size
    return shards


def _write_shard(tensors: dict[str, torch.Tensor], file: Path) -> None:
    new = file.with_suffix(".new")
    try:
        save_file(tensors, new, metadata={"format": "pt"})
    except SafetensorError as error:
        # It hides the system's own error, "... (os error 28)", in its text.
        code = re.search(r"os error (\d+)", str(error))
        number = int(code.group(1)) if code else errno.EIO
        raise OSError(number, os.strerror(number), str(file)) from error
    for name, written in load_file(new).items():
        if not torch.equal(written.view(torch.uint8), tensors[name].view(torch.uint8)):
            raise SnapshotError(f"{file.name}: tensor {name} is not on disk what was written")
    put_in_place(new, file)


def is_servable(folder: Path, files: list[str], storage: Storage) -> bool:
    """Whether downloaded files are already what a conversion would make of them.

    Never for int8 weights: those are always made here.
    """
    if storage.quantized or not all(name.endswith(".safetensors") for name in files):
        return False
    stored = {
        key: tensor
        for name in files
        for key, tensor in read_header(folder / name, constants=True).items()
    }
    if any(key.endswith(CONSTANT_BUFFERS) for key in stored):
        return False
    dtypes = {tensor.dtype for tensor in stored.values()}
    return torch.int8 not in dtypes if storage.dtype is None else dtypes == {storage.dtype}


def stored_bytes(sources: Mapping[str, Source], storage: Storage) -> int:
    """Bytes of the converted tensors."""
    return sum(
        storage.bytes(name, source.shape, storage.dtype or source.dtype)
        for name, source in sources.items()
    )

"""Converting a downloaded checkpoint, pickled or not, to sharded safetensors in one dtype.

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
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gptj_predictor.common.dtypes import dtype_name
from gptj_predictor.common.files import put_in_place, write_whole
from gptj_predictor.common.progress import Progress
from gptj_predictor.snapshot.blocks import read_into
from gptj_predictor.snapshot.errors import SnapshotError
from gptj_predictor.snapshot.folder import (
    CONSTANT_BUFFERS,
    INDEX_FILE,
    StoredTensor,
    read_header,
)

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
        if source.shape != shape or not source.dtype.is_floating_point:
            raise SnapshotError(
                f"{whose}: tensor {name} is {source.dtype} {list(source.shape)}; "
                f"config.json asks for {list(shape)}"
            )


def convert(
    sources: Mapping[str, Source],
    folder: Path,
    dtype: torch.dtype | None,
    check: Callable[[], None],
) -> None:
    """Write shards and their index; a shard that is whole already stays.

    Every shard is compared with its source after it was written, and only then gets its name.

    Args:
        sources: The checkpoint's tensors, in the order in which they are to be stored.
        folder: Where to; must exist.
        dtype: To store them in; each tensor's own if ``None``.
        check: Called now and then; raises to end the work.

    Raises:
        SnapshotError: the dtype cannot hold a value, or what is on disk is not what was written.
        OSError: it cannot be written.
    """
    shards = _plan(sources, dtype)
    names = [
        f"model-{number + 1:05}-of-{len(shards):05}.safetensors" for number in range(len(shards))
    ]
    sizes = [sum(_bytes(sources[key], dtype) for key in shard) for shard in shards]
    there = sum(size for name, size in zip(names, sizes, strict=True) if (folder / name).exists())
    with Progress(f"converting to {_dtype_name(dtype)}", sum(sizes), there) as progress:
        for name, shard, size in zip(names, shards, sizes, strict=True):
            check()
            if (folder / name).exists():
                continue
            _write_shard({key: _read(key, sources[key], dtype) for key in shard}, folder / name)
            progress.advance(size)
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
    write_whole(folder / INDEX_FILE, json.dumps(index, indent=2, sort_keys=True) + "\n")


def _read(name: str, source: Source, dtype: torch.dtype | None) -> torch.Tensor:
    try:
        return source.read(dtype or source.dtype)
    except OverflowError:
        raise SnapshotError(
            f"tensor {name} has values that {_dtype_name(dtype or source.dtype)} cannot hold; "
            "use --precision bfloat16 or native"
        ) from None


def _plan(sources: Mapping[str, Source], dtype: torch.dtype | None) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    room = SHARD_BYTES
    for name, source in sources.items():
        size = _bytes(source, dtype)
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


def is_servable(folder: Path, files: list[str], dtype: torch.dtype | None) -> bool:
    """Whether downloaded files are already what a conversion would make of them."""
    if not all(name.endswith(".safetensors") for name in files):
        return False
    stored = {
        key: tensor
        for name in files
        for key, tensor in read_header(folder / name, constants=True).items()
    }
    if any(key.endswith(CONSTANT_BUFFERS) for key in stored):
        return False
    return dtype is None or {tensor.dtype for tensor in stored.values()} == {dtype}


def stored_bytes(sources: Mapping[str, Source], dtype: torch.dtype | None) -> int:
    """Bytes of the converted tensors."""
    return sum(_bytes(source, dtype) for source in sources.values())


def _bytes(source: Source, dtype: torch.dtype | None) -> int:
    return torch.Size(source.shape).numel() * (dtype or source.dtype).itemsize


def _dtype_name(dtype: torch.dtype | None) -> str:
    return "safetensors" if dtype is None else dtype_name(dtype)

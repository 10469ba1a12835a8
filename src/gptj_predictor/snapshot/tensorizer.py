"""Reading files of CoreWeave's tensorizer, tensor by tensor.

Such a file is an index, then for each tensor a header with its digests, and its values. Names and
dtypes are text, nothing in it is a pickle, and it is only ever opened as a local file. The package
is needed here alone, so it is imported when a file is opened.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gptj_predictor.common.dtypes import dtype_from_name
from gptj_predictor.snapshot.errors import SnapshotError

#: Values to read at a time, in bytes: tensorizer reads ahead without a limit, and keeps what it has
#: read until it is closed, so each batch gets a reader of its own.
BATCH_BYTES = 512 << 20


@dataclass(frozen=True)
class _Entry:
    """One tensor, as the index at the start of the file has it; offsets and sizes in bytes.

    Its header has the same ``name``, ``dtype`` and ``shape`` again, in the same bytes:
    ``described``.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    described: bytes
    header: int
    values: int
    size: int


def read_headers(file: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Dtype and shape of every tensor by its name, in the file's order, without its values.

    ``write_module`` also stores buffers that are not persistent, and each name of a tied weight.

    Raises:
        SnapshotError: the package or the file is missing, the file is not tensorizer's, encrypted,
            damaged or cut off, or stores what is not a plain tensor with a name.
    """
    return {entry.name: (entry.dtype, entry.shape) for entry in _read_index(file)}


def read_tensors(file: Path, take: Callable[[str, torch.Tensor], None], *, check: bool) -> None:
    """Call ``take(name, tensor)`` for every tensor, on the CPU, in the file's order.

    Tensors are ``take``'s to keep. While it keeps none, about :data:`BATCH_BYTES` of them are in
    memory, or one if that is larger.

    Args:
        file: Of tensorizer's format.
        take: Gets dtype and shape of :func:`read_headers`; what it raises is passed on.
        check: Compare each tensor with the digests (CRC-32 and SHA-256) that the file has of it,
            before it is handed out.

    Raises:
        SnapshotError: :func:`read_headers`'s, a digest that is not met or missing, or a file that
            changed or broke since.
    """
    for batch in _batches(_read_index(file)):
        tensors = _read_batch(file, batch, check=check)
        for entry in batch:
            take(entry.name, tensors.pop(entry.name))


def _batches(index: list[_Entry]) -> Iterator[list[_Entry]]:
    batch: list[_Entry] = []
    size = 0
    for entry in index:
        if batch and size + entry.size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += entry.size
    if batch:
        yield batch


def _read_index(file: Path) -> list[_Entry]:
    with _opened(file) as opened:
        index = [_entry(entry) for entry in opened._metadata.values()]  # it has no public name
        _check_extents(file, index)
    return index


def _read_batch(file: Path, batch: list[_Entry], *, check: bool) -> dict[str, torch.Tensor]:
    """The tensors of ``batch`` by name, read by several threads."""
    names = {entry.name for entry in batch}
    with _opened(file, filter_func=names.__contains__, verify_hash=check) as opened:
        tensors = {name: tensor.detach() for _, _, name, tensor in opened.read_tensors()}
        if check:
            for read in opened._metadata.values():
                if not read.hashes:
                    raise ValueError(f"tensor {read.name} has no digest")
        _check_extents(file, batch)
    return tensors


@contextmanager
def _opened(file: Path, **options: Any) -> Iterator[Any]:
    """A ``TensorDeserializer`` that has read the index; whatever goes wrong is a SnapshotError."""
    try:
        from tensorizer import TensorDeserializer
    except ImportError as error:
        raise SnapshotError(
            f"{file} needs the extra: pip install 'gptj-predictor[tensorizer]'"
        ) from error
    try:
        # A Path, since tensorizer would take a str for a URL.
        with TensorDeserializer(file, device="cpu", lazy_load=True, **options) as opened:
            yield opened
    except Exception as error:  # a damaged file makes it raise many types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SnapshotError(f"{file} cannot be read as a tensorizer file: {reason}") from error


def _entry(stored: Any) -> _Entry:
    """From tensorizer's ``TensorEntry``.

    Raises:
        ValueError: it is not a plain tensor with a name and values.
    """
    if len(stored.name) != 1 or not isinstance(stored.name[0], str):
        raise ValueError(f"tensor {stored.name} is part of a nested structure")
    name, dtype, shape = stored.name[0], stored.dtype, tuple(stored.shape)
    described = b"".join(
        [
            struct.pack("<H", len(name.encode())) + name.encode(),
            struct.pack("<B", len(dtype.encode())) + dtype.encode(),
            struct.pack(f"<B{len(shape)}I", len(shape), *shape),
        ]
    )
    entry = _Entry(
        name=name,
        dtype=_dtype(name, dtype),
        shape=shape,
        described=described,
        header=stored.offset,
        values=stored.data_offset,
        size=stored.data_length,
    )
    # A tensor of the meta device has no values; tensorizer would make them up as zeros.
    if entry.size != math.prod(shape) * entry.dtype.itemsize:
        raise ValueError(f"tensor {name} of {list(shape)} has {entry.size} bytes of values")
    return entry


def _dtype(name: str, stored: str) -> torch.dtype:
    """From numpy's name; where numpy has no such type, torch's follows after a zero byte.

    Raises:
        ValueError: torch has no such type.
    """
    of_numpy, _, of_torch = stored.partition("\0")
    if of_torch:
        dtype = dtype_from_name(of_torch)
    else:
        try:
            dtype = torch.from_numpy(np.empty(0, np.dtype(of_numpy))).dtype
        except (TypeError, ValueError):
            dtype = None
    if dtype is None:
        raise ValueError(f"tensor {name} is stored as {stored!r}")
    return dtype


def _check_extents(file: Path, entries: list[_Entry]) -> None:
    """Compare the headers with the index, and where the values end with the file's size.

    tensorizer does neither: where a file ends early it returns memory that was never written, and
    it allocates what a header says, and makes arrays of objects if that is its dtype.

    Raises:
        ValueError: the file ends too early, or a header says something else than the index.
    """
    size = file.stat().st_size
    with file.open("rb", buffering=0) as opened:
        for entry in entries:
            if entry.values + entry.size > size:
                raise ValueError(f"the file ends too early for tensor {entry.name}")
            opened.seek(entry.header)
            # Its length (8 bytes), the module's number (2), whether it is a buffer (1).
            header = opened.read(11 + len(entry.described))
            length = int.from_bytes(header[:8], "little")
            if length != entry.values - entry.header or header[11:] != entry.described:
                raise ValueError(f"the header of tensor {entry.name} is damaged")

"""How a safetensors file is cut into blocks, each with a digest and each one read of a load."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

#: Largest block that has a digest of its own, and largest single read of a load: large enough to
#: keep a network volume busy, small enough to be hashed while it is still in a processor's cache.
BLOCK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class TensorRange:
    """Where one tensor's bytes lie in its safetensors file."""

    name: str
    offset: int
    size: int


def read_layout(file: Path) -> tuple[int, list[TensorRange]]:
    """The header's length in bytes and all tensors in the order of the file.

    A safetensors file is the header's length in 8 bytes, little endian, the header as JSON, and the
    values without gaps, whose offsets count from the header's end (safetensors' README, "Format").

    Raises:
        ValueError, LookupError, TypeError, OSError: it is not such a file.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError("its header is longer than the file")
        header = json.loads(opened.read(length))
    start = 8 + length
    tensors = [
        TensorRange(name, start + begin, end - begin)
        for name, entry in header.items()
        if name != "__metadata__"
        for begin, end in [entry["data_offsets"]]
    ]
    return start, sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size))


def block_ranges(size: int, header: int, tensors: list[TensorRange]) -> Iterator[tuple[int, int]]:
    """Begin and end of each block: the header, then every tensor in pieces of ``BLOCK_BYTES``.

    Blocks end where tensors end, so that a reader can put a block where it belongs at once.
    """
    yield 0, header
    for tensor in tensors:
        end = tensor.offset + tensor.size
        for begin in range(tensor.offset, end, BLOCK_BYTES):
            yield begin, min(begin + BLOCK_BYTES, end)
    last = max((tensor.offset + tensor.size for tensor in tensors), default=header)
    if size > last:  # the format allows no such rest; a digest all the same
        yield last, size


def block_digest(content: bytes | memoryview) -> str:
    """XXH3-128 in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(content)


def read_into(content: memoryview, descriptor: int, offset: int) -> None:
    """Fill a buffer from a file, from byte ``offset`` on.

    Raises:
        OSError: the file cannot be read, or ends too early.
    """
    while content:
        count = os.preadv(descriptor, [content], offset)
        if not count:
            raise OSError("the file ends too early")
        content, offset = content[count:], offset + count

"""The operating system's page cache: what of a file is in it, and how to empty it."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path


def drop_cached(file: Path) -> None:
    """Take a file that is on a disk out of the page cache."""
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def cached_bytes(file: Path) -> int:
    """Bytes of a file that are in the page cache, as mincore(2) says."""
    size = file.stat().st_size
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    # A private writable map, since ctypes takes no address of a read-only one; nothing is written.
    with file.open("rb") as opened:
        mapped = mmap.mmap(
            opened.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE
        )
    place = ctypes.c_char.from_buffer(mapped)
    address = ctypes.c_void_p(ctypes.addressof(place))
    assert ctypes.CDLL(None, use_errno=True).mincore(address, ctypes.c_size_t(size), pages) == 0
    del place
    mapped.close()
    return sum(page & 1 for page in pages) * mmap.PAGESIZE

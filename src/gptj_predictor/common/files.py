"""Files and folders that are whole on disk, even if the process is killed or the machine stops."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes, *, temporary: Path | None = None) -> None:
    """Write a file at once: a reader finds the old content or the new one, never a part.

    Two processes must not write the same file at the same time.

    Args:
        path: The file, in a folder that exists.
        content: All of it; text is written as UTF-8.
        temporary: Where it is written first, on the same volume. Default: a hidden file beside
            ``path``. A process that is killed may leave it there.

    Raises:
        OSError: it cannot be written.
    """
    temporary = temporary or path.with_name(f".{path.name}.new")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    put_in_place(temporary, path)


def put_in_place(temporary: Path, path: Path) -> None:
    """Give a finished file its name, once its content is on disk.

    Raises:
        OSError: it cannot be put on disk, or be renamed.
    """
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def sync_tree(folder: Path) -> None:
    """Put a folder and everything in it on disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Put a file's content, or the names in a folder, on disk.

    Raises:
        OSError: a file cannot be put on disk. For a folder this is no error, because some network
            volumes cannot do it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)

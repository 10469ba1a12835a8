"""Files and folders that are whole on disk, even if the process is killed or the machine stops.

Their modes follow the umask, so that other users can read them, and who may not is told why.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
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
    """Give a finished file its name, once its content is on disk; its mode follows the umask.

    Raises:
        OSError: it cannot be put on disk, or be renamed.
    """
    follow_umask(temporary)
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


def follow_umask(file: Path) -> None:
    """Let those read and write a file who may do so with a new one.

    safetensors makes its files for the owner alone. A volume without modes keeps what it has.
    """
    with suppress(OSError):
        mode = stat.S_IMODE(file.stat().st_mode)
        wanted = mode | (0o666 & ~_umask())
        if mode != wanted:
            file.chmod(wanted)


def _umask() -> int:
    """Read without changing it, which would concern all threads (proc(5), Linux 4.7)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022


def is_unreadable(file: Path) -> bool:
    """Whether permission is what keeps this process from reading a file that may be there."""
    return _closed_folder(file) is not None or (file.exists() and not os.access(file, os.R_OK))


def explain_unreadable(file: Path, error: OSError) -> str:
    """Why a file cannot be read, in one clause; without permission, who may not read what."""
    if not isinstance(error, PermissionError):
        return f"{file} cannot be read: {error.strerror or error}"
    folder = _closed_folder(file)
    what = folder or file
    try:
        found = what.stat()
    except OSError:
        return f"{file} cannot be read: user id {os.geteuid()} has no permission"
    mode = f"mode {stat.S_IMODE(found.st_mode):04o}, owner {found.st_uid}, group {found.st_gid}"
    if folder is None:
        return f"user id {os.geteuid()} cannot read {file} ({mode})"
    return f"{file} cannot be read: user id {os.geteuid()} cannot enter {folder} ({mode})"


def _closed_folder(file: Path) -> Path | None:
    """The first folder above a file that this process may not enter."""
    for folder in reversed(file.absolute().parents):
        if not os.access(folder, os.X_OK):
            return folder if os.access(folder, os.F_OK) else None
    return None

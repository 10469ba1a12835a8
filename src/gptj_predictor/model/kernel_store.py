"""Kernels that were compiled before the first start, for Triton to find. Importing needs Triton.

The container image is built with them (``tools/kernel_store.py``), so that its first start on a
card compiles nothing. The variable ``TRITON_CACHE_MANAGER`` names the class here. A kernel that is
not in the store, or is damaged there, is compiled as ever, into Triton's own cache. The store may
be read-only.
"""

from __future__ import annotations

import hashlib
import json
import logging
from functools import cache
from pathlib import Path
from typing import Any

from triton.runtime.cache import FileCacheManager  # type: ignore[import-untyped]

logger = logging.getLogger(__name__)

#: A folder for each of Triton's keys, which tell kernel, arguments, options, card and compiler.
STORE = Path(__file__).parent / "compiled_kernels"
#: In the store: of each key the SHA-256 of every file. Triton would hand a damaged file to the
#: driver, and an incomplete set of files ends the start with an error.
DIGESTS_FILE = "digests.json"


def write_digests(store: Path) -> None:
    """Note what a store's files are; it is finished then."""
    keys = sorted(folder for folder in store.iterdir() if folder.is_dir())
    digests = {
        key.name: {file.name: _digest(file) for file in sorted(key.iterdir())} for key in keys
    }
    (store / DIGESTS_FILE).write_text(json.dumps(digests, indent=1) + "\n")


@cache
def _read_digests(store: Path) -> dict[str, dict[str, str]]:
    """What :func:`write_digests` noted; nothing, with a line, if it cannot be read."""
    if not store.is_dir():
        return {}
    try:
        digests: dict[str, dict[str, str]] = json.loads((store / DIGESTS_FILE).read_bytes())
    except (OSError, ValueError) as error:
        logger.warning("the kernels in %s are not used: %s; compiling instead", store, error)
        return {}
    return digests


def _find(store: Path, key: str) -> Path | None:
    """A key's folder if all of it is there; a line says if it is damaged."""
    digests = _read_digests(store).get(key)
    if digests is None:
        return None
    folder = store / key
    for name, digest in digests.items():
        try:
            is_right = _digest(folder / name) == digest
        except OSError as error:
            logger.warning("a stored kernel is incomplete: %s; compiling it instead", error)
            return None
        if not is_right:
            logger.warning("a stored kernel is damaged: %s; compiling it instead", folder / name)
            return None
    return folder


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


class StoredKernels(FileCacheManager):
    """One key's files: those of :data:`STORE`, or else those of Triton's cache."""

    def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
        """As Triton calls it."""
        self._arguments = key, override, dump
        self._stored = None if override or dump else _find(STORE, key)
        if self._stored is None:
            super().__init__(*self._arguments)

    def get_file(self, filename: str) -> str | None:
        """A file's path; ``None`` if there is none."""
        if self._stored is not None and (path := self._stored / filename).is_file():
            return str(path)
        self._leave_store()
        return super().get_file(filename)

    def get_group(self, filename: str) -> dict[str, str] | None:
        """The paths of the files that were stored together under a name."""
        if self._stored is not None and (paths := self._read_group(self._stored, filename)):
            return paths
        self._leave_store()
        return super().get_group(filename)

    def put(self, data: Any, filename: str, binary: bool = True) -> str:
        """Write a file to Triton's cache."""
        self._leave_store()
        return super().put(data, filename, binary)

    def _leave_store(self) -> None:
        """From here on, use Triton's cache, whose folder is made now."""
        if self._stored is not None:
            self._stored = None
            super().__init__(*self._arguments)

    @staticmethod
    def _read_group(stored: Path, filename: str) -> dict[str, str]:
        """Triton notes whole paths, which were others where the store was made."""
        group = stored / f"__grp__{filename}"
        if not group.is_file():
            return {}
        paths = {name: stored / name for name in json.loads(group.read_bytes())["child_paths"]}
        # What the compiler made on its way is not kept.
        return {name: str(path) for name, path in paths.items() if path.is_file()}

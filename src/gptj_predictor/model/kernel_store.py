"""Kernels that were compiled before the first start, for Triton to find. Importing needs Triton.

The container image is built with them (``tools/kernel_store.py``), so that its first start on a
card compiles nothing. The variable ``TRITON_CACHE_MANAGER`` names the class here. A kernel that is
not in the store is compiled as ever, into Triton's own cache. The store may be read-only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from triton.runtime.cache import FileCacheManager  # type: ignore[import-untyped]

#: A folder for each of Triton's keys, which tell kernel, arguments, options, card and compiler.
STORE = Path(__file__).parent / "compiled_kernels"


class StoredKernels(FileCacheManager):
    """One key's files: those of :data:`STORE`, or else those of Triton's cache."""

    def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
        """As Triton calls it."""
        self._arguments = key, override, dump
        self._stored: Path | None = STORE / key
        if override or dump or not self._stored.is_dir():
            self._leave_store()

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
        try:
            group = json.loads((stored / f"__grp__{filename}").read_bytes())
            paths = {name: stored / name for name in group["child_paths"]}
        except (OSError, ValueError, LookupError):
            return {}
        found = {name: str(path) for name, path in paths.items() if path.is_file()}
        return found if filename in found else {}

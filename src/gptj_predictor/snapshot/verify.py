"""Whether a snapshot on disk is what its manifest says, and the manifest's part about files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gptj_predictor.common.progress import Progress
from gptj_predictor.snapshot.blocks import block_digest, block_ranges, read_layout
from gptj_predictor.snapshot.errors import SnapshotError
from gptj_predictor.snapshot.manifest import MANIFEST_FILE, FileRecord, Manifest

_READ_BYTES = 4 * 2**20


def find_damage(version: Path, *, everything: bool) -> list[str]:
    """What is wrong with a snapshot, a line each; nothing if it is whole.

    Args:
        version: Its folder.
        everything: Read all of it and compare the digests; else only look at names and sizes.

    Raises:
        SnapshotError: it has no manifest to be compared with.
    """
    try:
        manifest = Manifest.read(version)
    except SnapshotError as error:
        return [str(error)]
    if manifest is None:
        raise SnapshotError(
            f"{version} has no {MANIFEST_FILE}: it was not made by snapshot pull, and there is "
            "nothing to compare it with"
        )
    damage = []
    whole = {}
    for name, record in manifest.files.items():
        try:
            size = (version / name).stat().st_size
        except FileNotFoundError:
            damage.append(f"{version / name} is missing")
            continue
        if size != record.size:
            damage.append(f"{version / name} has {size} bytes and not {record.size}")
        else:
            whole[name] = record
    if everything:
        damage += _compare_digests(version, whole)
    return damage


def _compare_digests(version: Path, files: dict[str, FileRecord]) -> list[str]:
    def check(name: str) -> str | None:
        try:
            found = _sha256(version / name, progress.advance)
        except OSError as error:
            return f"{version / name} cannot be read: {error.strerror}"
        if found != files[name].sha256:
            return f"{version / name} is damaged: its SHA-256 is not the manifest's"
        return None

    total = sum(record.size for record in files.values())
    with Progress(f"verifying {version.name}", total) as progress, _pool() as pool:
        return [problem for problem in pool.map(check, files) if problem is not None]


def describe_files(folder: Path, check: Callable[[], None]) -> dict[str, FileRecord]:
    """A manifest's record of every file in a folder, read from disk.

    Args:
        folder: A finished snapshot, but for its manifest.
        check: Called now and then; raises to end the work.
    """

    def describe(file: Path) -> FileRecord:
        blocks: list[str] = []
        size = file.stat().st_size
        if file.suffix == ".safetensors":
            header, tensors = read_layout(file)
            with file.open("rb") as opened:
                for begin, end in block_ranges(size, header, tensors):
                    check()
                    opened.seek(begin)
                    blocks.append(block_digest(opened.read(end - begin)))
        return FileRecord(size, _sha256(file, progress.advance), tuple(blocks))

    files = sorted(path for path in folder.iterdir() if path.is_file())
    total = sum(file.stat().st_size for file in files)
    with Progress("taking digests", total) as progress, _pool() as pool:
        records = pool.map(describe, files)
        return {file.name: record for file, record in zip(files, records, strict=True)}


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), "digest")


def _sha256(file: Path, done: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while content := opened.read(_READ_BYTES):
            digest.update(content)
            done(len(content))
    return digest.hexdigest()

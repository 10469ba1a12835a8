"""Whether a snapshot on disk is what its manifest says."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from gptj_predictor.common.files import explain_unreadable
from gptj_predictor.common.progress import Progress
from gptj_predictor.snapshot.advice import prune_command
from gptj_predictor.snapshot.cache import ModelRoot, find_roots, in_use, repair_command
from gptj_predictor.snapshot.damage import forget_damage, remember_damage, remembered_damage
from gptj_predictor.snapshot.errors import SnapshotDamagedError, SnapshotError
from gptj_predictor.snapshot.manifest import MANIFEST_FILE, FileRecord, Manifest

_READ_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Verdict:
    """What :func:`verify` finds of one version.

    Attributes:
        path: Its folder.
        damage: What is wrong, a line each; nothing if it is whole.
        superseded: Whether neither ``CURRENT`` nor a tag names it, but others.
        remedy: What to type if it is damaged.
    """

    path: Path
    damage: list[str]
    superseded: bool
    remedy: str


def verify(folder: Path) -> Iterator[Verdict]:
    """Read everything in a model cache, a model's root or one version; a verdict at a time.

    Damage is remembered, see :func:`check_version`.

    Raises:
        SnapshotError: there is no whole snapshot, or, after all verdicts, a root's ``CURRENT`` is
            damaged.
    """
    versions = [version for root in find_roots(folder) for version in root.versions()]
    if (folder / MANIFEST_FILE).exists():
        versions = [folder]
    if not versions:
        raise SnapshotError(f"{folder} holds no whole snapshot to verify")
    problem = None
    for version in versions:
        damage = check_version(version, everything=True)
        if not version.is_dir():
            continue  # a prune has just removed it
        root = ModelRoot.of(version)
        superseded = False
        try:
            superseded = root is not None and version not in root.servable()
        except SnapshotError as error:
            problem = None if version == folder else error  # one version is judged by itself
        remedy = prune_command(version.parent.parent) if superseded else repair_command(version)
        yield Verdict(version, damage, superseded, remedy)
    if problem is not None:
        raise problem


def check_version(version: Path, *, everything: bool) -> list[str]:
    """:func:`find_damage`, which also remembers what it finds.

    Damage that is found is remembered. Damage that was remembered counts until all of the version
    has been read and was whole.
    """
    with in_use(version):
        found = _look(version, everything=everything)
    if found.damaged:
        remember_damage(version, found.damaged[0])
    if found.lines:
        return found.lines
    if everything:
        forget_damage(version)
        return []
    remembered = remembered_damage(version)
    return [] if remembered is None else [remembered]


def find_damage(version: Path, *, everything: bool) -> list[str]:
    """What is wrong with a snapshot, a line each; nothing if it is whole.

    Args:
        version: Its folder.
        everything: Read all of it and compare the digests; else only look at names and sizes.

    Raises:
        SnapshotError: it has no manifest to be compared with.
    """
    return _look(version, everything=everything).lines


@dataclass(frozen=True)
class _Findings:
    """Lines about files that are not what the manifest says, and about files nobody can read."""

    damaged: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        return [*self.damaged, *self.unreadable]


def _look(version: Path, *, everything: bool) -> _Findings:
    found = _Findings()
    try:
        manifest = Manifest.read(version)
    except SnapshotDamagedError as error:
        return _Findings(damaged=[str(error)])
    except SnapshotError as error:
        return _Findings(unreadable=[str(error)])
    if manifest is None:
        raise SnapshotError(
            f"{version} has no {MANIFEST_FILE}: it was not made by snapshot pull, and there is "
            "nothing to compare it with"
        )
    whole = {}
    for name, record in manifest.files.items():
        try:
            size = (version / name).stat().st_size
        except FileNotFoundError:
            found.damaged.append(f"{version / name} is missing")
            continue
        if size != record.size:
            found.damaged.append(f"{version / name} has {size} bytes and not {record.size}")
        else:
            whole[name] = record
    if everything:
        _compare_digests(version, whole, found)
    return found


def _compare_digests(version: Path, files: dict[str, FileRecord], found: _Findings) -> None:
    def digest(name: str) -> str | OSError:
        try:
            return file_sha256(version / name, progress.advance)
        except OSError as error:
            return error

    total = sum(record.size for record in files.values())
    with Progress(f"verifying {version.name}", total) as progress, digest_pool() as pool:
        for name, result in zip(files, pool.map(digest, files), strict=True):
            file = version / name
            if isinstance(result, OSError):
                found.unreadable.append(explain_unreadable(file, result))
            elif result != files[name].sha256:
                found.damaged.append(f"{file} is damaged: its SHA-256 is not the manifest's")


def digest_pool() -> ThreadPoolExecutor:
    """Threads that take digests of whole files side by side."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), "digest")


def file_sha256(file: Path, done: Callable[[int], None]) -> str:
    """SHA-256 of a file in hexadecimal; ``done`` is told of the bytes as they are read."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while content := opened.read(_READ_BYTES):
            digest.update(content)
            done(len(content))
    return digest.hexdigest()

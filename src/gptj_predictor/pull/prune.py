"""Removing versions that are no longer served, and what killed pulls left."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from gptj_predictor.common.files import sync
from gptj_predictor.pull.publish import lease_of
from gptj_predictor.snapshot.cache import ModelRoot
from gptj_predictor.snapshot.damage import drop_stale_marks, forget_damage
from gptj_predictor.snapshot.errors import SnapshotError
from gptj_predictor.snapshot.info import existing_roots
from gptj_predictor.snapshot.manifest import MANIFEST_FILE


@dataclass(frozen=True)
class Pruned:
    """What became of a root, a version or unfinished work.

    Attributes:
        path: Its folder.
        kept: Why it is still there; ``None`` if it was removed.
        unfinished_bytes: Of unfinished work; 0 for anything else.
    """

    path: Path
    kept: str | None = None
    unfinished_bytes: int = 0


def prune(folder: Path) -> Iterator[Pruned]:
    """Prune a model cache or one model's root, a result at a time.

    What goes: versions that are not current, damaged or not, with their tags, and unfinished work.
    What stays: the current version, versions that somebody reads, and everything in a root into
    which somebody pulls.

    Raises:
        SnapshotError: there is nothing, or it may not be removed.
    """
    for root in existing_roots(folder):
        lease = lease_of(root)
        try:
            lease.acquire(timeout=2.0)
        except Timeout:
            yield Pruned(root.path, f"a pull is at work ({root.describe_pull()})")
            continue
        except OSError as error:
            raise SnapshotError(f"{root.path} cannot be written: {error.strerror}") from error
        try:
            yield from _prune(root)
        except OSError as error:
            raise SnapshotError(f"{error.filename}: {error.strerror}") from error
        finally:
            lease.release()


def _prune(root: ModelRoot) -> Iterator[Pruned]:
    current = root.current()
    if current is not None:  # else nothing tells which one is to be kept
        for version in root.versions():
            if version != current:
                removed = remove_version(version)
                yield Pruned(version, None if removed else "a server is reading it")
        _drop_stale_tags(root)
    drop_stale_marks(root)
    unfinished = root.unfinished_bytes()
    if root.pull_path.exists():
        shutil.rmtree(root.pull_path)
    if unfinished:
        yield Pruned(root.pull_path, unfinished_bytes=unfinished)


def remove_version(version: Path) -> bool:
    """Remove a version, unless somebody reads it; whether it is gone.

    The caller holds the root's lease.
    """
    with suppress(FileNotFoundError), (version / MANIFEST_FILE).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # a volume without locks
    # Away by one rename first: a kill while removing leaves no half version.
    root = ModelRoot(version.parent.parent)
    root.pull_path.mkdir(exist_ok=True)
    doomed = root.pull_path / f"removed-{version.name}"
    version.rename(doomed)
    sync(root.versions_path)
    forget_damage(version)
    shutil.rmtree(doomed)
    return True


def _drop_stale_tags(root: ModelRoot) -> None:
    for tag in root.tags():
        if root.tagged(tag) is None:
            (root.tags_path / tag).unlink(missing_ok=True)

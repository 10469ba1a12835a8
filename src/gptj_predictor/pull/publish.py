"""Publishing a version, naming the one that is served, and the lease that this takes."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLease, Timeout

from gptj_predictor.common.files import sync, sync_tree, write_whole
from gptj_predictor.common.progress import say
from gptj_predictor.snapshot.cache import LEASE_SECONDS, ModelRoot
from gptj_predictor.snapshot.damage import forget_damage
from gptj_predictor.snapshot.errors import SnapshotError

#: Seconds between two lines about a pull that this one waits for.
WAIT_LINE_SECONDS = 10.0


def lease_of(root: ModelRoot) -> SoftFileLease:
    """The right to change a root; it expires with its holder."""
    return SoftFileLease(root.lock_path, lease_duration=LEASE_SECONDS, poll_interval=1.0)


@contextmanager
def hold_lease(root: ModelRoot) -> Iterator[Callable[[], None]]:
    """Wait for a root's lease and hold it.

    Yields:
        A function that raises a ``SnapshotError`` once the lease is lost.
    """
    lease = lease_of(root)
    said = -math.inf
    while True:
        root.path.mkdir(parents=True, exist_ok=True)
        try:
            lease.acquire(timeout=1.0)
            break
        except FileNotFoundError:
            continue  # a pull that failed has just taken its empty root away
        except Timeout:
            if time.monotonic() - said >= WAIT_LINE_SECONDS:
                said = time.monotonic()
                say(f"waiting for another pull into {root.path}: {root.describe_pull()}")

    def check() -> None:
        if lease.compromise is not None or not lease.is_lock_held_by_us:
            raise SnapshotError(
                f"another pull took over {root.path} because this one gave no sign of life for "
                f"{LEASE_SECONDS:.0f} s; nothing is lost, pull again"
            )

    try:
        yield check
    finally:
        lease.release()


def free_name(root: ModelRoot, name: str) -> str:
    """A version's name, numbered if it is taken: nobody touches a version that may be read."""
    taken = {version.name for version in root.versions()}
    numbered = (f"{name}-r{number}" for number in range(2, len(taken) + 3))
    return next(free for free in (name, *numbered) if free not in taken)


def publish(root: ModelRoot, build: Path, name: str, check: Callable[[], None]) -> Path:
    """Put a finished build on disk and make it a version by one rename; its folder from now on.

    Raises:
        SnapshotError: the lease is lost.
        OSError: it cannot be written.
    """
    sync_tree(build)
    check()
    root.versions_path.mkdir(exist_ok=True)
    version = root.versions_path / name
    forget_damage(version)  # of an earlier version of this name
    build.rename(version)
    sync(root.versions_path)
    return version


def set_current(root: ModelRoot, name: str) -> None:
    """Serve this version from now on."""
    _point(root, root.current_path, name)


def set_tag(root: ModelRoot, tag: str, name: str) -> None:
    """Give this version a tag, which another may have had."""
    root.tags_path.mkdir(exist_ok=True)
    _point(root, root.tags_path / tag, name)


def _point(root: ModelRoot, file: Path, version: str) -> None:
    if file.is_file() and file.read_text().strip() == version:
        return
    root.pull_path.mkdir(exist_ok=True)
    write_whole(file, f"{version}\n", temporary=root.pull_path / "NAME")


def clean(root: ModelRoot, *, keep_source: bool) -> None:
    """Remove all unfinished work, and what was downloaded unless it is to be kept."""
    if not root.pull_path.exists():
        return
    for path in root.pull_path.iterdir():
        if not (keep_source and path.name.startswith("source-")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not any(root.pull_path.iterdir()):
        root.pull_path.rmdir()

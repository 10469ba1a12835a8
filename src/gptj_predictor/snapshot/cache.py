"""Where snapshots lie on the volume, and which of them is served.

    CACHE/                          the volume
      eleutherai-gpt-j-6b/          a model's root
        CURRENT                     name of the version that is served
        tags/                       names of versions that a pull was told to tag
        versions/
          47e169305d2e-bfloat16/    one whole snapshot, with its manifest; never changed again
        pull/                       unfinished work, there only while a pull runs or after it died
        pull.lock                   the lease of the pull that runs

A version appears by one rename, whole and on disk; ``CURRENT`` is replaced by one rename, after
that. So a reader finds the whole old version or the whole new one at every moment, and needs no
lock. There are no links, which not every network volume has.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import SoftFileLease

from gptj_predictor.common.files import sync, write_whole
from gptj_predictor.common.progress import readable
from gptj_predictor.settings import DEFAULT_MODEL_ID, wire_name
from gptj_predictor.snapshot.errors import SnapshotError, SnapshotMissingError
from gptj_predictor.snapshot.manifest import MANIFEST_FILE, Manifest

#: Seconds without a sign of life after which another pod takes over a pull. A holder that died on
#: the same machine is known at once.
LEASE_SECONDS = 30.0


@dataclass(frozen=True)
class ModelRoot:
    """The folder of one model in a cache."""

    path: Path

    @property
    def versions_path(self) -> Path:
        """Where whole versions lie."""
        return self.path / "versions"

    @property
    def pull_path(self) -> Path:
        """Where unfinished work lies."""
        return self.path / "pull"

    @property
    def lock_path(self) -> Path:
        """The lease of a running pull."""
        return self.path / "pull.lock"

    @property
    def current_path(self) -> Path:
        """The file that names the version that is served."""
        return self.path / "CURRENT"

    @property
    def tags_path(self) -> Path:
        """Files that name a version each, as a pull was told."""
        return self.path / "tags"

    def versions(self) -> list[Path]:
        """Folders of all published versions, by name."""
        if not self.versions_path.is_dir():
            return []
        return sorted(path for path in self.versions_path.iterdir() if path.is_dir())

    def _version(self, name: str) -> Path | None:
        return next((path for path in self.versions() if path.name == name), None)

    def current(self) -> Path | None:
        """The folder of the version that is served; ``None`` if nothing was ever published.

        Raises:
            SnapshotError: ``CURRENT`` is damaged or names what is not there.
        """
        try:
            name = self.current_path.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise SnapshotError(f"{self.current_path} cannot be read: {error}") from error
        version = self._version(name)
        if version is None:
            raise SnapshotError(
                f"{self.current_path} names version {name!r}, which is not there; {self.repair()}"
            )
        return version

    def publish(self, build: Path, name: str) -> Path:
        """Make a finished folder a version; its folder from now on.

        Everything in it must be on disk already (:func:`sync_tree`).
        """
        self.versions_path.mkdir(exist_ok=True)
        version = self.versions_path / name
        build.rename(version)
        sync(self.versions_path)
        return version

    def tagged(self, tag: str) -> Path | None:
        """The folder of the version with a tag; ``None`` if there is none, or no longer."""
        try:
            name = (self.tags_path / tag).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise SnapshotError(f"{self.tags_path / tag} cannot be read: {error}") from error
        return self._version(name)

    def find(self, tag: str | None) -> Path | None:
        """The folder of the version with a tag, or of the one that is served."""
        return self.current() if tag is None else self.tagged(tag)

    def set_current(self, name: str) -> None:
        """Serve this version from now on."""
        self._name(self.current_path, name)

    def set_tag(self, tag: str, name: str) -> None:
        """Give this version a tag, which another may have had."""
        self.tags_path.mkdir(exist_ok=True)
        self._name(self.tags_path / tag, name)

    def _name(self, file: Path, version: str) -> None:
        if file.is_file() and file.read_text().strip() == version:
            return
        self.pull_path.mkdir(exist_ok=True)
        write_whole(file, f"{version}\n", temporary=self.pull_path / "NAME")

    def drop_stale_tags(self) -> None:
        """Remove the tags of versions that are gone."""
        if self.tags_path.is_dir():
            for file in self.tags_path.iterdir():
                if self.tagged(file.name) is None:
                    file.unlink(missing_ok=True)

    def lease(self) -> SoftFileLease:
        """The right to pull into this root; expires with its holder."""
        return SoftFileLease(self.lock_path, lease_duration=LEASE_SECONDS, poll_interval=1.0)

    def pulling_since(self) -> float | None:
        """Seconds since the running pull's last sign of life; ``None`` if none runs."""
        try:
            return max(0.0, time.time() - self.lock_path.stat().st_mtime)
        except FileNotFoundError:
            return None

    def describe_pull(self) -> str:
        """Who pulls and how far it is, as far as a look from outside tells."""
        since = self.pulling_since()
        if since is None:
            return "it has just ended"
        owner = self.lease().owner
        who = f"{owner.hostname} (process {owner.pid})" if owner is not None else "someone"
        size = readable(self.unfinished_bytes())
        return f"{who}, last sign of life {since:.0f} s ago, {size} so far"

    def unfinished_bytes(self) -> int:
        """What unfinished work takes on disk."""
        total = 0
        for path in self.pull_path.rglob("*"):
            with suppress(FileNotFoundError):  # a pull may be running
                total += path.stat().st_size if path.is_file() else 0
        return total

    def repair(self) -> str:
        """What to type to have a whole snapshot here again."""
        for version in self.versions():
            with suppress(SnapshotError):
                manifest = Manifest.read(version)
                if manifest is not None:
                    return manifest.repair(self.path.parent)
        return pull_command(DEFAULT_MODEL_ID, self.path.parent)


def pull_command(model_id: str, cache: Path, tag: str | None = None) -> str:
    """What to type for a first snapshot."""
    tagging = "" if tag is None else f" --tag {tag}"
    return f"run: gptj-predictor snapshot pull {model_id} --dest {cache}{tagging}"


def find_roots(path: Path) -> list[ModelRoot]:
    """The model roots that a folder is or has."""
    if _is_root(path):
        return [ModelRoot(path)]
    if not path.is_dir():
        return []
    try:
        return [ModelRoot(child) for child in sorted(path.iterdir()) if _is_root(child)]
    except PermissionError as error:
        raise SnapshotError(f"{path} cannot be read: {error.strerror}") from error


def _is_root(path: Path) -> bool:
    root = ModelRoot(path)
    parts = (root.current_path, root.versions_path, root.pull_path, root.lock_path)
    return any(part.exists() for part in parts)


def find_snapshot(model: str, cache: Path, tag: str | None = None) -> Path:
    """The snapshot folder that ``--model`` and ``--tag`` mean.

    Args:
        model: A snapshot folder, a model's root, a cache with one model in it, or a model id.
        cache: Where model ids are looked up.
        tag: The version that a pull gave this tag; the one that is served if ``None``.

    Raises:
        SnapshotMissingError: there is none yet.
        SnapshotError: there are several, or what is there is damaged.
    """
    path = Path(model)
    if path.exists():
        if not path.is_dir():
            raise SnapshotError(f"--model {model} is not a folder")
        return _snapshot_in(path, tag)
    if not _looks_like_id(model):
        raise SnapshotMissingError(f"--model {model}: there is no such folder")
    root = ModelRoot(cache / wire_name(model))
    version = root.find(tag)
    if version is None:
        # A volume may be mounted so that the model's own root is what is seen of it.
        version = ModelRoot(cache).find(tag)
        manifest = Manifest.read(version) if version else None
        if manifest is None or wire_name(manifest.model_id) != wire_name(model):
            raise SnapshotMissingError(
                f"--model {model}: there is no such folder, and no snapshot of that id"
                f"{_with_tag(tag)} in {cache}; {pull_command(model, cache, tag)}"
            )
        assert version is not None
    return version


def _looks_like_id(model: str) -> bool:
    return not model.startswith((".", "/", "~")) and model.count("/") <= 1


def _with_tag(tag: str | None) -> str:
    return "" if tag is None else f" with the tag {tag}"


def _snapshot_in(path: Path, tag: str | None) -> Path:
    if (path / MANIFEST_FILE).exists() or (path / "config.json").exists():
        if tag is not None:
            raise SnapshotError(f"{path} is one snapshot; --tag {tag} is looked up in a cache")
        return path
    roots = find_roots(path)
    found = [version for root in roots if (version := root.find(tag)) is not None]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(version.parent.parent.name for version in found)
        raise SnapshotError(f"{path} holds several models; name one with --model: {names}")
    if roots:
        raise SnapshotMissingError(
            f"{roots[0].path} has no whole snapshot{_with_tag(tag)} yet; {roots[0].repair()}"
        )
    if any(path.glob("*.bin")) or any(path.glob("*.safetensors")):
        raise SnapshotError(f"{path / 'config.json'} is missing")
    raise SnapshotMissingError(f"{path} holds no snapshot; {pull_command(DEFAULT_MODEL_ID, path)}")


@contextmanager
def in_use(version: Path) -> Iterator[None]:
    """Keep :func:`remove_version` from removing a version while it is read.

    A shared lock on the manifest, which the kernel gives back if the process dies. A volume without
    locks, or a snapshot without a manifest, is simply read.
    """
    try:
        file = (version / MANIFEST_FILE).open("rb")
    except OSError:
        yield
        return
    with file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def remove_version(version: Path) -> bool:
    """Remove a version, unless somebody reads it; whether it is gone."""
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
    shutil.rmtree(doomed)
    return True

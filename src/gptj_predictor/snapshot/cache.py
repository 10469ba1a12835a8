"""Where snapshots lie on the volume, and which of them is served.

    MODELS/                         the model cache: a folder, most often a volume
      eleutherai-gpt-j-6b/          a model's root
        CURRENT                     name of the version that is served
        tags/                       names of versions that a pull was told to tag
        versions/
          47e169305d2e-bfloat16/    one whole snapshot, with its manifest; never changed again
          47e169305d2e-bfloat16.damaged    what a reader found wrong with it since
          47e169305d2e-bfloat16-int8/      the same with int8 weights
        pull/                       unfinished work, there only while a pull runs or after it died
        pull.lock                   the lease of the pull that runs

A version appears by one rename, whole and on disk; ``CURRENT`` is replaced by one rename, after
that. So a reader finds the whole old version or the whole new one at every moment, and needs no
lock. There are no links, which not every network volume has. This module only reads; ``pull/``
makes and removes what it finds.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import SoftFileLease

from gptj_predictor.common.files import explain_unreadable
from gptj_predictor.common.progress import readable
from gptj_predictor.settings import DEFAULT_MODEL_ID, wire_name
from gptj_predictor.snapshot.advice import pull_command, repull_command
from gptj_predictor.snapshot.errors import SnapshotError, SnapshotMissingError
from gptj_predictor.snapshot.manifest import MANIFEST_FILE, Manifest

#: Seconds without a sign of life after which another pod takes over a pull. A holder that died on
#: the same machine is known at once.
LEASE_SECONDS = 30.0


@dataclass(frozen=True)
class ModelRoot:
    """The folder of one model in a model cache, for reading."""

    path: Path

    @classmethod
    def of(cls, version: Path) -> ModelRoot | None:
        """The root that a folder is a version of; ``None`` if it is any other folder."""
        root = cls(version.parent.parent)
        return root if root.versions_path == version.parent else None

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
        except OSError as error:
            raise SnapshotError(explain_unreadable(self.current_path, error)) from error
        except UnicodeDecodeError as error:
            raise SnapshotError(f"{self.current_path} cannot be read: {error}") from error
        version = self._version(name)
        if version is None:
            raise SnapshotError(
                f"{self.current_path} names version {name!r}, which is not there; {self.repair()}"
            )
        return version

    def tagged(self, tag: str) -> Path | None:
        """The folder of the version with a tag; ``None`` if there is none, or no longer."""
        try:
            name = (self.tags_path / tag).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SnapshotError(explain_unreadable(self.tags_path / tag, error)) from error
        except UnicodeDecodeError as error:
            raise SnapshotError(f"{self.tags_path / tag} cannot be read: {error}") from error
        return self._version(name)

    def tags(self) -> list[str]:
        """All tags, by name; the version of one may be gone."""
        if not self.tags_path.is_dir():
            return []
        return sorted(file.name for file in self.tags_path.iterdir())

    def tags_of(self, version: Path) -> list[str]:
        """The tags that name a version; one that cannot be read names none."""
        found = []
        for tag in self.tags():
            with suppress(SnapshotError):
                if self.tagged(tag) == version:
                    found.append(tag)
        return found

    def servable(self) -> list[Path]:
        """The versions that a server may be told to serve: the current one and those with a tag.

        If none is current yet, all of them: none has been superseded.

        Raises:
            SnapshotError: ``CURRENT`` is damaged or names what is not there.
        """
        current = self.current()
        return [
            version
            for version in self.versions()
            if current in {None, version} or self.tags_of(version)
        ]

    def find(self, tag: str | None) -> Path | None:
        """The folder of the version with a tag, or of the one that is served."""
        return self.current() if tag is None else self.tagged(tag)

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
        owner = SoftFileLease(self.lock_path, lease_duration=LEASE_SECONDS).owner
        who = "someone"
        if owner is not None:
            # filelock adds the PID namespace, because two containers may have the same process ids.
            who = f"{owner.hostname.partition('?pidns-')[0]} (process {owner.pid})"
        size = readable(self.unfinished_bytes())
        return f"{who}, last sign of life {since:.0f} s ago, {size} so far"

    def unfinished_bytes(self) -> int:
        """What unfinished work takes on disk."""
        total = 0
        for path in self.pull_path.rglob("*"):
            with suppress(FileNotFoundError):  # a pull may be running
                total += path.stat().st_size if path.is_file() else 0
        return total

    def repair(self, tag: str | None = None) -> str:
        """What to type to have a whole snapshot here again, with this tag."""
        for version in self.versions():
            with suppress(SnapshotError):
                manifest = Manifest.read(version)
                if manifest is not None:
                    return repull_command(manifest, self.path.parent, tag)
        return pull_command(DEFAULT_MODEL_ID, self.path.parent, tag)


def repair_command(version: Path) -> str:
    """What to type to have a damaged version again."""
    root = ModelRoot(version.parent.parent)
    tag = next(iter(root.tags_of(version)), None)
    with suppress(SnapshotError):
        manifest = Manifest.read(version)
        if manifest is not None:
            return repull_command(manifest, root.path.parent, tag)
    return root.repair(tag)


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
        model: A snapshot folder, a model's root, a model cache with one model in it, or a model
            id.
        cache: The model cache, where model ids are looked up.
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
    if path == cache:
        raise SnapshotMissingError(
            f"the model cache {cache} does not exist, so there is no snapshot{_with_tag(tag)}; "
            f"{pull_command(DEFAULT_MODEL_ID, cache, tag)}"
        )
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
            raise SnapshotError(
                f"{path} is one snapshot; --tag {tag} is looked up in a model cache"
            )
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
            f"{roots[0].path} has no whole snapshot{_with_tag(tag)} yet; {roots[0].repair(tag)}"
        )
    if any(path.glob("*.bin")) or any(path.glob("*.safetensors")):
        raise SnapshotError(f"{path / 'config.json'} is missing")
    raise SnapshotMissingError(
        f"{path} holds no snapshot; {pull_command(DEFAULT_MODEL_ID, path, tag)}"
    )


@contextmanager
def in_use(version: Path) -> Iterator[None]:
    """Keep ``snapshot prune`` from removing a version while it is read.

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

"""What is in a model cache: which versions, which of them is served, and what is damaged.

Nothing is written and no weights are read; :func:`gptj_predictor.snapshot.verify.verify` reads
everything.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from gptj_predictor.settings import DEFAULT_MODEL_ID
from gptj_predictor.snapshot.advice import pull_command
from gptj_predictor.snapshot.cache import ModelRoot, find_roots
from gptj_predictor.snapshot.damage import remembered_damage
from gptj_predictor.snapshot.errors import SnapshotError
from gptj_predictor.snapshot.manifest import Manifest
from gptj_predictor.snapshot.verify import find_damage


@dataclass(frozen=True)
class VersionInfo:
    """One version.

    Attributes:
        path: Its folder.
        current: Whether it is the one that is served.
        whole: Whether all files are there with their sizes, and nobody has found damage in them;
            ``verify`` reads them too.
        problem: What is wrong, if something is.
        tags: Those that name it.
        superseded: Whether neither ``CURRENT`` nor a tag names it, but others.
        model_id: From the manifest, as all below; ``None`` if that cannot be read.
        revision: What was asked for.
        commit: What it resolved to.
        precision: What was asked for.
        quantization: How the weights of products are stored, ``none`` or ``int8``.
        bytes: Of all files.
    """

    path: str
    current: bool
    whole: bool
    problem: str | None = None
    tags: list[str] = field(default_factory=list)
    superseded: bool = False
    model_id: str | None = None
    revision: str | None = None
    commit: str | None = None
    precision: str | None = None
    quantization: str | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class RootInfo:
    """One model's root.

    Attributes:
        path: Its folder.
        versions: All of them.
        problem: Why nothing here can be served, if so.
        pull: The pull that runs, in words.
        unfinished_bytes: What it, or one that was killed, has brought so far.
    """

    path: str
    versions: list[VersionInfo]
    problem: str | None
    pull: str | None
    unfinished_bytes: int

    @property
    def problems(self) -> list[str]:
        """What is wrong with what can be served."""
        served = [version.problem for version in self.versions if not version.superseded]
        return [problem for problem in (self.problem, *served) if problem is not None]


def describe_folder(folder: Path) -> list[RootInfo]:
    """What is in a model cache, or in one model's root.

    Raises:
        SnapshotError: there is none.
    """
    return [describe_root(root) for root in existing_roots(folder)]


def existing_roots(folder: Path) -> list[ModelRoot]:
    """The model roots that a folder is or has.

    Raises:
        SnapshotError: there is none, with what to pull.
    """
    if not folder.is_dir():
        raise SnapshotError(f"{folder} does not exist or is not a folder")
    roots = find_roots(folder)
    if not roots:
        raise SnapshotError(f"{folder} has no snapshots; {pull_command(DEFAULT_MODEL_ID, folder)}")
    return roots


def describe_root(root: ModelRoot) -> RootInfo:
    """What is in a root. A pull or a prune may be at work meanwhile."""
    problem = None
    current = None
    servable = versions = root.versions()
    try:
        current = root.current()
        servable = root.servable()
        if current is None:
            problem = f"no whole snapshot yet; {root.repair()}"
    except SnapshotError as error:
        problem = str(error)
    return RootInfo(
        path=str(root.path),
        versions=[
            _describe_version(
                version,
                current=version == current,
                tags=root.tags_of(version),
                superseded=version not in servable,
            )
            for version in versions
        ],
        problem=problem,
        pull=None if root.pulling_since() is None else root.describe_pull(),
        unfinished_bytes=root.unfinished_bytes(),
    )


def _describe_version(
    version: Path, *, current: bool, tags: list[str], superseded: bool
) -> VersionInfo:
    try:
        damage = find_damage(version, everything=False)
        manifest = Manifest.read(version)
    except SnapshotError as error:
        damage, manifest = [str(error)], None
    problem = damage[0] if damage else remembered_damage(version)
    info = VersionInfo(str(version), current, problem is None, problem, tags, superseded)
    if manifest is None:
        return info
    return replace(
        info,
        model_id=manifest.model_id,
        revision=manifest.revision,
        commit=manifest.commit,
        precision=manifest.precision,
        quantization=manifest.quantization,
        bytes=sum(record.size for record in manifest.files.values()),
    )

"""``gptj-predictor snapshot pull | verify | info | prune``."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from filelock import Timeout

from gptj_predictor.common.progress import readable
from gptj_predictor.pull.pull import PullRequest, pull
from gptj_predictor.settings import DEFAULT_MODEL_ID, Precision
from gptj_predictor.snapshot.cache import ModelRoot, find_roots, pull_command, remove_version
from gptj_predictor.snapshot.errors import SnapshotError
from gptj_predictor.snapshot.folder import repair_command
from gptj_predictor.snapshot.manifest import MANIFEST_FILE, Manifest
from gptj_predictor.snapshot.verify import find_damage


def run_pull(flags: argparse.Namespace) -> None:
    """Pull, and print the folder."""
    # Kubernetes ends a Job's pod with SIGTERM: let the lease go, and do not look successful.
    signal.signal(signal.SIGTERM, _stop)
    request = PullRequest(
        model_id=flags.model_id,
        revision=flags.revision,
        precision=Precision(flags.precision),
        cache=flags.dest,
        offline=flags.offline,
        keep_source=flags.keep_source,
        verify=flags.verify,
        retries=flags.retries,
        tag=flags.tag,
    )
    # The client's own warnings repeat what the progress lines say, in several lines each.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    print(pull(request))


def _stop(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


@dataclass(frozen=True)
class VersionInfo:
    """One version, as ``info`` prints it.

    Attributes:
        path: Its folder.
        current: Whether it is the one that is served.
        whole: Whether all files are there with their sizes; ``verify`` reads them too.
        problem: What is wrong, if something is.
        model_id: From the manifest, as all below; ``None`` if that cannot be read.
        revision: What was asked for.
        commit: What it resolved to.
        precision: What was asked for.
        bytes: Of all files.
    """

    path: str
    current: bool
    whole: bool
    problem: str | None = None
    model_id: str | None = None
    revision: str | None = None
    commit: str | None = None
    precision: str | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class RootInfo:
    """One model's root, as ``info`` prints it.

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


def describe_root(root: ModelRoot) -> RootInfo:
    """What is in a root. A pull or a prune may be at work meanwhile."""
    problem = None
    current = None
    try:
        current = root.current()
        if current is None:
            problem = f"no whole snapshot yet; {root.repair()}"
    except SnapshotError as error:
        problem = str(error)
    return RootInfo(
        path=str(root.path),
        versions=[_describe_version(version, version == current) for version in root.versions()],
        problem=problem,
        pull=None if root.pulling_since() is None else root.describe_pull(),
        unfinished_bytes=root.unfinished_bytes(),
    )


def _describe_version(version: Path, current: bool) -> VersionInfo:
    try:
        damage = find_damage(version, everything=False)
        manifest = Manifest.read(version)
    except SnapshotError as error:
        damage, manifest = [str(error)], None
    if manifest is None:
        return VersionInfo(str(version), current, False, damage[0])
    return VersionInfo(
        path=str(version),
        current=current,
        whole=not damage,
        problem=damage[0] if damage else None,
        model_id=manifest.model_id,
        revision=manifest.revision,
        commit=manifest.commit,
        precision=manifest.precision,
        bytes=sum(record.size for record in manifest.files.values()),
    )


def run_info(flags: argparse.Namespace) -> None:
    """Print what is there.

    Raises:
        SnapshotError: nothing here can be served; what is there was printed all the same.
    """
    roots = [describe_root(root) for root in _roots(flags.folder)]
    if flags.json:
        print(json.dumps([asdict(root) for root in roots], indent=2))
    else:
        for root in roots:
            _print_root(root)
    problems = [
        problem
        for root in roots
        for problem in (
            root.problem,
            *(version.problem for version in root.versions if version.current),
        )
        if problem is not None
    ]
    if problems:
        raise SnapshotError(problems[0])


def _print_root(root: RootInfo) -> None:
    print(root.path)
    for version in root.versions:
        mark = "*" if version.current else " "
        if version.commit is None:
            print(f"  {mark} {Path(version.path).name}: {version.problem}")
            continue
        state = "whole" if version.whole else f"NOT WHOLE: {version.problem}"
        print(
            f"  {mark} {Path(version.path).name}: {version.model_id} at {version.revision} "
            f"({version.commit}), {version.precision}, {readable(version.bytes or 0)}, {state}"
        )
    if root.pull is not None:
        print(f"    a pull is at work: {root.pull}")
    elif root.unfinished_bytes:
        print(f"    {readable(root.unfinished_bytes)} of a pull that did not end")


def run_verify(flags: argparse.Namespace) -> None:
    """Read everything and compare it with the manifests.

    Raises:
        SnapshotError: something is damaged, with the command that mends it.
    """
    versions = [version for root in find_roots(flags.folder) for version in root.versions()]
    if (flags.folder / MANIFEST_FILE).exists():
        versions = [flags.folder]
    if not versions:
        raise SnapshotError(f"{flags.folder} holds no whole snapshot to verify")
    repair = None
    for version in versions:
        damage = find_damage(version, everything=True)
        for line in damage or [f"{version}: whole"]:
            print(line)
        if damage:
            repair = repair_command(version)
    if repair is not None:
        raise SnapshotError(f"damaged; {repair}")


def run_prune(flags: argparse.Namespace) -> None:
    """Remove old versions and unfinished work, and print what went.

    Raises:
        SnapshotError: it may not be removed.
    """
    for root in _roots(flags.folder):
        lease = root.lease()
        try:
            lease.acquire(timeout=2.0)
        except Timeout:
            print(f"{root.path}: a pull is at work ({root.describe_pull()}); nothing removed")
            continue
        except OSError as error:
            raise SnapshotError(f"{root.path} cannot be written: {error.strerror}") from error
        try:
            _prune(root)
        except OSError as error:
            raise SnapshotError(f"{error.filename}: {error.strerror}") from error
        finally:
            lease.release()


def _prune(root: ModelRoot) -> None:
    current = root.current()
    if current is not None:  # else nothing tells which one is to be kept
        for version in root.versions():
            if version == current:
                continue
            removed = remove_version(version)
            print(f"{version}: {'removed' if removed else 'kept, a server is reading it'}")
        root.drop_stale_tags()
    unfinished = root.unfinished_bytes()
    if root.pull_path.exists():
        shutil.rmtree(root.pull_path)
    if unfinished:
        print(f"{root.pull_path}: removed, {readable(unfinished)}")


def _roots(folder: Path) -> list[ModelRoot]:
    if not folder.is_dir():
        raise SnapshotError(f"{folder} does not exist or is not a folder")
    roots = find_roots(folder)
    if not roots:
        raise SnapshotError(f"{folder} has no snapshots; {pull_command(DEFAULT_MODEL_ID, folder)}")
    return roots

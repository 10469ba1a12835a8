"""What ``gptj-predictor snapshot verify | info | prune`` print."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from gptj_predictor.common.progress import readable
from gptj_predictor.pull.prune import prune
from gptj_predictor.snapshot.errors import SnapshotError
from gptj_predictor.snapshot.info import RootInfo, VersionInfo, describe_folder
from gptj_predictor.snapshot.manifest import MANIFEST_FILE
from gptj_predictor.snapshot.verify import verify


def print_info(folder: Path, *, as_json: bool) -> None:
    """Print what is there.

    Raises:
        SnapshotError: something that can be served is damaged, or nothing can be served; what is
            there was printed all the same.
    """
    roots = describe_folder(folder)
    if as_json:
        print(json.dumps([asdict(root) for root in roots], indent=2))
    else:
        for root in roots:
            _print_root(root)
    problems = [problem for root in roots for problem in root.problems]
    if problems:
        raise SnapshotError(problems[0])


def _print_root(root: RootInfo) -> None:
    print(root.path)
    for version in root.versions:
        print(f"  {'*' if version.current else ' '} {_describe(version)}")
    if root.pull is not None:
        print(f"    a pull is at work: {root.pull}")
    elif root.unfinished_bytes:
        print(f"    {readable(root.unfinished_bytes)} of a pull that did not end")


def _describe(version: VersionInfo) -> str:
    name = Path(version.path).name
    state = "whole" if version.whole else f"NOT WHOLE: {version.problem}"
    if version.superseded and not version.whole:
        state += " (superseded; snapshot prune removes it)"
    if version.commit is None:
        return f"{name}: {state}"
    tags = "".join(f", tag {tag}" for tag in version.tags)
    quantized = "" if version.quantization == "none" else f" with {version.quantization} weights"
    return (
        f"{name}: {version.model_id} at {version.revision} ({version.commit}), "
        f"{version.precision}{quantized}, {readable(version.bytes or 0)}{tags}, {state}"
    )


def print_verdicts(folder: Path) -> None:
    """Read everything and compare it with the manifests.

    Raises:
        SnapshotError: something that can be served is damaged, with the command that mends it.
    """
    named = (folder / MANIFEST_FILE).exists()
    remedy = None
    for verdict in verify(folder):
        for line in verdict.damage or [f"{verdict.path}: whole"]:
            print(line)
        if verdict.damage and verdict.superseded and not named:
            print(f"{verdict.path}: damaged, but no longer served; {verdict.remedy}")
        elif verdict.damage:
            remedy = verdict.remedy
    if remedy is not None:
        raise SnapshotError(f"damaged; {remedy}")


def prune_and_print(folder: Path) -> None:
    """Remove old versions and unfinished work, and print what went.

    Raises:
        SnapshotError: it may not be removed.
    """
    for pruned in prune(folder):
        if pruned.kept is not None:
            print(f"{pruned.path}: kept, {pruned.kept}")
        elif pruned.unfinished_bytes:
            print(f"{pruned.path}: removed, {readable(pruned.unfinished_bytes)}")
        else:
            print(f"{pruned.path}: removed")

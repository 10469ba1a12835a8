"""Remembering which versions are damaged.

A version's folder never changes, so the mark is a file beside it, ``versions/NAME.damaged``, with
what was found in one line. Whoever finds damage writes it, if the volume can be written. On a
read-only volume nothing is remembered, and the next reader finds the damage again.
"""

from __future__ import annotations

import logging
from pathlib import Path

from gptj_predictor.common.files import sync, write_whole
from gptj_predictor.snapshot.cache import ModelRoot

logger = logging.getLogger(__name__)

SUFFIX = ".damaged"


def remember_damage(version: Path, problem: str) -> None:
    """Mark a version of a model cache as damaged; any other folder is left as it is."""
    if ModelRoot.of(version) is None or not version.is_dir() or _mark(version).exists():
        return
    try:
        write_whole(_mark(version), f"{problem}\n")
    except OSError as error:
        logger.debug("%s cannot be marked as damaged: %s", version, error)


def remembered_damage(version: Path) -> str | None:
    """What was found wrong with a version, in one line; ``None`` if nothing was."""
    try:
        text = _mark(version).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.strip() or f"{version} is damaged"


def forget_damage(version: Path) -> None:
    """Take the mark away, if there is one: the version was read and is whole, or is gone."""
    try:
        _mark(version).unlink()
        sync(version.parent)
    except FileNotFoundError:
        pass
    except OSError as error:
        logger.debug("%s cannot be unmarked: %s", version, error)


def drop_stale_marks(root: ModelRoot) -> None:
    """Remove the marks of versions that are gone, and what a killed write of one left.

    Raises:
        OSError: the volume cannot be written.
    """
    kept = {_mark(version) for version in root.versions()}
    for file in root.versions_path.glob(f"*{SUFFIX}*"):
        if file not in kept and file.is_file():
            file.unlink(missing_ok=True)


def _mark(version: Path) -> Path:
    return version.with_name(version.name + SUFFIX)

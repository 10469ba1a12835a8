"""The commands that error messages advise."""

from __future__ import annotations

from pathlib import Path

from gptj_predictor.snapshot.manifest import Manifest


def pull_command(model_id: str, cache: Path, tag: str | None = None) -> str:
    """What to type for a first snapshot in a model cache."""
    return f"run: gptj-predictor snapshot pull {model_id} --dest {cache}{_tagging(tag)}"


def repull_command(manifest: Manifest, cache: Path, tag: str | None = None) -> str:
    """What to type to replace a damaged version, and to move its tag to the new one."""
    return (
        f"run: gptj-predictor snapshot pull {manifest.model_id} --revision {manifest.revision} "
        f"--precision {manifest.precision} --dest {cache} --verify{_tagging(tag)}"
    )


def prune_command(folder: Path) -> str:
    """What to type to remove versions that are no longer served."""
    return f"run: gptj-predictor snapshot prune {folder}"


def _tagging(tag: str | None) -> str:
    return "" if tag is None else f" --tag {tag}"

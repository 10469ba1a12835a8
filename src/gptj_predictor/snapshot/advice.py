"""The commands that error messages advise."""

from __future__ import annotations

import os
from pathlib import Path

from gptj_predictor.snapshot.manifest import Manifest


def pull_command(model_id: str, cache: Path, tag: str | None = None) -> str:
    """What to type for a first snapshot in a model cache."""
    return f"run: gptj-predictor snapshot pull {model_id} --dest {cache}{_tagging(tag)}"


#: Kubernetes sets it in every container. There the model cache is mounted read-only, into a pod
#: that restarts, so nobody can type a command into it: the chart has to make a Job.
IN_CLUSTER = "KUBERNETES_SERVICE_HOST"


def repull_command(manifest: Manifest, cache: Path, tag: str | None = None) -> str:
    """What to type to replace a damaged version, and to move its tag to the new one."""
    if os.environ.get(IN_CLUSTER):
        return (
            "run: helm upgrade RELEASE CHART --reuse-values --set-string "
            "download.verify=$(date +%s) (another text for the chart's value download.verify "
            "makes a Job that replaces what is damaged)"
        )
    return (
        f"run: gptj-predictor snapshot pull {manifest.model_id} --revision {manifest.revision} "
        f"--precision {manifest.precision}{_quantizing(manifest)} --dest {cache} --verify"
        f"{_tagging(tag)}"
    )


def prune_command(folder: Path) -> str:
    """What to type to remove versions that are no longer served."""
    return f"run: gptj-predictor snapshot prune {folder}"


def _quantizing(manifest: Manifest) -> str:
    return "" if manifest.quantization == "none" else f" --quantization {manifest.quantization}"


def _tagging(tag: str | None) -> str:
    return "" if tag is None else f" --tag {tag}"

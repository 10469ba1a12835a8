"""Waiting for another pod's pull to publish what this one is to serve."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from gptj_predictor.snapshot.cache import find_roots, find_snapshot
from gptj_predictor.snapshot.errors import SnapshotMissingError

logger = logging.getLogger(__name__)

#: Seconds between two looks at the volume, and between two lines of the log.
LOOK_SECONDS = 1.0
LINE_SECONDS = 10.0


def wait_for_snapshot(model: str, cache: Path, seconds: float, tag: str | None = None) -> Path:
    """The folder that :func:`find_snapshot` finds, now or within some seconds.

    Raises:
        SnapshotMissingError: there is none by then.
        SnapshotError: what is there is damaged; waiting would not mend it.
    """
    begun = time.monotonic()
    said = begun - LINE_SECONDS
    while True:
        try:
            return find_snapshot(model, cache, tag)
        except SnapshotMissingError:
            now = time.monotonic()
            if now - begun >= seconds:
                raise
            if now - said >= LINE_SECONDS:
                said = now
                logger.info(
                    "waiting up to %.0f s more for a snapshot of %s in %s: %s",
                    seconds - (now - begun),
                    model,
                    cache,
                    _describe_pulls(cache),
                )
            time.sleep(min(LOOK_SECONDS, seconds - (now - begun)))


def _describe_pulls(cache: Path) -> str:
    pulls = [
        f"{root.path.name} is being pulled by {root.describe_pull()}"
        for root in find_roots(cache)
        if root.pulling_since() is not None
    ]
    return "; ".join(pulls) or "no pull is at work there"

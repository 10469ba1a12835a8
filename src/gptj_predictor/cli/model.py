"""Which snapshot the settings mean."""

from __future__ import annotations

from pathlib import Path

from gptj_predictor.cli.errors import logger
from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.settings import ServerSettings


def find_model(settings: ServerSettings) -> Path:
    """The snapshot's folder; waits for it as long as the settings say.

    Raises:
        SnapshotError: there is none, or none in time.
    """
    from gptj_predictor.snapshot.wait import wait_for_snapshot

    if settings.model is None and settings.tag is None and not settings.cache.is_dir():
        logger.warning(
            "no --model given and nothing is mounted at %s: this is the bundled DEMO, a toy of a "
            "few million parameters that shows the interface and not GPT-J-6B's answers",
            settings.cache,
        )
        return DEMO_SNAPSHOT
    model = str(settings.cache) if settings.model is None else settings.model
    return wait_for_snapshot(model, settings.cache, settings.wait_for_snapshot, settings.tag)

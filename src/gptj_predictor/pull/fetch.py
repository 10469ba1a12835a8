"""Fetching a commit's files into the folder of the download."""

from __future__ import annotations

from pathlib import Path

from gptj_predictor.pull.hub import HubFile, Listing, download
from gptj_predictor.pull.job import LISTING_FILE, Job, Plan, bytes_in
from gptj_predictor.snapshot.errors import SnapshotError


def fetch_all(job: Job, plan: Plan) -> None:
    """Bring everything that the plan needs, if there is room for it and for what is made of it.

    Raises:
        SnapshotError: there is no room, or a file cannot be had.
        OSError: it cannot be written.
    """
    storage = plan.storage
    if storage.dtype is not None:
        made = sum(storage.bytes(name, shape, storage.dtype) for name, shape in plan.shapes.items())
    elif plan.weights[0].name.endswith(".safetensors"):
        made = 0  # most likely these files are taken as they are
    else:
        made = sum(file.size for file in plan.weights)
    missing = max(0, sum(file.size for file in plan.files) - bytes_in(plan.source))
    job.make_room(made - bytes_in(plan.build) + missing)
    fetch(job, plan.listing, plan.files, plan.source)


def fetch(job: Job, listing: Listing, files: list[HubFile], source: Path) -> None:
    """Bring some files of a commit; offline, make sure that they are there.

    Raises:
        SnapshotError: a file cannot be had.
        OSError: it cannot be written.
    """
    source.mkdir(parents=True, exist_ok=True)
    listing.write(source / LISTING_FILE)
    if job.request.offline:
        missing = [file.name for file in files if not (source / file.name).exists()]
        if missing:
            raise SnapshotError(
                f"--offline: {missing[0]} of {listing.model_id} was not downloaded yet; pull "
                "once without --offline"
            )
    download(listing, files, source, retries=job.request.retries, check=job.check)

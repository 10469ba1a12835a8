"""The first stages: what the hub has, and which version is to be made of it."""

from __future__ import annotations

import math
import re
from contextlib import suppress

import torch

from gptj_predictor.devices.precision import (
    DTYPES,
    choose_precision,
    describe_device,
)
from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.pull.convert import Storage
from gptj_predictor.pull.fetch import fetch
from gptj_predictor.pull.hub import HubFile, Listing, list_files
from gptj_predictor.pull.job import LISTING_FILE, Job, Plan
from gptj_predictor.settings import Precision
from gptj_predictor.snapshot.errors import SnapshotError
from gptj_predictor.snapshot.folder import INDEX_FILE, SINGLE_FILE, read_config
from gptj_predictor.snapshot.layout import NetworkLayout, is_multiplied
from gptj_predictor.snapshot.load import expected_shapes
from gptj_predictor.snapshot.manifest import Manifest

#: Beside the weights, as far as a repository has them.
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)
PICKLE_FILE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"


def resolve(job: Job) -> Listing:
    """The commit that the revision means today, and its files.

    Offline it is what an earlier pull was told.

    Raises:
        SnapshotError: there is no such model or revision, or no answer.
    """
    wanted = job.request
    if not wanted.offline:
        return list_files(wanted.model_id, wanted.revision, wanted.retries)
    for file in job.root.pull_path.glob(f"*/{LISTING_FILE}"):
        listing = Listing.read(file)
        if listing is not None and wanted.revision in {listing.revision, listing.commit}:
            return listing
    raise SnapshotError(
        f"--offline: {job.root.path} has no whole snapshot of {wanted.model_id} at revision "
        f"{wanted.revision} and no download of it; pull once without --offline"
    )


def make_plan(job: Job, listing: Listing) -> Plan:
    """Decide which version to make; fetches ``config.json`` if no version of the commit has it.

    Raises:
        SnapshotError: it is no GPT-J, has no weights that can be used, or cannot be fetched.
    """
    small, weights = _needed(listing)
    source = job.root.pull_path / f"source-{listing.commit[:12]}"
    _undo_move(job, listing.commit)
    config = _published_config(job, listing.commit)
    if config is None:
        fetch(job, listing, [file for file in small if file.name == "config.json"], source)
        config = read_config(source)
    shapes = expected_shapes(config)
    elements = sum(math.prod(shape) for shape in shapes.values())
    precision = _store_in(job.request.precision, sum(file.size for file in weights) / elements)
    name = f"{listing.commit[:12]}-{precision}"
    storage = Storage(DTYPES.get(precision))
    if job.request.stored_quantization == "int8":
        name += "-int8"
        storage = Storage(storage.dtype, scale_sharers(config))
    build = job.root.pull_path / f"build-{name}"
    return Plan(listing, small, weights, precision, storage, shapes, name, source, build)


def _undo_move(job: Job, commit: str) -> None:
    """Make a download again of what a killed pull had moved to be served as it is."""
    source = job.root.pull_path / f"source-{commit[:12]}"
    for build in job.root.pull_path.glob(f"build-{commit[:12]}-*"):
        if (build / LISTING_FILE).exists() and not source.exists():
            build.rename(source)


def _published_config(job: Job, commit: str) -> NetworkConfig | None:
    """A commit's configuration, if one of its versions is there."""
    for version in job.root.versions():
        with suppress(SnapshotError):
            manifest = Manifest.read(version)
            if manifest is not None and manifest.commit == commit:
                return read_config(version)
    return None


def _needed(listing: Listing) -> tuple[list[HubFile], list[HubFile]]:
    """What to download: the small files, and the weights with their index.

    Raises:
        SnapshotError: the repository has no configuration or no weights that can be used.
    """
    files = {file.name: file for file in listing.files}
    where = f"{listing.model_id} at revision {listing.revision}"
    if "config.json" not in files:
        raise SnapshotError(f"{where} is not a GPT-J: it has no config.json")
    small = [files[name] for name in SMALL_FILES if name in files]
    for single, index in ((SINGLE_FILE, INDEX_FILE), (PICKLE_FILE, PICKLE_INDEX)):
        if single in files:
            return small, [files[single]]
        stem, kind = single.rsplit(".", 1)
        shard = re.compile(rf"{stem}-\d+-of-\d+\.{kind}")
        shards = [file for name, file in sorted(files.items()) if shard.fullmatch(name)]
        if shards and index in files:
            return small, [*shards, files[index]]
    raise SnapshotError(
        f"{where} has no weights in safetensors ({SINGLE_FILE}) nor as torch's pickle "
        f"({PICKLE_FILE})"
    )


def scale_sharers(config: NetworkConfig) -> dict[str, tuple[str, ...]]:
    """The tensors that can be int8, each with all that have the same scales, itself among them.

    The columns of a parameter have: a layer's out_proj and fc_out.
    """
    places = {
        name: place
        for name, place in NetworkLayout(config).places.items()
        if is_multiplied(place.parameter)
    }
    return {
        name: tuple(
            other
            for other, beside in places.items()
            if other == name or (place.dim == 1 and beside.parameter == place.parameter)
        )
        for name, place in places.items()
    }


def _store_in(wanted: Precision, bytes_per_weight: float) -> Precision:
    """What ``auto`` means: this machine's GPU's precision, else 16 bits."""
    if wanted is not Precision.AUTO:
        return wanted
    if torch.cuda.is_available():
        device = describe_device(torch.device("cuda"))
        chosen = choose_precision(wanted, torch.float32, device).dtype
        return next((name for name, dtype in DTYPES.items() if dtype is chosen), Precision.NATIVE)
    return Precision.BFLOAT16 if bytes_per_weight > 3 else Precision.NATIVE

"""Bringing a model of the hub into a cache: download, convert, describe, publish."""

from __future__ import annotations

import errno
import json
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path

import torch
from filelock import Timeout
from transformers import GPTJConfig

from gptj_predictor.common.dtypes import dtype_name
from gptj_predictor.common.files import sync_tree, write_whole
from gptj_predictor.common.progress import readable, say
from gptj_predictor.devices.precision import DTYPES, Precision, choose_precision, describe_device
from gptj_predictor.pull.convert import (
    check_checkpoint,
    convert,
    is_servable,
    open_checkpoint,
    stored_bytes,
)
from gptj_predictor.pull.hub import HubFile, Listing, download, list_files
from gptj_predictor.settings import wire_name
from gptj_predictor.snapshot.cache import LEASE_SECONDS, ModelRoot
from gptj_predictor.snapshot.errors import SnapshotError
from gptj_predictor.snapshot.folder import (
    INDEX_FILE,
    SINGLE_FILE,
    SnapshotFolder,
    read_config,
    read_json_object,
)
from gptj_predictor.snapshot.load import check_tensors, expected_shapes
from gptj_predictor.snapshot.manifest import MANIFEST_FILE, Manifest
from gptj_predictor.snapshot.verify import describe_files, find_damage

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

#: What the hub said, kept beside what was downloaded.
LISTING_FILE = "listing.json"

#: Named in the manifest with their versions.
TOOLS = ("gptj-predictor", "torch", "safetensors", "huggingface_hub")

#: What is left free on the volume.
SPARE_BYTES = 256 * 2**20

#: Seconds between two lines about a pull that this one waits for.
WAIT_LINE_SECONDS = 10.0


@dataclass(frozen=True)
class PullRequest:
    """What to pull.

    Attributes:
        model_id: As the hub names it, ``OWNER/NAME``.
        revision: Branch, tag or commit.
        precision: To store; ``auto`` is this machine's GPU's, without one bfloat16, or the
            checkpoint's own if that has 16 bits already.
        cache: The volume's folder; the model's root is made in it.
        offline: Use what is there already and no network.
        keep_source: Keep what was downloaded beside what was made of it.
        verify: Read all of a version that is there already, and make it anew if it is damaged.
        retries: Of each file, with pauses that double from one second.
        tag: A name under which a server finds what this pull brought.
    """

    model_id: str
    revision: str = "main"
    precision: Precision = Precision.AUTO
    cache: Path = Path()
    offline: bool = False
    keep_source: bool = False
    verify: bool = False
    retries: int = 6
    tag: str | None = None


def pull(request: PullRequest) -> Path:
    """Have a whole snapshot in the cache and serve it from now on; its folder.

    Any number of processes may do the same at once: one works, the others wait. It may be killed at
    any moment: nothing half-made is ever seen, and the next pull goes on where it was.

    Raises:
        SnapshotError: it cannot be had, with what to do; what was downloaded is kept.
    """
    root = ModelRoot(request.cache / wire_name(request.model_id))
    try:
        with _lease(root) as check:
            return _Pull(request, root, check).run()
    except SnapshotError:
        with suppress(OSError):
            root.path.rmdir()  # only if this left nothing in it
        raise
    except OSError as error:
        raise SnapshotError(_explain_local(error, root)) from error


@contextmanager
def _lease(root: ModelRoot) -> Iterator[Callable[[], None]]:
    """Hold the root's lease; gives a function that raises once it is lost."""
    lease = root.lease()
    said = -math.inf
    while True:
        root.path.mkdir(parents=True, exist_ok=True)
        try:
            lease.acquire(timeout=1.0)
            break
        except FileNotFoundError:
            continue  # a pull that failed has just taken its empty root away
        except Timeout:
            if time.monotonic() - said >= WAIT_LINE_SECONDS:
                said = time.monotonic()
                say(f"waiting for another pull into {root.path}: {root.describe_pull()}")

    def check() -> None:
        if lease.compromise is not None or not lease.is_lock_held_by_us:
            raise SnapshotError(
                f"another pull took over {root.path} because this one gave no sign of life for "
                f"{LEASE_SECONDS:.0f} s; nothing is lost, pull again"
            )

    try:
        yield check
    finally:
        lease.release()


class _Pull:
    """One pull, by the holder of the lease."""

    def __init__(self, request: PullRequest, root: ModelRoot, check: Callable[[], None]) -> None:
        self._request, self._root, self._check = request, root, check

    def run(self) -> Path:
        """All of it; the published folder."""
        version = self._offline_version() if self._request.offline else None
        if version is None:
            version = self._bring(self._listing())
        self._root.set_current(version.name)
        if self._request.tag is not None:
            self._root.set_tag(self._request.tag, version.name)
        self._clean()
        return version

    def _offline_version(self) -> Path | None:
        """A whole version that answers the request without asking what the revision is today."""
        wanted = self._request
        for version in self._root.versions():
            with suppress(SnapshotError):  # a damaged one is none
                manifest = Manifest.read(version)
                if (
                    manifest is not None
                    and manifest.model_id == wanted.model_id
                    and wanted.revision in {manifest.revision, manifest.commit}
                    and wanted.precision in {Precision.AUTO, manifest.precision}
                    and not find_damage(version, everything=wanted.verify)
                ):
                    return version
        return None

    def _listing(self) -> Listing:
        wanted = self._request
        if not wanted.offline:
            return list_files(wanted.model_id, wanted.revision, wanted.retries)
        for file in self._root.pull_path.glob(f"*/{LISTING_FILE}"):
            listing = Listing.read(file)
            if listing is not None and wanted.revision in {listing.revision, listing.commit}:
                return listing
        raise SnapshotError(
            f"--offline: {self._root.path} has no whole snapshot of {wanted.model_id} at revision "
            f"{wanted.revision} and no download of it; pull once without --offline"
        )

    def _bring(self, listing: Listing) -> Path:
        """The version of a commit: one that is there, or one made now."""
        small, weights = _needed(listing)
        source = self._root.pull_path / f"source-{listing.commit[:12]}"
        self._undo_move(source)
        config = self._published_config(listing.commit)
        if config is None:
            self._fetch(listing, [file for file in small if file.name == "config.json"], source)
            config = read_config(source)
        shapes = expected_shapes(config)
        elements = sum(math.prod(shape) for shape in shapes.values())
        stored = sum(file.size for file in weights)
        precision = _store_in(self._request.precision, stored / elements)
        name = f"{listing.commit[:12]}-{precision}"
        published = self._whole_version(name)
        if published is not None:
            return published
        name = self._free_name(name)
        build = self._root.pull_path / f"build-{name}"
        if not self._is_built(build):
            dtype = DTYPES.get(precision)
            made = elements * dtype.itemsize if dtype else stored
            if dtype is None and weights[0].name.endswith(".safetensors"):
                made = 0  # most likely these files are taken as they are
            files = [*small, *weights]
            self._make_room(made - _bytes_in(build) + _bytes_missing(files, source))
            self._fetch(listing, files, source)
            self._build(source, build, [file.name for file in small], weights, dtype, shapes)
            self._describe(listing, precision, weights, build)
        sync_tree(build)
        self._check()
        return self._root.publish(build, name)

    def _published_config(self, commit: str) -> GPTJConfig | None:
        """A commit's configuration, if one of its versions is there."""
        for version in self._root.versions():
            with suppress(SnapshotError):
                manifest = Manifest.read(version)
                if manifest is not None and manifest.commit == commit:
                    return read_config(version)
        return None

    def _build(
        self,
        source: Path,
        build: Path,
        small: list[str],
        weights: list[HubFile],
        dtype: torch.dtype | None,
        shapes: dict[str, tuple[int, ...]],
    ) -> None:
        """The snapshot's files but for the manifest, out of the downloaded ones."""
        files = [file.name for file in weights if not file.name.endswith(".json")]
        if is_servable(source, files, dtype):
            shutil.rmtree(build, ignore_errors=True)
            source.rename(build)
            return
        sources = open_checkpoint(source, files)
        check_checkpoint(sources, shapes, self._request.model_id)
        build.mkdir(exist_ok=True)
        for name in small:
            shutil.copy(source / name, build)
        kept = {name: sources[name] for name in (*shapes, "lm_head.weight") if name in sources}
        self._make_room(stored_bytes(kept, dtype) - _bytes_in(build))
        convert(kept, build, dtype, self._check)
        _set_dtype(build / "config.json", dtype or next(iter(kept.values())).dtype)

    def _undo_move(self, source: Path) -> None:
        """Back to a download what a killed pull had moved to be served as it is."""
        commit = source.name.removeprefix("source-")
        for build in self._root.pull_path.glob(f"build-{commit}-*"):
            if (build / LISTING_FILE).exists() and not source.exists():
                build.rename(source)

    def _describe(
        self, listing: Listing, precision: Precision, weights: list[HubFile], build: Path
    ) -> None:
        (build / MANIFEST_FILE).unlink(missing_ok=True)
        for leftover in build.glob("*.new"):  # of a write that was killed
            leftover.unlink()
        files = describe_files(build, self._check)
        files.pop(LISTING_FILE, None)
        manifest = Manifest(
            model_id=listing.model_id,
            revision=listing.revision,
            commit=listing.commit,
            precision=str(precision),
            sources=tuple(
                {"name": file.name, "size": file.size, "sha256": file.sha256} for file in weights
            ),
            files=files,
            tools={name: installed_version(name) for name in TOOLS},
        )
        manifest.write(build)
        check_tensors(SnapshotFolder.open(build))
        (build / LISTING_FILE).unlink(missing_ok=True)

    def _is_built(self, build: Path) -> bool:
        """Whether a killed pull got as far as the manifest."""
        return (
            (build / MANIFEST_FILE).exists()
            and not (build / LISTING_FILE).exists()
            and not find_damage(build, everything=True)
        )

    def _whole_version(self, name: str) -> Path | None:
        for version in self._root.versions():
            if version.name == name or version.name.startswith(f"{name}-r"):
                damage = find_damage(version, everything=self._request.verify)
                if not damage:
                    return version
                say(f"{damage[0]}; making version {version.name} anew")
        return None

    def _free_name(self, name: str) -> str:
        """A version's name: a damaged one is not touched, as somebody may be reading it."""
        taken = {version.name for version in self._root.versions()}
        numbered = (f"{name}-r{number}" for number in range(2, len(taken) + 3))
        return next(free for free in (name, *numbered) if free not in taken)

    def _fetch(self, listing: Listing, files: list[HubFile], source: Path) -> None:
        source.mkdir(parents=True, exist_ok=True)
        listing.write(source / LISTING_FILE)
        if self._request.offline:
            missing = [file.name for file in files if not (source / file.name).exists()]
            if missing:
                raise SnapshotError(
                    f"--offline: {missing[0]} of {listing.model_id} was not downloaded yet; pull "
                    "once without --offline"
                )
        download(listing, files, source, retries=self._request.retries, check=self._check)

    def _make_room(self, needed: int) -> None:
        free = shutil.disk_usage(self._root.path).free
        if needed > 0 and needed + SPARE_BYTES > free:
            raise SnapshotError(
                f"{self._root.path} has {readable(free)} free and this pull needs "
                f"{readable(needed + SPARE_BYTES)} more; make room, for example with "
                f"gptj-predictor snapshot prune {self._root.path}"
            )

    def _clean(self) -> None:
        """Remove all unfinished work, and what was downloaded unless it is to be kept."""
        if not self._root.pull_path.exists():
            return
        for path in self._root.pull_path.iterdir():
            if not (self._request.keep_source and path.name.startswith("source-")):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not any(self._root.pull_path.iterdir()):
            self._root.pull_path.rmdir()


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


def _store_in(wanted: Precision, bytes_per_weight: float) -> Precision:
    """What ``auto`` means: this machine's GPU's precision, else 16 bits."""
    if wanted is not Precision.AUTO:
        return wanted
    if torch.cuda.is_available():
        device = describe_device(torch.device("cuda"))
        chosen = choose_precision(wanted, torch.float32, device).dtype
        return next((name for name, dtype in DTYPES.items() if dtype is chosen), Precision.NATIVE)
    return Precision.BFLOAT16 if bytes_per_weight > 3 else Precision.NATIVE


def _set_dtype(config: Path, dtype: torch.dtype) -> None:
    """Say in a configuration what the weights are stored in, as transformers does."""
    content = read_json_object(config)
    content.pop("torch_dtype", None)
    content["dtype"] = dtype_name(dtype)
    write_whole(config, json.dumps(content, indent=2, sort_keys=True) + "\n")


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())


def _bytes_missing(files: list[HubFile], folder: Path) -> int:
    return max(0, sum(file.size for file in files) - _bytes_in(folder))


def _explain_local(error: OSError, root: ModelRoot) -> str:
    reasons = {
        errno.ENOSPC: "the volume is full; make room and pull again, what is there is kept",
        errno.EDQUOT: "the quota is used up; make room and pull again, what is there is kept",
        errno.EROFS: "the volume is read-only; mount it writable, or name another --dest",
        errno.EACCES: "no permission to write; change the folder's owner, or name another --dest",
        errno.EPERM: "no permission to write; change the folder's owner, or name another --dest",
    }
    reason = reasons.get(error.errno or 0, error.strerror or str(error))
    return f"{error.filename or root.path}: {reason}"

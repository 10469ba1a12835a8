"""What the stages of a pull share: the request, the model's root, and the plan of one version."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gptj_predictor.common.progress import readable
from gptj_predictor.model.quantization import WeightQuantization
from gptj_predictor.pull.convert import Storage
from gptj_predictor.pull.hub import HubFile, Listing
from gptj_predictor.settings import Precision, Quantization
from gptj_predictor.snapshot.advice import prune_command
from gptj_predictor.snapshot.cache import ModelRoot
from gptj_predictor.snapshot.errors import SnapshotError

#: What the hub said, kept beside what was downloaded.
LISTING_FILE = "listing.json"

#: What is left free on the volume.
SPARE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class PullRequest:
    """What to pull.

    Attributes:
        model_id: As the hub names it, ``OWNER/NAME``.
        revision: Branch, tag or commit.
        precision: To store; ``auto`` is this machine's GPU's, without one bfloat16, or the
            checkpoint's own if that has 16 bits already.
        quantization: Of the weights of products, which is none with ``auto``.
        cache: The model cache; the model's root is made in it.
        offline: Use what is there already and no network.
        keep_source: Keep what was downloaded beside what was made of it.
        verify: Read all of a version that is there already, and make it anew if it is damaged.
        retries: Of each file, with pauses that double from one second.
        tag: A name under which a server finds what this pull brought.
    """

    model_id: str
    revision: str
    cache: Path
    retries: int
    precision: Precision = Precision.AUTO
    quantization: Quantization = Quantization.AUTO
    offline: bool = False
    keep_source: bool = False
    verify: bool = False
    tag: str | None = None

    @property
    def stored_quantization(self) -> WeightQuantization:
        """What ``quantization`` comes to."""
        return "int8" if self.quantization is Quantization.INT8 else "none"


@dataclass(frozen=True)
class Job:
    """A request at work.

    Attributes:
        request: What was asked for.
        root: The model's root, whose lease is held.
        check: Raises a ``SnapshotError`` once the lease is lost; long work calls it now and then.
    """

    request: PullRequest
    root: ModelRoot
    check: Callable[[], None]

    def make_room(self, needed: int) -> None:
        """Make sure that the volume has room for so many bytes more.

        Raises:
            SnapshotError: it has not.
        """
        free = shutil.disk_usage(self.root.path).free
        if needed > 0 and needed + SPARE_BYTES > free:
            raise SnapshotError(
                f"{self.root.path} has {readable(free)} free and this pull needs "
                f"{readable(needed + SPARE_BYTES)} more; make room, for example with "
                f"{prune_command(self.root.path).removeprefix('run: ')}"
            )


@dataclass(frozen=True)
class Plan:
    """One version that is to be made.

    Attributes:
        listing: What the hub has at the commit.
        small: The files to download beside the weights.
        weights: The files of the weights, with their index if they have one.
        precision: To store; never ``auto``.
        storage: How to store the weights.
        shapes: Name and shape of every tensor that the configuration asks for.
        name: Of the version.
        source: Folder of the download.
        build: Folder in which the version is made.
    """

    listing: Listing
    small: list[HubFile]
    weights: list[HubFile]
    precision: Precision
    storage: Storage
    shapes: dict[str, tuple[int, ...]]
    name: str
    source: Path
    build: Path

    @property
    def files(self) -> list[HubFile]:
        """Everything to download."""
        return [*self.small, *self.weights]


def bytes_in(folder: Path) -> int:
    """Bytes of a folder's files; 0 if it is not there."""
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())

"""Downloading files of a repository of the Hugging Face hub.

``huggingface_hub`` makes the requests, with their headers and redirects. This module adds two
things. A file goes on where a killed process left off; ``huggingface_hub``'s own download to a
folder would begin it anew. And every file is compared with the digest that the hub lists for it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from gptj_predictor.common.files import put_in_place, write_whole
from gptj_predictor.common.progress import Progress, say
from gptj_predictor.snapshot.errors import SnapshotError

#: The longest pause between two tries, in seconds; pauses double from one second.
LONGEST_PAUSE = 60.0

#: HTTP statuses after which a later try may succeed.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class _ChangedError(Exception):
    """A file that came is not the one that the hub lists."""


@dataclass(frozen=True)
class HubFile:
    """A file as the hub lists it.

    Attributes:
        name: In the repository.
        size: In bytes.
        sha256: Of a large file, in hexadecimal.
        git_sha1: Of any other file: its id as a git blob, in hexadecimal.
    """

    name: str
    size: int
    sha256: str | None
    git_sha1: str | None

    def is_digest(self, file: Path) -> bool:
        """Whether a local file has this one's digest."""
        if self.sha256 is not None:
            digest, wanted = hashlib.sha256(), self.sha256
        elif self.git_sha1 is not None:
            digest, wanted = hashlib.sha1(usedforsecurity=False), self.git_sha1
            digest.update(f"blob {file.stat().st_size}\0".encode())
        else:
            return True
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, lambda: digest).hexdigest() == wanted


@dataclass(frozen=True)
class Listing:
    """A revision of a repository."""

    model_id: str
    revision: str
    commit: str
    files: tuple[HubFile, ...]

    def write(self, file: Path) -> None:
        """Keep it for a later run, which may have no network."""
        write_whole(file, json.dumps(asdict(self)))

    @classmethod
    def read(cls, file: Path) -> Listing | None:
        """What :meth:`write` wrote, if it is there and whole."""
        try:
            content = json.loads(file.read_text())
            files = tuple(HubFile(**entry) for entry in content.pop("files"))
            return cls(files=files, **content)
        except (OSError, ValueError, TypeError, LookupError):
            return None


def list_files(model_id: str, revision: str, retries: int) -> Listing:
    """Ask the hub what a revision is and what it has.

    Raises:
        SnapshotError: there is no such model or revision, access is denied, or no answer.
    """
    api = HfApi()
    try:
        info = _retried(
            f"listing {model_id}",
            lambda: api.model_info(model_id, revision=revision, files_metadata=True, timeout=30),
            retries,
        )
    except Exception as error:
        raise SnapshotError(_explain(error, model_id, revision)) from error
    files = [
        HubFile(
            name=entry.rfilename,
            size=entry.size or 0,
            sha256=entry.lfs.sha256 if entry.lfs else None,
            git_sha1=None if entry.lfs else entry.blob_id,
        )
        for entry in info.siblings or []
    ]
    return Listing(model_id, revision, str(info.sha), tuple(files))


def download(
    listing: Listing,
    files: Sequence[HubFile],
    folder: Path,
    *,
    retries: int,
    check: Callable[[], None],
) -> None:
    """Bring files of one commit into a folder, whole; those that are there already are checked.

    Args:
        listing: The commit.
        files: Of its files.
        folder: Where to; must exist.
        retries: Of each file, on top of the client's own few.
        check: Called now and then; raises to end the work.

    Raises:
        SnapshotError: a file cannot be had, with the reason.
        OSError: it cannot be written.
    """
    there = {
        file.name: size
        for file in files
        for size in [_size(folder / file.name)]
        if size is not None
    }
    partial = sum(_size(_partial(folder, file)) or 0 for file in files)
    total = sum(file.size for file in files)
    what = files[0].name if len(files) == 1 else f"{len(files)} files"
    done = sum(there.values()) + partial
    with Progress(f"downloading {what} of {listing.model_id}", total, done) as progress:
        for file in files:
            check()
            if file.name in there:
                if file.is_digest(folder / file.name):
                    continue
                progress.advance(-there[file.name])
                (folder / file.name).unlink()
            try:
                _retried(
                    f"downloading {file.name}",
                    lambda file=file: _fetch(listing, file, folder, progress, check),  # type: ignore[misc]
                    retries,
                )
            except Exception as error:
                if isinstance(error, SnapshotError) or _is_local(error):
                    raise
                raise SnapshotError(
                    _explain(error, listing.model_id, listing.revision, file.name)
                ) from error


def _fetch(
    listing: Listing, file: HubFile, folder: Path, progress: Progress, check: Callable[[], None]
) -> None:
    """One try; leaves what it got for the next."""
    partial = _partial(folder, file)
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("ab") as opened:
        # A small file may come compressed, which has no ranges.
        if opened.tell() > file.size or file.sha256 is None:
            progress.advance(-opened.tell())
            opened.seek(0)
            opened.truncate()
        http_get(
            hf_hub_url(listing.model_id, file.name, revision=listing.commit),
            opened,
            resume_size=opened.tell(),
            headers=build_hf_headers(library_name="gptj-predictor"),
            expected_size=file.size,
            tqdm_class=_bar_for(progress, check),
        )
    if not file.is_digest(partial):
        progress.advance(-file.size)
        partial.unlink()
        raise _ChangedError(f"{file.name} came with another digest than the hub lists for it")
    put_in_place(partial, folder / file.name)


def _bar_for(progress: Progress, check: Callable[[], None]) -> Any:
    """What ``huggingface_hub`` takes for a progress bar, passing on to ours."""

    class Bar:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def update(self, count: float = 1) -> None:
            check()
            progress.advance(int(count))

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    return Bar


def _retried(what: str, action: Callable[[], Any], retries: int) -> Any:
    """Try again, after growing pauses, while the error is one that may pass."""
    pause = 1.0
    for attempt in range(retries + 1):
        try:
            return action()
        except Exception as error:
            if attempt == retries or not _may_pass(error):
                raise
            said = _retry_after(error)
            wait = min(LONGEST_PAUSE, max(pause, said or 0.0))
            say(f"{what}: {_first_line(error)}; again in {wait:.0f} s")
            logging.getLogger(__name__).debug("retrying", exc_info=True)
            time.sleep(wait)
            pause *= 2
    raise AssertionError("the last attempt returns or raises")


def _may_pass(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code in _PASSING
    if isinstance(error, OSError) and str(error).startswith("Consistency check failed"):
        return True  # fewer bytes came than were announced
    # A listing that is cut off is not JSON.
    return isinstance(error, (httpx2.TransportError, json.JSONDecodeError, _ChangedError))


def _is_local(error: Exception) -> bool:
    """Whether it is this machine's own, such as a full disk."""
    return (
        isinstance(error, OSError)
        and not isinstance(error, HfHubHTTPError)
        and error.errno is not None
    )


def _retry_after(error: Exception) -> float | None:
    response = getattr(error, "response", None)
    try:
        return float(response.headers["Retry-After"]) if response is not None else None
    except (KeyError, ValueError):
        return None


def _explain(error: Exception, model_id: str, revision: str, name: str = "") -> str:
    """One line with what to do."""
    advice = _advice(error)
    if isinstance(error, HFValidationError):
        return f"{model_id!r} is not a model id; {advice}"
    where = f"{model_id} at revision {revision}" + (f", file {name}" if name else "")
    return f"{where}: {advice}"


def _advice(error: Exception) -> str:
    known: list[tuple[type[Exception], str]] = [
        (HFValidationError, "it is OWNER/NAME"),
        (GatedRepoError, "access needs a token of an account that was granted it; set HF_TOKEN"),
        (RevisionNotFoundError, "the hub has no such revision; name a branch, tag or commit"),
        (
            RepositoryNotFoundError,
            "the hub has no such model, or it is private; check the id, or set HF_TOKEN",
        ),
        (OfflineModeIsEnabled, "HF_HUB_OFFLINE forbids the network; unset it, or use --offline"),
        (
            httpx2.TransportError,
            f"{constants.ENDPOINT} cannot be reached ({_first_line(error)}); check the network",
        ),
    ]
    for kind, text in known:
        if isinstance(error, kind):
            return text
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        todo = "check HF_TOKEN" if status in {401, 403} else "try again later"
        return f"{constants.ENDPOINT} answered {status}; {todo}"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _partial(folder: Path, file: HubFile) -> Path:
    return folder / f"{file.name}.partial"


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None

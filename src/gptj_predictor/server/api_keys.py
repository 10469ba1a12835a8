"""The API keys of a file, read again when it changes."""

from __future__ import annotations

import hmac
import logging
import os
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from gptj_predictor.common.key_file import KeyFileError, parse_keys

logger = logging.getLogger(__name__)

#: Seconds between two looks at the file.
LOOK_SECONDS = 1.0


class ApiKeys:
    """Tells whose key a request carries.

    The file is looked at when a request comes, at most once a second. A Kubernetes Secret is a link
    to a file, and an update puts another file there. If the file cannot be read any more, or has no
    usable key, the last keys stay valid and the log says so once.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the keys.

        Args:
            path: The file.
            clock: Seconds.

        Raises:
            KeyFileError: the file cannot be read, or has no usable key.
        """
        self._path = path
        self._clock = clock
        self._complained = False
        self._load()
        self._next_look = clock() + LOOK_SECONDS

    def caller(self, authorization: str) -> str | None:
        """Whose key it is.

        The time that this takes tells nothing of the keys: what is compared are digests, all of
        them, each in constant time.

        Args:
            authorization: The header's value, or "".

        Returns:
            ``key:`` and the first 8 hexadecimal digits of the key's SHA-256; ``None`` without a
            known key.
        """
        self._look()
        scheme, _, key = authorization.strip().partition(" ")
        given = sha256(key.strip().encode("latin-1", "replace")).digest()
        found = None
        for digest in self._digests:
            if hmac.compare_digest(digest, given):
                found = f"key:{digest.hex()[:8]}"
        return found if scheme.lower() == "bearer" else None

    def _look(self) -> None:
        now = self._clock()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        try:
            changed = _identity(_stat(self._path)) != self._identity
            if changed:
                self._load()
        except KeyFileError as error:
            if not self._complained:
                logger.error("--api_key_file %s: %s; the last keys stay valid", self._path, error)
            self._complained = True
            return
        self._complained = False
        if changed:
            logger.info("--api_key_file %s: %d keys", self._path, len(self._digests))

    def _load(self) -> None:
        try:
            with self._path.open("rb") as file:
                identity = _identity(os.fstat(file.fileno()))
                content = file.read()
        except OSError as error:
            raise KeyFileError(f"it cannot be read: {error.strerror}") from error
        self._digests = [sha256(key.encode()).digest() for key in parse_keys(content)]
        self._identity = identity


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise KeyFileError(f"it cannot be read: {error.strerror}") from error


def _identity(stat: os.stat_result) -> tuple[int, ...]:
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)

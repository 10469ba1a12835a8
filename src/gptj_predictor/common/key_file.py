"""A file of API keys, as the server and its clients read it.

One key a line. Empty lines and lines that begin with ``#`` are passed over, and so are spaces at
the ends of a line. A key is made of printable ASCII characters without spaces, so that it can be
sent in a header.
"""

from __future__ import annotations

import re
from pathlib import Path

#: What a header can carry after ``Bearer``.
KEY = re.compile(r"[\x21-\x7e]+")


class KeyFileError(ValueError):
    """The file cannot be read, or has no usable keys. The text repeats nothing of its content."""


def parse_keys(content: bytes) -> tuple[str, ...]:
    """The keys of a file's content, in order.

    Raises:
        KeyFileError: there is none, or a line is no key.
    """
    # latin-1 decodes every byte; what is not ASCII is no key.
    lines = (line.strip() for line in content.decode("latin-1").split("\n"))
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line]
    keys = [(number, line) for number, line in numbered if not line.startswith("#")]
    for number, key in keys:
        if KEY.fullmatch(key) is None:
            raise KeyFileError(
                f"line {number} is no key: allowed are printable ASCII characters without spaces"
            )
    if not keys:
        raise KeyFileError("it has no key")
    return tuple(key for _, key in keys)


def read_keys(path: Path) -> tuple[str, ...]:
    """The keys of a file, in order.

    Raises:
        KeyFileError: it cannot be read, there is no key in it, or a line is no key.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"it cannot be read: {error.strerror}") from error
    return parse_keys(content)

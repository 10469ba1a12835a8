"""What all protocols with JSON bodies need: reading one, and repeating a bad value in an error."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import orjson
from kserve.errors import InvalidInput

#: How much of a bad value an error repeats.
SHOWN_CHARACTERS = 60


def parse_json(body: bytes) -> object:
    """Read a body.

    Raises:
        InvalidInput: it is not JSON in UTF-8.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if "surrogate" in str(error) and body.isascii():
            raise InvalidInput(
                "the body has a lone surrogate (\\ud800 to \\udfff); text must be valid Unicode"
            ) from None
        raise InvalidInput(f"the body is not JSON: {error}") from None


def unknown_name(location: Sequence[int | str], known: Sequence[str]) -> str:
    """An error for a field that is none; the nearest of those that are is named."""
    name = str(location[-1])
    nearest = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0)
    path = "".join(f"{part}." for part in location[:-1])
    return f"{path}{cut(name)}: unknown; did you mean {nearest[0]}? Known are {', '.join(known)}"


def shown(value: object) -> str:
    """A value as JSON, shortened."""
    try:
        return cut(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode())
    except (TypeError, orjson.JSONEncodeError):
        return cut(repr(value))


def cut(text: str) -> str:
    """A text, shortened."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."

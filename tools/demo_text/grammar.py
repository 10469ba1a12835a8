"""A very small template language, and the rule that keeps held-out text held out.

A template is plain English with two kinds of holes. ``[a|b|c]`` becomes one of its
alternatives (they may nest, and may be empty), and ``{name}`` becomes the word that the
document has bound to that name::

    fill(rng, "The {animals} [slept|rested] [|all day ]near the {place}.", words)
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Mapping, Sequence

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
# "a" before a vowel becomes "an", except where the vowel is spoken as a consonant.
_ARTICLE = re.compile(r"\b([Aa]) (?=[aei]|o(?!ne\b)|u(?!ni|se)|hour|honest)")

# One key in this many is never shown to the model in training.
HELD_OUT_ONE_IN = 12


def fill(rng: random.Random, template: str, words: Mapping[str, str]) -> str:
    """Expand every choice, then every slot, then repair the articles."""
    while "[" in template:
        template = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), template)
    return _ARTICLE.sub(r"\1n ", template.format_map(words))


def is_held_out(*key: object) -> bool:
    """Whether this combination of parts is reserved for evaluation.

    The answer depends on the key alone, never on a seed, so no seed can leak held-out text.
    """
    text = "|".join(str(part) for part in key)
    return zlib.crc32(text.encode()) % HELD_OUT_ONE_IN == 0


class Deck:
    """Deals the items of a sequence in random order, reshuffling only when all are used.

    A story drawn from a deck does not repeat a sentence until it has told all the others.
    """

    def __init__(self, rng: random.Random, items: Sequence[str]) -> None:
        self._rng = rng
        self._items = items
        self._left: list[str] = []

    def deal(self) -> str:
        """The next item."""
        if not self._left:
            self._left = self._rng.sample(self._items, len(self._items))
        return self._left.pop()

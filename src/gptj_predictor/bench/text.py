"""Prompts: cut from plain sentences that are made here, the same ones every time."""

from __future__ import annotations

import random
from dataclasses import dataclass

from gptj_predictor.bench.errors import PlanError
from gptj_predictor.tokenizer import Tokenizer

SENTENCES = 4000


def _options(text: str) -> list[str]:
    return text.split("|")


WHO = _options(
    "The old baker|A tired postman|My neighbour|The night nurse|Our teacher|The ferry captain|A "
    "young gardener|The town clerk|Her youngest brother|The violin maker|A retired pilot|The cook "
    "at the station|His aunt from the coast|The woman with the green umbrella|A student of geology"
)
DID = _options(
    "repaired|forgot|painted|sold|carried|borrowed|measured|described|hid|found|cleaned|photographed"
    "|gave away|looked for|talked about"
)
WHAT = _options(
    "a broken clock|the last loaf of bread|seven wooden chairs|an unfinished letter|the map of the "
    "harbour|a box of apples|two bicycles|the recipe for plum cake|a small brass telescope|the key "
    "to the library|an enormous kite|some very old coins|the weather report|a basket of wool"
)
WHEN = _options(
    "before breakfast|on the first day of spring|while it was raining|after the concert|in the "
    "middle of the night|during the long winter|as soon as the shop had closed|every other Tuesday|"
    "when nobody was watching|shortly after the train had left|without saying a word"
)
WHY = _options(
    "because the bridge was closed|and nobody could say why|so the children laughed|although the "
    "doctor had advised against it|which surprised the whole street|and then went home|to win a bet"
    "|for the third time that year|but it made no difference|and told the newspaper about it"
)


def make_sentences() -> list[str]:
    """Some 70,000 words; each sentence begins with a space."""
    choose = random.Random(0).choice  # noqa: S311 - no secret
    return [
        f" {choose(WHO)} {choose(DID)} {choose(WHAT)} {choose(WHEN)}, {choose(WHY)}."
        for _ in range(SENTENCES)
    ]


@dataclass(frozen=True)
class Prompt:
    """A prompt as tokens and as text."""

    ids: list[int]
    text: str


class Prompts:
    """Prompts of a given length, cut out of the text at seeded places.

    The text of a prompt is tokenized into exactly its tokens. So a server that gets the text
    computes the same as an engine that gets the tokens.
    """

    def __init__(self, tokenizer: Tokenizer, tokens: int, seed: int) -> None:
        """Tokenize the text.

        Args:
            tokenizer: The model's.
            tokens: Of every prompt.
            seed: Decides where prompts are cut.

        Raises:
            PlanError: the text has fewer tokens.
        """
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._seed = seed
        self._ids = [token for text in make_sentences() for token in tokenizer.encode(text)]
        if tokens > len(self._ids):
            raise PlanError(f"--prompt_tokens {tokens}: the text has {len(self._ids)}")

    def cut(self, *place: object) -> Prompt:
        """The prompt of a place in the sweep, which any values may name."""
        choose = random.Random(f"{self._seed} {place}")  # noqa: S311 - no secret
        while True:
            start = choose.randrange(len(self._ids) - self._tokens + 1)
            ids = self._ids[start : start + self._tokens]
            text = b"".join(map(self._tokenizer.token_bytes, ids)).decode(errors="replace")
            if self._tokenizer.encode(text) == ids:
                return Prompt(ids, text)

    def sampling_seed(self, *place: object) -> int:
        """The seed that the sequences of a place are sampled with."""
        return random.Random(f"{self._seed} sampling {place}").getrandbits(62)  # noqa: S311

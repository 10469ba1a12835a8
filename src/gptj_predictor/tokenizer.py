"""Text to tokens, and tokens back to text as they come."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

#: What transformers calls special, in ``tokenizer_config.json`` and ``special_tokens_map.json``.
SPECIAL_TOKENS = frozenset(
    f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
)

#: What ``tokenizer_config.json`` may say beside them without a change to the tokens of a text.
OTHER_SETTINGS = frozenset(
    {
        "add_bos_token",
        "add_prefix_space",
        "backend",
        "clean_up_tokenization_spaces",
        "errors",
        "from_slow",
        "is_local",
        "local_files_only",
        "model_max_length",
        "name_or_path",
        "special_tokens_map_file",
        "tokenizer_class",
    }
)

#: What GPT-J's byte-level BPE does not use; other values of it are left to transformers.
UNUSED = {
    "dropout": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (None, False),
    "ignore_merges": (None, False),
}


class TokenizerError(ValueError):
    """The tokenizer files are missing, damaged or not a byte-level BPE."""


@dataclass(frozen=True)
class _Loaded:
    """What the files say.

    Attributes:
        backend: Text to tokens.
        special: The tokens without a text.
        names: Some of them by name, as ``bos_token``.
    """

    backend: Backend
    special: frozenset[str]
    names: dict[str, str]


class Tokenizer:
    """A byte-level BPE tokenizer of a snapshot folder, as transformers loads it.

    transformers takes a second to import. So files like GPT-J's own are read here, and all others
    with transformers.
    """

    def __init__(self, folder: Path) -> None:
        """Load it.

        Raises:
            TokenizerError: the files are missing, damaged or of another kind.
        """
        try:
            loaded = _read_files(folder) or _load_with_transformers(folder)
        except Exception as error:  # transformers and tokenizers raise bare Exceptions too
            raise TokenizerError(f"{folder}: the tokenizer cannot be loaded: {error}") from error
        self._backend = loaded.backend
        self._backend.no_truncation()
        self._backend.no_padding()
        self._vocabulary = self._backend.get_vocab()
        self._special = frozenset(self._vocabulary[token] for token in loaded.special)
        self.special_tokens = loaded.names  # their texts by name
        bos = loaded.names.get("bos_token")
        self._bos = None if bos is None else self._vocabulary[bos]
        self._bytes = self._bytes_by_id(folder)

    def _bytes_by_id(self, folder: Path) -> list[bytes]:
        """Every token's bytes. A byte-level vocabulary spells each byte as one character."""
        byte_of = {character: byte for byte, character in enumerate(byte_characters())}
        added = {token.content for token in self._backend.get_added_tokens_decoder().values()}
        table = [b""] * len(self)
        for token, index in self._vocabulary.items():
            if token in added:
                table[index] = token.encode()
                continue
            try:
                table[index] = bytes(byte_of[character] for character in token)
            except KeyError as error:
                raise TokenizerError(
                    f"{folder}: token {token!r} is not spelled in bytes; only byte-level BPE "
                    "tokenizers, as GPT-J's, can be served"
                ) from error
        return table

    def __len__(self) -> int:
        """One more than the maximum token id."""
        return max(self._vocabulary.values()) + 1

    @property
    def bos_token_id(self) -> int | None:
        """The token that an empty prompt starts from."""
        return self._bos

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without any added at its ends. Releases the interpreter lock.

        Raises:
            RuntimeError: the library failed.
        """
        try:
            return self._backend.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            # A panic of its Rust code is no Exception; it would end the thread that meets it.
            if type(error).__name__ == "PanicException":
                raise RuntimeError("the tokenizer panicked") from error
            raise

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of tokens, special ones included; bytes that are not UTF-8 are U+FFFD."""
        return b"".join(map(self.spelling, token_ids)).decode("utf-8", "replace")

    def spelling(self, token_id: int) -> bytes:
        """The bytes of a token, those of a special one's name; none for an id without a text."""
        return self._bytes[token_id] if token_id < len(self._bytes) else b""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token: none for a special token or an id without a text."""
        if token_id in self._special or token_id >= len(self._bytes):
            return b""
        return self._bytes[token_id]


def byte_characters() -> list[str]:
    """The character that spells each byte in a byte-level vocabulary.

    Printable ones of Latin-1 spell themselves; the others get the characters from U+0100 on, in
    their order (Radford et al., Language models are unsupervised multitask learners, 2019).
    """
    themselves = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in themselves else next(others)) for byte in range(0x100)]


def _load_with_transformers(folder: Path) -> _Loaded:
    from transformers import AutoTokenizer

    loaded: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, use_fast=True)
    named = {name: getattr(loaded, name) for name in SPECIAL_TOKENS}
    names = {name: str(token) for name, token in named.items() if token is not None}
    return _Loaded(loaded.backend_tokenizer, frozenset(loaded.all_special_tokens), names)


def _read_files(folder: Path) -> _Loaded | None:
    """``None`` if the files are missing, damaged, or say what GPT-J's do not."""
    try:
        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        special = _special_tokens(folder, settings)
        ids = _json_if_there(folder / "added_tokens.json")
        if special is not None and _is_plain(json.loads(text), settings, special, ids):
            names = {name: token for name, token in special.items() if token is not None}
            return _Loaded(Backend.from_str(text), frozenset(names.values()), names)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass  # transformers finds words for it
    return None


def _special_tokens(folder: Path, settings: dict[str, Any]) -> dict[str, str | None] | None:
    """The special tokens by name; ``None`` if a file has other settings beside them."""
    more = _json_if_there(folder / "special_tokens_map.json")
    if settings.keys() - SPECIAL_TOKENS - OTHER_SETTINGS or more.keys() - SPECIAL_TOKENS:
        return None
    special: dict[str, str | None] = dict.fromkeys(
        ("bos_token", "eos_token", "unk_token"), "<|endoftext|>"
    )
    for name, token in {**settings, **more}.items():
        if name in SPECIAL_TOKENS:
            special[name] = token["content"] if isinstance(token, dict) else token
    return special


def _is_plain(
    file: dict[str, Any],
    settings: dict[str, Any],
    special: dict[str, str | None],
    ids: dict[str, int],
) -> bool:
    """Whether transformers makes the same of ``tokenizer.json`` as the library that wrote it."""
    model, splitter = file["model"], file["pre_tokenizer"]
    vocabulary = model["vocab"]
    added = {token["content"]: token["id"] for token in file["added_tokens"]}
    behind = sorted(index for token, index in added.items() if token not in vocabulary)
    return (
        settings["tokenizer_class"] in {"GPT2Tokenizer", "GPT2TokenizerFast"}
        and (model["type"], splitter["type"], file["normalizer"]) == ("BPE", "ByteLevel", None)
        and splitter["use_regex"]
        and splitter["add_prefix_space"] == settings.get("add_prefix_space", False)
        and all(model.get(name) in allowed for name, allowed in UNUSED.items())
        and vocabulary.keys() >= set(byte_characters())
        and added.keys() >= {token for token in special.values() if token is not None}
        and all(vocabulary.get(token, index) == index for token, index in added.items())
        and behind == list(range(len(vocabulary), len(vocabulary) + len(behind)))
        and ids.items() <= added.items()
    )


def _json_if_there(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


class Detokenizer:
    """One sequence's text, token by token, up to the first stop string.

    A character is returned once its last byte is there. Bytes that are not UTF-8 become U+FFFD.
    Text that may be the start of a stop string is held back until that is decided.

    Attributes:
        stopped: Whether a stop string has come; the text is complete then.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._num_returned = 0
        self.stopped = False

    @property
    def num_characters(self) -> int:
        """How many characters there are, those held back included: where the next token begins.

        A token within a character begins where that does.
        """
        return self._num_returned + len(self._held)

    def spell(self, token_id: int) -> str:
        """A token as a text of its own, special ones included; nothing is taken."""
        return self._tokenizer.decode([token_id])

    def add(self, token_id: int) -> str:
        """Take a token and return the text that is certain now."""
        return self._take(self._decoder.decode(self._tokenizer.token_bytes(token_id)))

    def finish(self) -> str:
        """Return the text that was held back; no token follows."""
        text = self._take(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        self._num_returned += len(rest)
        return text + rest

    def _take(self, text: str) -> str:
        if self.stopped:
            return ""
        text, self._held = self._held + text, ""
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.stopped = True
            certain = text[: min(found)]
        else:
            keep = max((_overlap(text, stop) for stop in self._stop), default=0)
            certain, self._held = text[: len(text) - keep], text[len(text) - keep :]
        self._num_returned += len(certain)
        return certain


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` are the beginning of ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0

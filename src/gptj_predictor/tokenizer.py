"""Text to tokens, and tokens back to text as they come."""

from __future__ import annotations

import codecs
from pathlib import Path

from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode


class TokenizerError(ValueError):
    """The tokenizer files are missing, damaged or not a byte-level BPE."""


class Tokenizer:
    """A byte-level BPE tokenizer of a snapshot folder, as transformers loads it."""

    def __init__(self, folder: Path) -> None:
        """Load it.

        Raises:
            TokenizerError: the files are missing, damaged or of another kind.
        """
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, use_fast=True
            )
        except Exception as error:  # transformers and tokenizers raise bare Exceptions too
            raise TokenizerError(f"{folder}: the tokenizer cannot be loaded: {error}") from error
        self._special = frozenset(self._tokenizer.all_special_ids)
        self._bytes = self._bytes_by_id(folder)

    def _bytes_by_id(self, folder: Path) -> list[bytes]:
        """Every token's bytes. A byte-level vocabulary spells each byte as one character."""
        byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
        added = self._tokenizer.get_added_vocab()
        table = [b""] * len(self)
        for token, index in self._tokenizer.get_vocab().items():
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
        return max(self._tokenizer.get_vocab().values()) + 1

    @property
    def bos_token_id(self) -> int | None:
        """The token that an empty prompt starts from."""
        return self._tokenizer.bos_token_id

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without any added at its ends. Releases the interpreter lock.

        Raises:
            RuntimeError: the library failed.
        """
        try:
            return self._tokenizer(text, add_special_tokens=False)["input_ids"]
        except BaseException as error:
            # A panic of its Rust code is no Exception; it would end the thread that meets it.
            if type(error).__name__ == "PanicException":
                raise RuntimeError("the tokenizer panicked") from error
            raise

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token: none for a special token or an id without a text."""
        if token_id in self._special or token_id >= len(self._bytes):
            return b""
        return self._bytes[token_id]


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
        self.stopped = False

    def add(self, token_id: int) -> str:
        """Take a token and return the text that is certain now."""
        return self._take(self._decoder.decode(self._tokenizer.token_bytes(token_id)))

    def finish(self) -> str:
        """Return the text that was held back; no token follows."""
        text = self._take(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return text + rest

    def _take(self, text: str) -> str:
        if self.stopped:
            return ""
        text, self._held = self._held + text, ""
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` are the beginning of ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
